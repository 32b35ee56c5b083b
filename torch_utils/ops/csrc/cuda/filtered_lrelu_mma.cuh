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
//     [16 output columns, 16 rows] [16 rows, 8 output rows]  -> outputs, transposed      vertical
//
// The sum of a product lies in a warp's registers as the left factor of the next, or, transposed, as its right factor.

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

struct MmaPlan {
    const void* x;
    void* y;
    const float* bias;
    uint8_t* codes;
    const uint4 *up, *down;  // registers of the filters: [terms][quads][32]
    int64_t channels, code_bytes;
    int type;
    float slope, clamp, least_scale, gain;  // clamp of an unscaled sample as the products make it; of the outputs
    int n_in_y, n_in_x, n_up_y, n_up_x, n_out_y, n_out_x;
    int up_pad_y, up_pad_x, down_pad_y, down_pad_x;
    int strips, rows;        // of a tile: strips side by side, 1, 2 or 4; output rows of a warp, a multiple of STEP
    int tiles_x, tiles;      // of a map
    int in_pitch, in_bytes, code_pitch;
    int64_t first_map;
};

template <int UP, int UP_TERMS, int DOWN, int DOWN_TERMS, int SLOPES> struct Shapes {
    static constexpr int STEPS_X = DOWN == 2 ? 3 : 6;   // 16 upsampled columns each, that a strip's outputs meet
    static constexpr int STEPS_Y = DOWN;                // 16 upsampled rows each, that STEP outputs meet
    static constexpr int BANDS = DOWN * STEP / BAND;    // by which the rows go on with STEP outputs
    static constexpr int UP_TILES = 2 * STEPS_X;        // of 8 upsampled columns
    static constexpr int IN_TILES = (UP_TILES + UP - 1) / UP + 1;  // of 8 input columns
    static constexpr int STRIDE = STRIP * DOWN / UP;    // inputs from strip to strip
    static constexpr int UP_QUADS = (4 + 2 * UP) / 4, DOWN_QUADS = (4 * STEPS_X + 2 * STEPS_Y) / 4;

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
    const int index = blockIdx.x % p.tiles, tile_h = p.rows * (MMA_WARPS / p.strips), tile_w = p.strips * STRIP;
    t.map = p.first_map + blockIdx.x / p.tiles;
    t.out_y = index / p.tiles_x * tile_h;
    t.out_x = index % p.tiles_x * tile_w;
    t.rows = smaller(tile_h, (p.n_out_y - t.out_y + STEP - 1) / STEP * STEP);
    t.strips = smaller(p.strips, (p.n_out_x - t.out_x + STRIP - 1) / STRIP);
    const int64_t up_y = (int64_t)t.out_y * DOWN - p.down_pad_y, up_x = (int64_t)t.out_x * DOWN - p.down_pad_x;
    t.up_y = clamp_origin(up_y, p.n_up_y);
    t.up_x = clamp_origin(up_x, p.n_up_x);
    t.in_y = clamp_origin(ceil_div_floor(up_y - p.up_pad_y, UP), p.n_in_y);
    t.in_x = clamp_origin(ceil_div_floor(up_x - p.up_pad_x, UP), p.n_in_x);
    return t;
}

// The power of two by which inputs are multiplied whose largest finite magnitude has these bits. With a clamp never so
// small that the clamp would vanish beside the inputs.
__device__ __forceinline__ float scale_of(unsigned largest, float least) {
    const int exponent = 2 * 127 + LARGEST_EXPONENT - 1 - (int)(largest >> 23);
    const float scale = of_bits((unsigned)larger(smaller(exponent, 127 + 120), 127 - 120) << 23);
    return larger(scale, least);
}

// Inputs with bias, times the scale that is returned, in float16; zero outside of the image.
template <int TYPE>
__device__ __forceinline__ float stage_inputs(
    const MmaPlan& p, const MmaTile& t, int rows, int columns, unsigned short* in, unsigned* largest_of) {
    const float bias = p.bias ? p.bias[t.map % p.channels] : 0.f;
    const unsigned short* const map = (const unsigned short*)p.x + t.map * p.n_in_y * p.n_in_x;
    const int warp = threadIdx.x / LANES, lane = threadIdx.x % LANES;
    unsigned largest = 0;
    for (int first = warp; first < rows; first += MMA_WARPS * ROWS_IN_FLIGHT)
        for (int c = lane; c < columns; c += LANES) {
            const bool column_exists = inside(t.in_x, c, p.n_in_x);
            unsigned short raw[ROWS_IN_FLIGHT];
#pragma unroll
            for (int i = 0; i < ROWS_IN_FLIGHT; i++) {
                const int r = first + i * MMA_WARPS;
                const bool exists = column_exists && r < rows && inside(t.in_y, r, p.n_in_y);
                raw[i] = exists ? map[(unsigned)(t.in_y + r) * p.n_in_x + (t.in_x + c)] : (unsigned short)0;
            }
#pragma unroll
            for (int i = 0; i < ROWS_IN_FLIGHT; i++) {
                const int r = first + i * MMA_WARPS;
                if (r >= rows) continue;
                in[r * p.in_pitch + c] = raw[i];
                const unsigned bits = bits_of(fabsf(from_half_type(raw[i], TYPE) + bias));
                if (bits < 0x7f800000u) largest = larger(largest, bits);
            }
        }
    largest = largest_of_warp(largest);
    if (lane == 0) largest_of[warp] = largest;
    __syncthreads();
#pragma unroll
    for (int i = 0; i < MMA_WARPS; i++) largest = larger(largest, largest_of[i]);
    const float scale = scale_of(largest, p.least_scale);
    constexpr float MOST = 1 << LARGEST_EXPONENT;  // exceeded beside a clamp that is smaller by far: nothing is lost
    for (int r = warp; r < rows; r += MMA_WARPS) {  // what this thread has written
        const bool row_exists = inside(t.in_y, r, p.n_in_y);
        for (int c = lane; c < columns; c += LANES) {
            unsigned short* const place = in + r * p.in_pitch + c;
            const float v = from_half_type(*place, TYPE) + bias, scaled = v * scale;
            const float limited = fabsf(scaled) > MOST && fabsf(v) < INFINITY ? copysignf(MOST, v) : scaled;
            *place = row_exists && inside(t.in_x, c, p.n_in_x) ? to_float16(limited) : (unsigned short)0;
        }
    }
    return scale;
}

constexpr unsigned NOTHING = 2;       // a code of slope 0
constexpr int CODES_IN_FLIGHT = 4;

// Codes of the tile's upsampled samples, from its first on; those outside of the image: NOTHING.
__device__ __forceinline__ void stage_codes(const MmaPlan& p, const MmaTile& t, int rows, int columns, uint8_t* codes) {
    const uint8_t* const map = p.codes + t.map * p.n_up_y * p.code_bytes;
    const int bytes = (p.n_up_x + 3) >> 2, shift = 2 * (t.up_x & 3);
    for (int first = threadIdx.x / LANES; first < rows; first += MMA_WARPS * CODES_IN_FLIGHT)
        for (int c = threadIdx.x % LANES; c < columns; c += LANES) {
            const int x = t.up_x + 4 * c, byte = x >> 2;
            unsigned raw[CODES_IN_FLIGHT];
#pragma unroll
            for (int i = 0; i < CODES_IN_FLIGHT; i++) {
                const int r = first + i * MMA_WARPS;
                const bool exists = r < rows && inside(t.up_y, r, p.n_up_y);
                const uint8_t* const row = map + (int64_t)(t.up_y + r) * p.code_bytes;
                raw[i] = exists && inside(byte, 0, bytes) ? row[byte] : 0u;
                if (shift && exists && inside(byte, 1, bytes)) raw[i] |= (unsigned)row[byte + 1] << 8;
            }
            unsigned outside = 0;
#pragma unroll
            for (int k = 0; k < 4; k++) outside |= inside(x, k, p.n_up_x) ? 0u : 3u << (2 * k);
#pragma unroll
            for (int i = 0; i < CODES_IN_FLIGHT; i++) {
                const int r = first + i * MMA_WARPS;
                if (r >= rows) continue;
                const unsigned without = inside(t.up_y, r, p.n_up_y) ? outside : 0xffu;
                codes[r * p.code_pitch + c] = (uint8_t)((raw[i] >> shift & ~without) | (without & NOTHING * 0x55u));
            }
        }
}

// Four registers at a time of this lane.
template <int QUADS> __device__ __forceinline__ void load_registers(const uint4* from, unsigned (&to)[4 * QUADS]) {
#pragma unroll
    for (int i = 0; i < QUADS; i++) {
        const uint4 four = from[i * LANES + threadIdx.x % LANES];
        to[4 * i] = four.x, to[4 * i + 1] = four.y, to[4 * i + 2] = four.z, to[4 * i + 3] = four.w;
    }
}

// A warp's work.
template <int UP, int UP_TERMS, int DOWN, int DOWN_TERMS, int SLOPES> struct Strip {
    using S = Shapes<UP, UP_TERMS, DOWN, DOWN_TERMS, SLOPES>;
    static constexpr int WORDS = SLOPES == MULTIPLY ? S::UP_TILES / 2 : (S::UP_TILES + 3) / 4;  // of a lane's codes

    const MmaPlan& p;
    const MmaTile& t;
    const MmaShared& shared;
    const int column, g, l;  // first output, counted from the tile's; this is lane 4 * g + l
    const float clamp;       // scaled
    const unsigned limit;    // the same in float16, twice
    unsigned up[UP_TERMS][4 * S::UP_QUADS], down[DOWN_TERMS][4 * S::DOWN_QUADS];
    float sums[2][4];        // of the STEP outputs before, and of those that begin with the band

    __device__ __forceinline__ Strip(
        const MmaPlan& p, const MmaTile& t, const MmaShared& shared, int column, float scale)
        : p(p), t(t), shared(shared), column(column), g(threadIdx.x % LANES / 4), l(threadIdx.x % 4),
          clamp(p.clamp * scale), limit(pack_halves(clamp, clamp)), sums{} {
#pragma unroll
        for (int k = 0; k < UP_TERMS; k++) load_registers<S::UP_QUADS>(p.up + k * S::UP_QUADS * LANES, up[k]);
#pragma unroll
        for (int k = 0; k < DOWN_TERMS; k++) load_registers<S::DOWN_QUADS>(p.down + k * S::DOWN_QUADS * LANES, down[k]);
    }

    // Output rows [first, first + rows) of the tile; `unscale`: what undoes the scale.
    __device__ __forceinline__ void run(int first, int rows, float unscale) {
        const int end = t.out_y + first + rows;
        const int own_y_end = end >= p.n_out_y ? p.n_up_y : end * DOWN;
        const int right = t.out_x + column + STRIP;
        const int own_x_end = right >= p.n_out_x ? p.n_up_x : right * DOWN;
#pragma unroll 1
        for (int r = 0; r <= rows; r += STEP) {
            add_band<0>((first + r) * DOWN, own_y_end, own_x_end);
            if constexpr (S::BANDS == 2) add_band<1>((first + r) * DOWN + BAND, own_y_end, own_x_end);
            if (r > 0) write_outputs(first + r - STEP, unscale);
#pragma unroll
            for (int i = 0; i < 4; i++) sums[0][i] = sums[1][i], sums[1][i] = 0;
        }
    }

    // A band that begins at row `band` of the upsampled tile, part HALF of those with which STEP outputs begin.
    template <int HALF> __device__ __forceinline__ void add_band(int band, int own_y_end, int own_x_end) {
        __syncwarp();
        const int lane = 4 * g + l;
        const unsigned short* const row =
            shared.in + (band / UP + lane % 16) * p.in_pitch + column * DOWN / UP + lane / 16 * 8;
        unsigned inputs[S::IN_TILES][2];
#pragma unroll
        for (int i = 0; i + 1 < S::IN_TILES; i += 2) load_transposed(inputs[i], inputs[i + 1], row + 8 * i);
        if constexpr (S::IN_TILES % 2)
            load_transposed(inputs[S::IN_TILES - 1], row - lane / 16 * 8 + 8 * (S::IN_TILES - 1));

        unsigned rows[UP_TERMS][S::IN_TILES][2];
#pragma unroll
        for (int k = 0; k < UP_TERMS; k++)
#pragma unroll
            for (int i = 0; i < S::IN_TILES; i++) {
                float sum[4] = {};
                multiply_add(sum, {up[k][0], up[k][1], up[k][2], up[k][3]}, inputs[i]);
                rows[k][i][0] = pack_halves(sum[0], sum[1]);
                rows[k][i][1] = pack_halves(sum[2], sum[3]);
            }

        const int y = t.up_y + band, x = t.up_x + column * DOWN;
        const bool whole = y >= 0 && x >= 0 && y + BAND <= p.n_up_y && x + 8 * S::UP_TILES <= p.n_up_x;
        unsigned codes[2][WORDS] = {};
        if constexpr (SLOPES == MULTIPLY) read_codes(band, codes);
        float columns[DOWN_TERMS][2][4] = {};
#pragma unroll
        for (int s = 0; s < S::STEPS_X; s++) {
            unsigned activated[2][2];  // [half of the rows][half of the columns]
#pragma unroll
            for (int half = 0; half < 2; half++) {
                const int tile = 2 * s + half, i = tile / UP, at = 4 + 2 * (tile % UP);
                float sum[4] = {};
#pragma unroll
                for (int k = 0; k < UP_TERMS; k++)
                    multiply_add(sum, {rows[k][i][0], rows[k][i][1], rows[k][i + 1][0], rows[k][i + 1][1]},
                                 {up[k][at], up[k][at + 1]});
                activate_tile(sum, tile, y, x, whole, codes);
                activated[0][half] = pack_halves(sum[0], sum[1]);
                activated[1][half] = pack_halves(sum[2], sum[3]);
                if constexpr (SLOPES != MULTIPLY) {
                    activated[0][half] = clamp_halves(activated[0][half], limit);
                    activated[1][half] = clamp_halves(activated[1][half], limit);
                }
            }
#pragma unroll
            for (int k = 0; k < DOWN_TERMS; k++)
#pragma unroll
                for (int half = 0; half < 2; half++)
                    multiply_add(columns[k][half],
                                 {down[k][4 * s], down[k][4 * s + 1], down[k][4 * s + 2], down[k][4 * s + 3]},
                                 activated[half]);
        }
        if constexpr (SLOPES == REMEMBER) write_codes(y, x, own_y_end, own_x_end, codes);

#pragma unroll
        for (int k = 0; k < DOWN_TERMS; k++) {
            unsigned left[4];
#pragma unroll
            for (int i = 0; i < 4; i++) left[i] = pack_halves(columns[k][i / 2][i % 2 * 2], columns[k][i / 2][i % 2 * 2 + 1]);
#pragma unroll
            for (int i = 0; i < 2; i++) {  // to the outputs before this is the later half of their rows
                const int at = 4 * S::STEPS_X + 2 * (HALF + (1 - i) * S::STEPS_Y / 2);
                multiply_add(sums[i], left, {down[k][at], down[k][at + 1]});
            }
        }
    }

    // Leaky ReLU, or slopes by codes, of the samples of 8 columns; `whole`: whether the band is all in the image.
    __device__ __forceinline__ void activate_tile(
        float (&v)[4], int tile, int y, int x, bool whole, unsigned (&codes)[2][WORDS]) const {
        if constexpr (SLOPES == MULTIPLY) {
#pragma unroll
            for (int half = 0; half < 2; half++) {
                const float2 slopes = shared.table[codes[half][tile / 2] >> (16 * (tile % 2) + 4 * l) & 15];
                v[2 * half] *= slopes.x;
                v[2 * half + 1] *= slopes.y;
            }
        } else {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const float activated = fmaxf(v[i], p.slope * v[i]);  // as slopes are at most 1
                if constexpr (SLOPES == REMEMBER) {
                    const unsigned code = fabsf(activated) >= clamp ? 2u : v[i] > 0 ? 0u : 1u;
                    codes[i / 2][tile / 4] |= code << (8 * (tile % 4) + 2 * (i % 2));
                }
                v[i] = activated;
            }
            if (whole) return;
#pragma unroll
            for (int i = 0; i < 4; i++)
                if (!inside(y, g + i / 2 * 8, p.n_up_y) || !inside(x, 8 * tile + 2 * l + i % 2, p.n_up_x)) v[i] = 0.f;
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

    // Codes of a band to memory. Two lanes have the halves of a byte; each then writes every second byte.
    __device__ __forceinline__ void write_codes(int y, int x, int y_end, int x_end, unsigned (&codes)[2][WORDS]) const {
#pragma unroll
        for (int half = 0; half < 2; half++) {
#pragma unroll
            for (int i = 0; i < WORDS; i++) {
                codes[half][i] <<= 4 * (l & 1);
                codes[half][i] |= of_neighbour(codes[half][i]);
            }
            const int row = y + g + 8 * half;
            if (!inside(row, 0, p.n_up_y) || row >= y_end) continue;
            uint8_t* const bytes = p.codes + (t.map * p.n_up_y + row) * p.code_bytes;
#pragma unroll
            for (int tile = 0; tile < S::UP_TILES; tile++) {
                const int its_x = x + 8 * tile + 4 * (l >> 1);
                if (tile % 2 == (l & 1) && its_x < x_end)
                    bytes[its_x >> 2] = (uint8_t)(codes[half][tile / 4] >> (8 * (tile % 4)));
            }
        }
    }

    // STEP rows of the strip, from row `first` of the tile on.
    __device__ __forceinline__ void write_outputs(int first, float unscale) const {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const int y = t.out_y + first + 2 * l + i % 2, x = t.out_x + column + g + i / 2 * 8;
            if (y < p.n_out_y && x < p.n_out_x)
                Samples<float>::write(p.y, (t.map * p.n_out_y + y) * p.n_out_x + x, p.type,
                                      sums[0][i] * p.gain * unscale);
        }
    }
};

template <int UP, int UP_TERMS, int DOWN, int DOWN_TERMS, int SLOPES>
__global__ void __launch_bounds__(MMA_THREADS, DOWN == 4 && UP_TERMS > 1 ? 2 : 3) mma_kernel(const MmaPlan p) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
    using S = Shapes<UP, UP_TERMS, DOWN, DOWN_TERMS, SLOPES>;
    const MmaTile t = mma_tile<S, UP, DOWN>(p);
    unsigned char* const bytes = shared_memory<unsigned char>();
    const MmaShared shared{(float2*)bytes, (unsigned*)(bytes + TABLE * sizeof(float2)),
                           (unsigned short*)(bytes + MMA_HEAD), bytes + MMA_HEAD + p.in_bytes};
    const int in_h = S::in_rows(t.rows), in_w = S::in_columns(t.strips);
    if (SLOPES == MULTIPLY) {
        const unsigned i = threadIdx.x;
        if (i < TABLE) shared.table[i] = make_float2(slope_of(i & 3, p.slope), slope_of(i >> 2, p.slope));
        stage_codes(p, t, BAND * S::bands(t.rows), S::code_columns(t.strips), shared.codes);
    }
    const float scale = p.type == FLOAT16 ? stage_inputs<FLOAT16>(p, t, in_h, in_w, shared.in, shared.largest)
                                          : stage_inputs<BFLOAT16>(p, t, in_h, in_w, shared.in, shared.largest);
    __syncthreads();
    const int warp = threadIdx.x / LANES, strip = warp % p.strips, first = warp / p.strips * p.rows;
    if (strip >= t.strips || first >= t.rows) return;
    Strip<UP, UP_TERMS, DOWN, DOWN_TERMS, SLOPES>(p, t, shared, strip * STRIP, scale)
        .run(first, smaller(p.rows, t.rows - first), 1 / scale);
#endif
}

// ---------------------------------------------------------------------------------------------------------------------
// Host

// Estimated time of a block, in instructions of a warp. A product takes as long as six others (benchmarks/kernel_costs.py).
template <typename S, int UP_TERMS, int DOWN_TERMS> double mma_cost(int strips_wide, int rows_high, int strips, int rows) {
    const int bands = S::bands(rows), most = MMA_WARPS / strips * rows;
    const double products = UP_TERMS * (S::IN_TILES + S::UP_TILES) + DOWN_TERMS * (2 * S::STEPS_X + 2);
    const double band = 6 * products + 16. * S::UP_TILES + 60;
    const double staging = 16. * S::in_rows(most) * (S::in_columns(strips) / 32. + 0.5);
    const int across = (strips_wide + strips - 1) / strips, down = (rows_high + most - 1) / most;
    const double working = (double)strips_wide * ((rows_high + rows - 1) / rows);  // warps of a map that have work
    return across * down * (staging + 600) + working * (bands * band + 300);
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
    const int strips_wide = (p.n_out_x + STRIP - 1) / STRIP, rows_high = (p.n_out_y + STEP - 1) / STEP * STEP;
    double best = INFINITY;
    int shared_bytes = 0;
    for (int strips = 1; strips <= MMA_WARPS; strips *= 2)
        for (int rows = STEP; rows <= 96; rows += STEP) {
            const int most = MMA_WARPS / strips * rows, in_bytes = S::in_rows(most) * S::in_pitch(strips) * 2;
            const int bytes = MMA_HEAD + in_bytes + BAND * S::bands(most) * S::code_pitch(strips);
            const double cost = mma_cost<S, UP_TERMS, DOWN_TERMS>(strips_wide, rows_high, strips, rows);
            if (bytes > SHARED_ALWAYS || cost >= best) continue;
            best = cost, shared_bytes = bytes;
            p.strips = strips, p.rows = rows;
            p.in_pitch = S::in_pitch(strips), p.in_bytes = in_bytes, p.code_pitch = S::code_pitch(strips);
        }
    const int tile_h = MMA_WARPS / p.strips * p.rows;
    p.tiles_x = (strips_wide + p.strips - 1) / p.strips;
    p.tiles = p.tiles_x * ((p.n_out_y + tile_h - 1) / tile_h);
    return launch_maps(&mma_kernel<UP, UP_TERMS, DOWN, DOWN_TERMS, SLOPES>, p, op.maps, p.tiles, MMA_THREADS,
                       shared_bytes, stream);
}

// Forward: up 2 or 4, down 2, by terms of the filter down. Backward: up 2, by terms of the filter up, down 2 or 4.
int launch_mma_activate(const FilteredLReLU& op, void* stream, bool* done);
int launch_mma_remember(const FilteredLReLU& op, void* stream, bool* done);
int launch_mma_multiply(const FilteredLReLU& op, void* stream, bool* done);

}  // namespace multiscale
