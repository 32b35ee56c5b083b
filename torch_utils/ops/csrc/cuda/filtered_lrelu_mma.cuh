// A filtered leaky ReLU in half precision on tensor cores: filters with six taps for each phase, dense ones as sums of few
// separable ones (tensor_cores.py). Sums are in float32; what goes from one pass to the next is rounded to float16.
//
// A block stages a tile's inputs in shared memory, in float16, scaled by a power of two so that neither overflow nor
// underflow matters whatever the type: leaky ReLU and clamp go with the scale. A warp makes a strip of 16 output columns, 8
// rows at a time, from blocks of 16 upsampled rows, and keeps all between its inputs and its outputs in registers:
//
//     [16 rows, 16 inputs] [16 inputs, 8 columns]            -> rows upsampled           vertical, for each 8 columns
//     [16 rows, 16 columns] [16 columns, 8 upsampled]        -> upsampled, activated     horizontal
//     [16 outputs, 16 upsampled] [16 upsampled, 8 rows]      -> columns downsampled, transposed
//     [16 output rows, 16 rows] [16 rows, 8 output columns]  -> outputs                  vertical
//
// The sum of a product lies in a warp's registers as the left factor of the next, or, transposed, as its right factor. The third
// is done for two terms of the filter at once, with eight outputs each: these meet only 26 upsampled samples, so two products
// of 16 do for them, where 16 outputs take three.

#pragma once

#include <math.h>

#include "filtered_lrelu.cuh"
#include "warp.cuh"

namespace multiscale {

constexpr int MMA_THREADS = 128;
constexpr int MMA_WARPS = MMA_THREADS / LANES;
constexpr int STRIP = 16, STEP = 8;  // output columns of a warp; output rows that it makes at a time
constexpr int BAND = 16;             // upsampled rows that it makes at a time
constexpr int LARGEST_EXPONENT = 14; // scaled inputs are below 2^14

// Threads side by side along rows of so many items, so many rows at a time; some threads may be idle.
struct Raster {
    int items, rows;
    unsigned magic;

    Raster() = default;
    explicit Raster(int items) : items(items), rows(MMA_THREADS / items), magic((1u << 20) / items + 1) {}
    __device__ __forceinline__ int row() const {  // a thread's first; that of an idle one is beyond all
        const int row = (int)(threadIdx.x * magic >> 20);
        return row < rows ? row : 1 << 20;
    }
    __device__ __forceinline__ int item() const { return (int)(threadIdx.x - (threadIdx.x * magic >> 20) * items); }
};

struct MmaPlan {
    const void* x;
    void* y;
    const float* bias;
    uint8_t* codes;
    const uint4 *up, *down;  // registers of the filters: [quads][32]
    int64_t channels, code_bytes;
    int type;
    float slope, clamp, least_scale, gain;  // clamp of an unscaled sample as the products make it; of the outputs
    int n_in_y, n_in_x, n_up_y, n_up_x, n_out_y, n_out_x;
    int up_pad_y, up_pad_x, down_pad_y, down_pad_x;
    int log2_strips, rows;   // of a tile: strips side by side, 1, 2 or 4; output rows of a warp, a multiple of STEP
    int tiles_x, tiles;      // of a map
    int in_pitch, in_bytes, code_pitch;
    Raster load, scale;      // of inputs: four, and eight at a time
    int wide_in, wide_out;   // whether four samples of a row lie together, and begin at a multiple of eight bytes
    int64_t first_map;
};

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ == 900
constexpr bool LEAN = true;   // as the compiler's code for it is
#else
constexpr bool LEAN = false;
#endif

template <int UP, int UP_TERMS, int DOWN, int DOWN_TERMS, int SLOPES> struct Shapes {
    static constexpr int STEPS_X = DOWN == 2 ? 3 : 6;   // 16 upsampled columns each, that a strip's outputs meet
    static constexpr int BANDS = DOWN * STEP / BAND;    // by which the rows go on with STEP outputs
    static constexpr int UP_TILES = 2 * STEPS_X;        // of 8 upsampled columns
    static constexpr int IN_TILES = (UP_TILES + UP - 1) / UP + 1;  // of 8 input columns
    static constexpr int STRIDE = STRIP * DOWN / UP;    // inputs from strip to strip
    static constexpr int PAIRS = DOWN_TERMS / 2;        // of terms down; there may be one more
    static constexpr int UP_QUADS = (4 + 2 * UP) / 4;   // of each term: vertical, horizontal
    static constexpr int LAST_TERM = 2 * PAIRS, ROWS = LAST_TERM + DOWN_TERMS % 2 * STEPS_X;  // quads where these begin
    static constexpr int DOWN_QUADS = ROWS + DOWN_TERMS * BANDS;
    static constexpr int PRODUCTS = UP_TERMS * (IN_TILES + UP_TILES) + 8 * PAIRS + DOWN_TERMS % 2 * 2 * STEPS_X + 2 * DOWN_TERMS;
    static_assert(PAIRS == 0 || DOWN == 2);
    // Of a multiprocessor, as far as registers go without spilling.
    static constexpr int BLOCKS = DOWN == 4                 ? (UP_TERMS == 1 ? 3 : 2)
                                  : SLOPES == MULTIPLY      ? (UP_TERMS == 1 ? 5 : 4)
                                  : SLOPES == REMEMBER      ? (DOWN_TERMS < 3 ? 5 : 4)
                                                            : (DOWN_TERMS < 3 ? 5 : 4) + LEAN;

    static BOTH constexpr int bands(int rows) { return (rows / STEP + 1) * BANDS; }
    static BOTH constexpr int in_rows(int rows) { return (bands(rows) - 1) * (BAND / UP) + 16; }
    static BOTH constexpr int in_columns(int strips) { return (strips - 1) * STRIDE + 8 * IN_TILES; }
    static BOTH constexpr int code_columns(int strips) { return ((strips - 1) * STRIP * DOWN + 8 * UP_TILES) / 4; }
    // Rows of inputs begin in banks that are 16 bytes apart (modulo 128), rows of codes in different ones.
    static int in_pitch(int strips) { return (in_columns(strips) / 8 | 1) * 8; }
    static int code_pitch(int strips) { return SLOPES == MULTIPLY ? (code_columns(strips) / 4 | 1) * 4 : 0; }
};

// What a block works on: outputs, upsampled samples and inputs where it begins; how much there is.
struct MmaTile {
    int64_t map;
    int out_y, out_x, up_y, up_x, in_y, in_x;
    int rows, strips;
};

constexpr int TABLE = 16;  // slopes of two codes
constexpr int MMA_HEAD = TABLE * sizeof(float2) + MMA_WARPS * sizeof(unsigned);  // bytes before the inputs

struct MmaShared {
    float2* table;       // [TABLE]
    unsigned* largest;   // [MMA_WARPS]
    unsigned short* in;
    uint8_t* codes;
};

template <typename S, int UP, int DOWN> __device__ __forceinline__ MmaTile mma_tile(const MmaPlan& p) {
    MmaTile t;
    const unsigned map = blockIdx.x / (unsigned)p.tiles, index = blockIdx.x - map * p.tiles;
    const unsigned row = index / (unsigned)p.tiles_x, column = index - row * p.tiles_x;
    const int strips = 1 << p.log2_strips, tile_h = p.rows * (MMA_WARPS >> p.log2_strips);
    t.map = p.first_map + map;
    t.out_y = row * tile_h;
    t.out_x = column * (strips * STRIP);
    t.rows = smaller(tile_h, (p.n_out_y - t.out_y + STEP - 1) / STEP * STEP);
    t.strips = smaller(strips, (p.n_out_x - t.out_x + STRIP - 1) / STRIP);
    const int64_t up_y = (int64_t)t.out_y * DOWN - p.down_pad_y, up_x = (int64_t)t.out_x * DOWN - p.down_pad_x;
    t.up_y = clamp_origin(up_y, p.n_up_y);
    t.up_x = clamp_origin(up_x, p.n_up_x);
    t.in_y = clamp_origin(ceil_div_floor(up_y - p.up_pad_y, UP), p.n_in_y);
    t.in_x = clamp_origin(ceil_div_floor(up_x - p.up_pad_x, UP) & ~(int64_t)1, p.n_in_x);  // as tensor_cores.py has it
    return t;
}

// The power of two by which inputs are multiplied whose largest finite magnitude has these bits. With a clamp never so
// small that the clamp would vanish beside the inputs.
__device__ __forceinline__ float scale_of(unsigned largest, float least) {
    const int exponent = 2 * 127 + LARGEST_EXPONENT - 1 - (int)(largest >> 23);
    const float scale = of_bits((unsigned)larger(smaller(exponent, 127 + 120), 127 - 120) << 23);
    return larger(scale, least);
}

constexpr int IN_FLIGHT = 8;  // loads that a thread asks for before it waits for the first of them

// Rows of a tile's inputs that the image has.
struct Rows {
    int begin, end;

    __device__ __forceinline__ Rows(const MmaPlan& p, const MmaTile& t, int rows)
        : begin(larger(-t.in_y, 0)), end(larger(smaller(rows, p.n_in_y - t.in_y), begin)) {}
    __device__ __forceinline__ bool has(int r) const { return (unsigned)(r - begin) < (unsigned)(end - begin); }
};

// Inputs as they are from global to shared memory, zero outside of the image; returns the largest magnitudes of a thread's
// even and odd columns. WIDE: four samples at a time.
template <int TYPE, bool WIDE>
__device__ __forceinline__ unsigned load_inputs(
    const MmaPlan& p, const MmaTile& t, int rows, int columns, unsigned short* in) {
    const unsigned short* const map = (const unsigned short*)p.x + t.map * p.n_in_y * p.n_in_x;
    const int shift = WIDE ? t.in_x & 3 : 0;  // 0 or 2
    const int step = p.load.rows, begin = p.load.row(), c = 4 * p.load.item() - shift, x = t.in_x + c;
    const bool has_first = c >= 0 && c < columns, has_second = c + 2 < columns;
    Rows exist(p, t, rows);
    if (x <= -4 || x >= p.n_in_x) exist.end = exist.begin;
    const unsigned short* sample = map + ((int64_t)(t.in_y + begin) * p.n_in_x + x);
    unsigned short* to = in + begin * p.in_pitch + c;
    const int from_step = step * p.n_in_x, to_step = step * p.in_pitch;
    unsigned largest = 0;
#pragma unroll 1
    for (int first = begin; first < rows; first += step * IN_FLIGHT) {
        uint2 four[IN_FLIGHT];
#pragma unroll
        for (int i = 0; i < IN_FLIGHT; i++) {
            four[i] = uint2{0, 0};
            if (exist.has(first + i * step)) {
                if constexpr (WIDE) {
                    four[i] = *(const uint2*)sample;
                } else {
                    const auto read = [&](int k) { return inside(x, k, p.n_in_x) ? sample[k] : 0u; };
                    four[i] = uint2{read(0) | read(1) << 16, read(2) | read(3) << 16};
                }
            }
            sample += from_step;
        }
#pragma unroll
        for (int i = 0; i < IN_FLIGHT; i++) {
            if (first + i * step >= rows) break;
            if (has_first) *(unsigned*)to = four[i].x;
            if (has_second) *(unsigned*)(to + 2) = four[i].y;
            to += to_step;
            largest = larger_halves<TYPE>(largest, four[i].x & 0x7fff7fffu);
            largest = larger_halves<TYPE>(largest, four[i].y & 0x7fff7fffu);
        }
    }
    return largest;
}

// The largest of all threads' v. To be called by all of them; `of_warps` must not be in use.
__device__ __forceinline__ float largest_of_block(float v, unsigned* of_warps) {
    const unsigned of_warp = largest_of_warp(bits_of(v));  // v >= 0: its bits are in its order
    if (threadIdx.x % LANES == 0) of_warps[threadIdx.x / LANES] = of_warp;
    __syncthreads();
    unsigned largest = of_warps[0];
#pragma unroll
    for (int i = 1; i < MMA_WARPS; i++) largest = larger(largest, of_warps[i]);
    return of_bits(largest);
}

// The largest finite magnitude among the staged inputs, where the largest is not finite.
template <int TYPE>
__device__ __forceinline__ float largest_finite(
    const MmaPlan& p, int rows, int columns, const unsigned short* in, unsigned* of_warps) {
    float largest = 0;
    for (int r = threadIdx.x / LANES; r < rows; r += MMA_WARPS)
        for (int c = threadIdx.x % LANES; c < columns; c += LANES) {
            const float v = fabsf(from_half_type(in[r * p.in_pitch + c], TYPE));
            if (v < INFINITY) largest = larger(largest, v);
        }
    __syncthreads();
    return largest_of_block(largest, of_warps);
}

struct Staged {
    float scale;   // of the inputs
    bool clamped;  // whether the clamp may limit one of the upsampled samples
};

// Inputs with bias, times the scale that is returned, in float16; zero outside of the image.
template <int TYPE>
__device__ __forceinline__ Staged stage_inputs(
    const MmaPlan& p, const MmaTile& t, int rows, int columns, unsigned short* in, unsigned* of_warps) {
    const unsigned both = p.wide_in ? load_inputs<TYPE, true>(p, t, rows, columns, in)
                                    : load_inputs<TYPE, false>(p, t, rows, columns, in);
    const float low = from_half_type((unsigned short)both, TYPE), high = from_half_type((unsigned short)(both >> 16), TYPE);
    float largest = largest_of_block(larger(low, high), of_warps);
    const bool finite = largest < INFINITY;
    if (!finite) largest = largest_finite<TYPE>(p, rows, columns, in, of_warps);
    const bool few = (t.map | p.channels) >> 32 == 0;  // so that a division of half the width does
    const float bias = !p.bias ? 0.f : p.bias[few ? (unsigned)t.map % (unsigned)p.channels : t.map % p.channels];
    const float sum = largest + fabsf(bias);
    float scale = scale_of(bits_of(smaller(sum, 3e38f)), p.least_scale);
    // Factors of float16, of which none that is small enough to matter is lost: what is not 0 is 2^-9 or more by the greatest.
    constexpr float GREATEST = 1 << 15;
    const bool in_halves = TYPE == FLOAT16 && p.least_scale < GREATEST && scale != p.least_scale;
    if (in_halves) scale = smaller(scale, GREATEST);
    const float scaled_bias = bias * scale;
    const Rows exist(p, t, rows);
    const int step = p.scale.rows, begin = exist.begin + p.scale.row(), c = 8 * p.scale.item();
    unsigned masks[4];  // of what the image has
#pragma unroll
    for (int k = 0; k < 4; k++)
        masks[k] = (inside(t.in_x, c + 2 * k, p.n_in_x) ? 0x0000ffffu : 0u) |
                   (inside(t.in_x, c + 2 * k + 1, p.n_in_x) ? 0xffff0000u : 0u);
    unsigned short* const column = in + c;
    if (in_halves) {
        const unsigned factor = pack_halves(scale, scale), summand = pack_halves(scaled_bias, scaled_bias);
#pragma unroll 2
        for (int r = begin; r < exist.end; r += step) {
            uint4* const place = (uint4*)(column + r * p.in_pitch);
            const uint4 v = *place;
            *place = uint4{multiply_add_halves(v.x, factor, summand) & masks[0], multiply_add_halves(v.y, factor, summand) & masks[1],
                           multiply_add_halves(v.z, factor, summand) & masks[2], multiply_add_halves(v.w, factor, summand) & masks[3]};
        }
    } else {
        constexpr float MOST = 1 << LARGEST_EXPONENT;
        const bool limited = scale == p.least_scale;  // a clamp that is smaller by far: nothing is lost beyond MOST
#pragma unroll 1
        for (int r = begin; r < exist.end; r += step) {
            uint4* const place = (uint4*)(column + r * p.in_pitch);
            const uint4 four = *place;
            unsigned words[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
            for (int k = 0; k < 4; k++) {
                float v[2];
#pragma unroll
                for (int h = 0; h < 2; h++) {
                    const float raw = from_half_type((unsigned short)(words[k] >> (16 * h)), TYPE);
                    v[h] = raw * scale + scaled_bias;
                    if (limited) {
                        const float sum = raw + bias;
                        v[h] = fabsf(sum) < INFINITY && fabsf(sum * scale) > MOST ? copysignf(MOST, sum) : sum * scale;
                    }
                }
                words[k] = pack_halves(v[0], v[1]) & masks[k];
            }
            *place = uint4{words[0], words[1], words[2], words[3]};
        }
    }
    // No pass makes anything larger, but for the rounding of its weights.
    return {scale, !finite || !(1.01f * sum <= p.clamp)};
}

constexpr unsigned NOTHING = 0xaaaaaaaau;  // codes of slope 0

// Codes of the tile's upsampled samples, from its first on, 16 to a word; those outside of the image: NOTHING.
__device__ __forceinline__ void stage_codes(const MmaPlan& p, const MmaTile& t, int rows, int columns, uint8_t* codes) {
    const unsigned* const map = (const unsigned*)(p.codes + t.map * p.n_up_y * p.code_bytes);
    const int words_of_row = (int)(p.code_bytes / 4), shift = 2 * (t.up_x & 15), first_word = t.up_x >> 4;
    const Divisor words(columns / 4);
    const int all = rows * (int)words.d;
    for (int first = threadIdx.x; first < all; first += MMA_THREADS * IN_FLIGHT) {
        unsigned low[IN_FLIGHT], high[IN_FLIGHT];
#pragma unroll
        for (int i = 0; i < IN_FLIGHT; i++) {
            const int item = first + i * MMA_THREADS, r = words(item), c = item - r * (int)words.d;
            const bool row_exists = item < all && inside(t.up_y, r, p.n_up_y);
            const unsigned* const word = map + (int64_t)(t.up_y + r) * words_of_row + (first_word + c);
            low[i] = row_exists && inside(first_word, c, words_of_row) ? word[0] : 0u;
            high[i] = shift && row_exists && inside(first_word, c + 1, words_of_row) ? word[1] : 0u;
        }
#pragma unroll
        for (int i = 0; i < IN_FLIGHT; i++) {
            const int item = first + i * MMA_THREADS, r = words(item), c = item - r * (int)words.d, x = t.up_x + 16 * c;
            if (item >= all) break;
            const int begin = smaller(larger(-x, 0), 16), end = smaller(larger(p.n_up_x - x, 0), 16);
            const uint64_t exists = ((uint64_t)1 << (2 * end)) - ((uint64_t)1 << (2 * begin));  // begin < end, or nothing
            const unsigned there = inside(t.up_y, r, p.n_up_y) && begin < end ? (unsigned)exists : 0u;
            const unsigned word = (unsigned)(((uint64_t)high[i] << 32 | low[i]) >> shift);
            *(unsigned*)(codes + r * p.code_pitch + 4 * c) = (word & there) | (NOTHING & ~there);
        }
    }
}

// Four registers at a time of this lane.
template <int QUADS> __device__ __forceinline__ void load_registers(const uint4* from, unsigned (&to)[QUADS][4]) {
#pragma unroll
    for (int i = 0; i < QUADS; i++) {
        const uint4 four = from[i * LANES + threadIdx.x % LANES];
        to[i][0] = four.x, to[i][1] = four.y, to[i][2] = four.z, to[i][3] = four.w;
    }
}

// A warp's work.
template <int UP, int UP_TERMS, int DOWN, int DOWN_TERMS, int SLOPES> struct Strip {
    using S = Shapes<UP, UP_TERMS, DOWN, DOWN_TERMS, SLOPES>;
    static constexpr int WORDS = S::UP_TILES / 2;  // of the codes of a row

    const MmaPlan& p;
    const MmaTile& t;
    const MmaShared& shared;
    const int column, g, l;  // first output, counted from the tile's; this is lane 4 * g + l
    const unsigned slope;    // in float16, twice
    unsigned limit;          // the scaled clamp likewise
    unsigned up[UP_TERMS * S::UP_QUADS][4], down[S::DOWN_QUADS][4];
    const unsigned short* inputs_at;  // of the next band: the row of the matrix that this lane names
    unsigned short* outputs_at;       // of the next rows: this lane's
    int rows_left;                    // of the image from there on
    float sums[2][4];  // of half of the columns: a row of the STEP outputs before, and of those that begin with the band

    __device__ __forceinline__ Strip(const MmaPlan& p, const MmaTile& t, const MmaShared& shared, int column)
        : p(p), t(t), shared(shared), column(column), g(threadIdx.x % LANES / 4), l(threadIdx.x % 4),
          slope(pack_halves(p.slope, p.slope)), limit(0), sums{} {
        load_registers(p.up, up);
        load_registers(p.down, down);
    }

    // Output rows [first, first + rows) of the tile, whose inputs are staged with this scale.
    template <bool CLAMPED> __device__ __forceinline__ void run(int first, int rows, float scale) {
        limit = pack_halves(p.clamp * scale, p.clamp * scale);
        const float gain = p.gain * (1 / scale);
        const int lane = 4 * g + l;
        inputs_at = shared.in + (first * DOWN / UP + lane % 16) * p.in_pitch + column * DOWN / UP + lane / 16 * 8;
        const int y = t.out_y + first + g, x = t.out_x + column + 8 * (l & 1) + 4 * (l >> 1);
        outputs_at = (unsigned short*)p.y + ((t.map * p.n_out_y + y) * p.n_out_x + x);
        rows_left = p.n_out_y - y;
        const int columns_left = p.n_out_x - x;
        const int end = t.out_y + first + rows;
        const int own_y_end = end >= p.n_out_y ? p.n_up_y : end * DOWN;
        const int right = t.out_x + column + STRIP;
        const int own_x_end = right >= p.n_out_x ? p.n_up_x : right * DOWN;
#pragma unroll 1
        for (int r = 0; r <= rows; r += STEP) {
            add_band<0, CLAMPED>((first + r) * DOWN, own_y_end, own_x_end);
            if constexpr (S::BANDS == 2) add_band<1, CLAMPED>((first + r) * DOWN + BAND, own_y_end, own_x_end);
            if (r > 0) write_outputs(columns_left, gain);
#pragma unroll
            for (int i = 0; i < 2; i++) sums[i][0] = sums[i][2], sums[i][1] = sums[i][3], sums[i][2] = sums[i][3] = 0;
        }
    }

    // A band that begins at row `band` of the upsampled tile, part HALF of those with which STEP outputs begin.
    template <int HALF, bool CLAMPED> __device__ __forceinline__ void add_band(int band, int own_y_end, int own_x_end) {
        __syncwarp();
        unsigned inputs[S::IN_TILES][2];
#pragma unroll
        for (int i = 0; i + 1 < S::IN_TILES; i += 2) load_transposed(inputs[i], inputs[i + 1], inputs_at + 8 * i);
        if constexpr (S::IN_TILES % 2)  // of which the second half of the lanes names no row
            load_transposed(inputs[S::IN_TILES - 1], inputs_at + 8 * (S::IN_TILES - 1));
        inputs_at += BAND / UP * p.in_pitch;

        unsigned rows[UP_TERMS][S::IN_TILES][2];
#pragma unroll
        for (int k = 0; k < UP_TERMS; k++)
#pragma unroll
            for (int i = 0; i < S::IN_TILES; i++) {
                float sum[4] = {};
                multiply_add(sum, up[k * S::UP_QUADS], inputs[i]);
                rows[k][i][0] = pack_halves(sum[0], sum[1]);
                rows[k][i][1] = pack_halves(sum[2], sum[3]);
            }

        unsigned codes[2][WORDS] = {};
        if constexpr (SLOPES == MULTIPLY) read_codes(band, codes);
        float pairs[S::PAIRS + 1][2][2][4] = {};  // [half of the columns][half of the rows]; two terms'
        float last[2][4] = {};                    // [half of the rows]; both halves of the columns of one term
#pragma unroll
        for (int s = 0; s < S::STEPS_X; s++) {
            unsigned activated[2][2];  // [half of the rows][half of the columns]
#pragma unroll
            for (int half = 0; half < 2; half++) {
                const int tile = 2 * s + half, i = tile / UP, at = tile % UP;
                float sum[4] = {};
#pragma unroll
                for (int k = 0; k < UP_TERMS; k++)
                    multiply_add(sum, {rows[k][i][0], rows[k][i][1], rows[k][i + 1][0], rows[k][i + 1][1]},
                                 {up[k * S::UP_QUADS + 1 + at / 2][at % 2 * 2], up[k * S::UP_QUADS + 1 + at / 2][at % 2 * 2 + 1]});
                unsigned packed[2];
                activate_tile<CLAMPED>(sum, tile, codes, packed);
                activated[0][half] = packed[0];
                activated[1][half] = packed[1];
            }
#pragma unroll
            for (int half = 0; half < 2; half++) {
#pragma unroll
                for (int k = 0; k < S::PAIRS; k++)
#pragma unroll
                    for (int i = 0; i < 2; i++)
                        if (s - i == 0 || s - i == 1) multiply_add(pairs[k][i][half], down[2 * k + s - i], activated[half]);
                if constexpr (DOWN_TERMS % 2) multiply_add(last[half], down[S::LAST_TERM + s], activated[half]);
            }
        }
        if constexpr (SLOPES == REMEMBER)
            write_codes(t.up_y + band, t.up_x + column * DOWN, own_y_end, own_x_end, codes);

#pragma unroll
        for (int k = 0; k < DOWN_TERMS; k++)
#pragma unroll
            for (int i = 0; i < 2; i++) {
                unsigned right[2];
#pragma unroll
                for (int half = 0; half < 2; half++) {
                    const float* const two = k < 2 * S::PAIRS ? &pairs[k / 2][i][half][k % 2 * 2] : &last[half][2 * i];
                    right[half] = pack_halves(two[0], two[1]);
                }
                multiply_add(sums[i], down[S::ROWS + k * S::BANDS + HALF], right);
            }
    }

    // The samples of 8 columns, activated and packed: [half of the rows].
    template <bool CLAMPED>
    __device__ __forceinline__ void activate_tile(
        const float (&v)[4], int tile, unsigned (&codes)[2][WORDS], unsigned (&packed)[2]) const {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            if constexpr (SLOPES == MULTIPLY) {
                const float2 slopes = shared.table[codes[half][tile / 2] >> (16 * (tile % 2) + 4 * l) & 15];
                packed[half] = pack_halves(v[2 * half] * slopes.x, v[2 * half + 1] * slopes.y);
            } else {
                const unsigned samples = pack_halves(v[2 * half], v[2 * half + 1]);
                packed[half] = activate_halves(samples, slope);
                if constexpr (CLAMPED) packed[half] = clamp_halves(packed[half], limit);
                if constexpr (SLOPES == REMEMBER) {
                    // Bits 0 and 2 of a half of a word: 1 for a negative sample, and for the next one. Bits 1 and 3: clamped.
                    const auto bits = [&](unsigned mask, unsigned shift, unsigned which) {
                        return tile % 2 ? mask << (16 - shift) & which << 16 : mask >> shift & which;
                    };
                    const unsigned clamped = CLAMPED ? at_least(packed[half] & 0x7fff7fffu, limit) : 0;
                    codes[half][tile / 2] |= bits(not_positive(samples) & ~clamped, 14, 5);
                    if constexpr (CLAMPED) codes[half][tile / 2] |= bits(clamped, 13, 10);
                }
            }
        }
    }

    __device__ __forceinline__ void read_codes(int band, unsigned (&codes)[2][WORDS]) const {
        const uint8_t* const first = shared.codes + (band + g) * p.code_pitch + column * DOWN / 4;
#pragma unroll
        for (int half = 0; half < 2; half++)
#pragma unroll
            for (int i = 0; i < WORDS; i++)
                codes[half][i] = *(const unsigned*)(first + 8 * half * p.code_pitch + 4 * i);
    }

    // Codes of a band to memory. Each lane has those of two columns of each tile, four bits of the eight columns' 16; the first
    // three of a row's four lanes come to have a word each, and write it.
    __device__ __forceinline__ void write_codes(int y, int x, int y_end, int x_end, unsigned (&codes)[2][WORDS]) const {
        static_assert(SLOPES != REMEMBER || WORDS == 3);
        const bool odd = l & 1, later = l & 2;
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const unsigned a = codes[half][0] << (4 * l), b = codes[half][1] << (4 * l), c = codes[half][2] << (4 * l);
            const unsigned first = (odd ? b : a) | of_neighbour(odd ? a : b, 1);  // of even lanes word 0, of odd ones word 1
            const unsigned second = c | of_neighbour(c, 1);
            const unsigned mine = later && !odd ? second : first;
            const unsigned word = mine | of_neighbour(later || odd ? first : second, 2);
            const int row = y + g + 8 * half, its_x = x + 16 * l;
            if (l < 3 && row < y_end && its_x < x_end)
                *(unsigned*)(p.codes + (t.map * p.n_up_y + row) * p.code_bytes + its_x / 4) = word;
        }
    }

    // The STEP rows that are complete. Of each half of the columns a lane has two; it takes two more from its neighbour, so that
    // it has four of one half.
    __device__ __forceinline__ void write_outputs(int columns_left, float gain) {
        unsigned pairs[2];
#pragma unroll
        for (int i = 0; i < 2; i++)
            pairs[i] = p.type == FLOAT16 ? pack_halves(sums[i][0] * gain, sums[i][1] * gain)
                                         : pack_bfloats(sums[i][0] * gain, sums[i][1] * gain);
        const bool second = l & 1;
        const unsigned other = of_neighbour(second ? pairs[0] : pairs[1], 1);
        const uint2 four{second ? other : pairs[0], second ? pairs[1] : other};
        if (p.wide_out) {
            if (rows_left > 0 && columns_left > 0) *(uint2*)outputs_at = four;
        } else {
#pragma unroll
            for (int i = 0; i < 4; i++)
                if (rows_left > 0 && columns_left > i)
                    outputs_at[i] = (unsigned short)((i < 2 ? four.x : four.y) >> (16 * (i % 2)));
        }
        outputs_at += STEP * p.n_out_x;
        rows_left -= STEP;
    }
};

template <int UP, int UP_TERMS, int DOWN, int DOWN_TERMS, int SLOPES>
__global__ void __launch_bounds__(MMA_THREADS, Shapes<UP, UP_TERMS, DOWN, DOWN_TERMS, SLOPES>::BLOCKS) mma_kernel(const MmaPlan p) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
    using S = Shapes<UP, UP_TERMS, DOWN, DOWN_TERMS, SLOPES>;
    const MmaTile t = mma_tile<S, UP, DOWN>(p);
    unsigned char* const bytes = shared_memory<unsigned char>();
    const MmaShared shared{(float2*)bytes, (unsigned*)(bytes + TABLE * sizeof(float2)),
                           (unsigned short*)(bytes + MMA_HEAD), bytes + MMA_HEAD + p.in_bytes};
    const int in_h = S::in_rows(t.rows), in_w = S::in_columns(1 << p.log2_strips);
    if (SLOPES == MULTIPLY) {
        const unsigned i = threadIdx.x;
        if (i < TABLE) shared.table[i] = make_float2(slope_of(i & 3, p.slope), slope_of(i >> 2, p.slope));
        stage_codes(p, t, BAND * S::bands(t.rows), S::code_columns(t.strips), shared.codes);
    }
    const int warp = threadIdx.x / LANES, first = (warp >> p.log2_strips) * p.rows;
    const int strip = warp & ((1 << p.log2_strips) - 1);
    Strip<UP, UP_TERMS, DOWN, DOWN_TERMS, SLOPES> work(p, t, shared, strip * STRIP);  // reads its filters meanwhile
    const Staged staged = p.type == FLOAT16 ? stage_inputs<FLOAT16>(p, t, in_h, in_w, shared.in, shared.largest)
                                            : stage_inputs<BFLOAT16>(p, t, in_h, in_w, shared.in, shared.largest);
    __syncthreads();
    if (strip >= t.strips || first >= t.rows) return;
    const int rows = smaller(p.rows, t.rows - first);
    if (SLOPES != MULTIPLY && staged.clamped) work.template run<true>(first, rows, staged.scale);
    else work.template run<false>(first, rows, staged.scale);
#endif
}

// ---------------------------------------------------------------------------------------------------------------------
// Host

// Estimated time of a map, in instructions of a warp, as counted in the machine code. A product keeps a tensor core for six
// cycles, in which as many instructions start.
template <typename S, int UP_TERMS, int DOWN_TERMS> double mma_cost(int strips_wide, int rows_high, int strips, int rows) {
    const int bands = S::bands(rows), most = MMA_WARPS / strips * rows;
    const double others = 2. * UP_TERMS * S::IN_TILES + 6. * S::UP_TILES + 4. * DOWN_TERMS + 57;
    const double band = larger(6. * S::PRODUCTS, S::PRODUCTS + others);
    const double staging = 6. * S::in_rows(most) * S::in_columns(strips) / 32;
    const int across = (strips_wide + strips - 1) / strips, down = (rows_high + most - 1) / most;
    const double working = (double)strips_wide * ((rows_high + rows - 1) / rows);  // warps of a map that have work
    return across * down * (staging + 1300) + working * (bands * band + 150);
}

template <int UP, int UP_TERMS, int DOWN, int DOWN_TERMS, int SLOPES> int launch_mma(const FilteredLReLU& op, void* stream) {
    using S = Shapes<UP, UP_TERMS, DOWN, DOWN_TERMS, SLOPES>;
    MmaPlan p{};
    p.x = op.x, p.y = op.y, p.bias = (const float*)op.bias, p.codes = op.codes;
    p.up = (const uint4*)op.up_registers, p.down = (const uint4*)op.down_registers;
    p.channels = op.channels, p.code_bytes = op.code_bytes, p.type = op.type, p.slope = (float)op.slope;
    const double unit = op.up_unit / op.up.gain;  // of an upsampled sample, as the products make it
    p.clamp = (float)(op.clamp * unit);
    p.least_scale = op.slopes == MULTIPLY || isinf(op.clamp) ? 0.f : (float)exp2(smaller(ceil(log2(0x1p-4 / (op.clamp * unit))), 120.));
    p.gain = (float)(op.down.gain / op.down_unit / unit);
    p.n_in_y = op.up.y.n_in, p.n_in_x = op.up.x.n_in, p.n_up_y = op.up.y.n_out, p.n_up_x = op.up.x.n_out;
    p.n_out_y = op.down.y.n_out, p.n_out_x = op.down.x.n_out;
    p.up_pad_y = op.up.y.pad0, p.up_pad_x = op.up.x.pad0;
    p.down_pad_y = op.down.y.pad0, p.down_pad_x = op.down.x.pad0;
    p.wide_in = p.n_in_x % 4 == 0 && is_aligned(op.x, op.type);
    p.wide_out = p.n_out_x % 4 == 0 && is_aligned(op.y, op.type);
    const int strips_wide = (p.n_out_x + STRIP - 1) / STRIP, rows_high = (p.n_out_y + STEP - 1) / STEP * STEP;
    double best = INFINITY;
    int shared_bytes = 0;
    for (int strips = 1; strips <= MMA_WARPS; strips *= 2)
        for (int rows = STEP; rows <= 192; rows += STEP) {
            const int most = MMA_WARPS / strips * rows, in_bytes = S::in_rows(most) * S::in_pitch(strips) * 2;
            const int bytes = MMA_HEAD + in_bytes + BAND * S::bands(most) * S::code_pitch(strips);
            const int words = BAND * S::bands(most) * S::code_columns(strips) / 4;
            if ((words + MMA_THREADS * IN_FLIGHT) * S::code_columns(strips) / 4 >= 1 << 20) continue;  // for Divisor
            const double cost = mma_cost<S, UP_TERMS, DOWN_TERMS>(strips_wide, rows_high, strips, rows);
            if (bytes > SHARED_ALWAYS || cost >= best) continue;
            best = cost, shared_bytes = bytes;
            p.log2_strips = strips / 2, p.rows = rows;
            p.in_pitch = S::in_pitch(strips), p.in_bytes = in_bytes, p.code_pitch = S::code_pitch(strips);
            p.load = Raster(S::in_columns(strips) / 4 + 1), p.scale = Raster(S::in_columns(strips) / 8);
        }
    const int strips = 1 << p.log2_strips, tile_h = MMA_WARPS / strips * p.rows;
    p.tiles_x = (strips_wide + strips - 1) / strips;
    p.tiles = p.tiles_x * ((p.n_out_y + tile_h - 1) / tile_h);
    return launch_maps(&mma_kernel<UP, UP_TERMS, DOWN, DOWN_TERMS, SLOPES>, p, op.maps, p.tiles, MMA_THREADS,
                       shared_bytes, stream);
}

// Forward: up 2 or 4, down 2, by terms of the filter down. Backward: up 2, by terms of the filter up, down 2 or 4.
int launch_mma_activate(const FilteredLReLU& op, void* stream, bool* done);
int launch_mma_remember(const FilteredLReLU& op, void* stream, bool* done);
int launch_mma_multiply(const FilteredLReLU& op, void* stream, bool* done);

}  // namespace multiscale
