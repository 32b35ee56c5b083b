// A filtered leaky ReLU whose filters have six taps for each phase: a block makes one tile of one map in shared memory.
//
//     global x + bias -> A: inputs -> B: columns upsampled -> A: rows upsampled, activated -> ... -> global y
//     dense up:          B: inputs                         -> A: upsampled, activated      -> ...
//     separable down:    ... -> B: columns downsampled -> rows -> y;          dense down:   ... -> y
//
// The upsampled samples of a row lie in `DOWN` planes, by column modulo DOWN, so that downsampling reads neighbouring
// words: column m is at place m / DOWN of plane m % DOWN. A dense filter is four correlations with 6x6 taps, one for
// each phase of its upsampled side: a thread keeps weights and 4x4 sums in registers and reads a row of samples once.
//
// Upsampling to a tile that begins at an arbitrary phase: local sample UP*q + p takes the inputs q ... q + 6 with the
// weights g[k00 - p + i*UP], k00 being the tap of the tile's first input at its first sample; one of the seven is zero.

#pragma once

#include <math.h>

#include "filtered_lrelu.cuh"

namespace multiscale {

constexpr int TILE_THREADS = 128;
constexpr int WARPS = TILE_THREADS / LANES;
constexpr int TAPS = 6;    // of a phase
constexpr int BLOCK = 4;   // a thread's outputs (positions of a dense upsampling) along an axis
constexpr int DENSE_WEIGHTS = 4 * TAPS * TAPS;
constexpr int SKEW_ROWS = 8;  // upsampled rows of a dense downsampling's BLOCK outputs

struct TilePlan {
    const void* x;
    void* y;
    const float* bias;
    uint8_t* codes;
    const float *up_filter, *down_filter;
    int64_t channels, code_bytes;
    int type, slopes, up_flip, down_flip;
    float slope, clamp, up_gain, down_gain;  // gains of one pass
    int n_in_y, n_in_x, n_up_y, n_up_x, n_out_y, n_out_x;
    int up_pad_y, up_pad_x, down_pad_y, down_pad_x;
    int tile_h, tile_w, tiles_x, tiles;  // outputs of a tile, multiples of Sizes::RUN and BLOCK; tiles of a map
    int a_size;                          // samples of A, which begins after the weights; B follows
    int aligned;                         // whether four neighbouring outputs can be written at once
    int64_t first_map;
};

// Samples that a number of outputs needs along an axis.
template <int UP, int DOWN> struct Reach {
    static constexpr int COLUMNS = BLOCK * UP;  // upsampled columns of one thread

    static BOTH constexpr int upsampled(int outputs) { return outputs * DOWN + TAPS * DOWN - 1; }
    static BOTH constexpr int groups(int outputs) { return (upsampled(outputs) + COLUMNS - 1) / COLUMNS; }
    static BOTH constexpr int in_rows(int outputs) { return BLOCK * groups(outputs) + TAPS; }
    static BOTH constexpr int in_columns(int outputs) { return BLOCK * groups(outputs) + 8; }
};

// Sizes in samples. All rows begin at multiples of 16 bytes.
template <int UP, bool UP_DENSE, int DOWN, bool DOWN_DENSE> struct Sizes : Reach<UP, DOWN> {
    using R = Reach<UP, DOWN>;
    using R::COLUMNS, R::upsampled, R::groups, R::in_rows, R::in_columns;

    static constexpr int TILE_W = DOWN == 4 ? 20 : 40;           // outputs, at most
    static constexpr int RUN = DOWN_DENSE || DOWN == 4 ? 4 : 8;  // output rows of one thread

    static constexpr int GROUPS = groups(TILE_W);
    static constexpr int IN_PITCH = in_columns(TILE_W) + (UP_DENSE && GROUPS % 8 == 4 ? 4 : 0);  // for the banks' sake
    static constexpr int PLANE_NEEDED = larger(GROUPS * COLUMNS / DOWN, TILE_W + 8);
    static constexpr int PLANE = (PLANE_NEEDED + 3) / 4 * 4;
    static constexpr int ROW = PLANE * DOWN;
    static constexpr int OUT_PITCH = ROW + (TILE_W - ROW % 32 + 32) % 32;  // rows between the two passes down: likewise

    static constexpr int UP_WEIGHTS = UP_DENSE ? DENSE_WEIGHTS : 2 * 8 * UP;  // x, then y: [UP][8]
    static constexpr int DOWN_WEIGHTS = DOWN_DENSE ? DENSE_WEIGHTS : TAPS * DOWN;

    static int a_size(int tile_h) {
        const int rows = upsampled(tile_h), skew = DOWN_DENSE ? rows / SKEW_ROWS * 28 : 0;
        return larger(rows * ROW + skew, UP_DENSE ? 0 : in_rows(tile_h) * IN_PITCH);
    }
    static int b_size(int tile_h) {
        const int up = (UP_DENSE ? in_rows(tile_h) : upsampled(tile_h)) * IN_PITCH;
        return larger(up, DOWN_DENSE ? 0 : tile_h * OUT_PITCH);
    }
    static int shared_bytes(int tile_h) {
        return (UP_WEIGHTS + DOWN_WEIGHTS + a_size(tile_h) + b_size(tile_h)) * (int)sizeof(float);
    }
};

__device__ __forceinline__ float filter_tap(const float* f, int flip, int k, int taps) {
    return f[flip ? k : taps - 1 - k];
}

template <int N> __device__ __forceinline__ void load(const float* p, float* v) {
#pragma unroll
    for (int i = 0; i < N; i += 4) {
        const float4 four = *(const float4*)(p + i);
        v[i] = four.x, v[i + 1] = four.y, v[i + 2] = four.z, v[i + 3] = four.w;
    }
}

// To shared memory in one access. In assembler, since nvcc splits it into single stores, whose banks would conflict.
__device__ __forceinline__ void store4(float* p, float a, float b, float c, float d) {
#ifdef __CUDACC__
    const unsigned place = (unsigned)__cvta_generic_to_shared(p);
    asm volatile("st.shared.v4.f32 [%0], {%1, %2, %3, %4};" ::"r"(place), "f"(a), "f"(b), "f"(c), "f"(d) : "memory");
#else
    *(float4*)p = make_float4(a, b, c, d);
#endif
}

__device__ __forceinline__ void store2(float* p, float a, float b) {
#ifdef __CUDACC__
    const unsigned place = (unsigned)__cvta_generic_to_shared(p);
    asm volatile("st.shared.v2.f32 [%0], {%1, %2};" ::"r"(place), "f"(a), "f"(b) : "memory");
#else
    *(float2*)p = make_float2(a, b);
#endif
}

// sum[r][c] += 6x6 weights times the samples from row r, column c + SHIFT on. Row k is at rows + k * pitch, and `skew`
// samples farther for every four rows.
template <int SHIFT>
__device__ __forceinline__ void correlate(
    const float* rows, int pitch, int skew, const float* weights, float (&sum)[BLOCK][BLOCK]) {
    float w[TAPS * TAPS];
    load<TAPS * TAPS>(weights, w);
#pragma unroll
    for (int k = 0; k < BLOCK + TAPS - 1; k++) {
        float v[12];
        load<12>(rows + k * pitch + k / 4 * skew, v);
#pragma unroll
        for (int r = 0; r < BLOCK; r++) {
            if (k < r || k >= r + TAPS) continue;
#pragma unroll
            for (int j = 0; j < TAPS; j++)
#pragma unroll
                for (int c = 0; c < BLOCK; c++) sum[r][c] += w[(k - r) * TAPS + j] * v[c + j + SHIFT];
        }
    }
}

// What a block works on. Names in _y and _x; `up_*` are upsampled samples: the tile's first, and how many.
struct Tile {
    int64_t map;
    int out_y, out_x, height, width;  // outputs: first; sides, rounded up
    int up_y, up_x, up_h;
    int in_y, in_x, ky00, kx00;
    int own_y_end, own_x_end;         // of the samples whose codes the tile writes, from its first on
};

template <typename S, int UP, int DOWN> __device__ __forceinline__ Tile tile_of(const TilePlan& p) {
    Tile t;
    const int index = blockIdx.x % p.tiles;
    t.map = p.first_map + blockIdx.x / p.tiles;
    t.out_y = index / p.tiles_x * p.tile_h;
    t.out_x = index % p.tiles_x * p.tile_w;
    const int left_y = p.n_out_y - t.out_y, left_x = p.n_out_x - t.out_x;
    t.height = smaller(p.tile_h, (left_y + S::RUN - 1) / S::RUN * S::RUN);
    t.width = smaller(p.tile_w, (left_x + BLOCK - 1) / BLOCK * BLOCK);
    t.up_h = S::upsampled(t.height);
    const int64_t up_y = (int64_t)t.out_y * DOWN - p.down_pad_y, up_x = (int64_t)t.out_x * DOWN - p.down_pad_x;
    t.up_y = clamp_origin(up_y, p.n_up_y);
    t.up_x = clamp_origin(up_x, p.n_up_x);
    t.own_y_end = left_y <= p.tile_h ? p.n_up_y : (t.out_y + p.tile_h) * DOWN;
    t.own_x_end = left_x <= p.tile_w ? p.n_up_x : (t.out_x + p.tile_w) * DOWN;
    const int64_t in_y = ceil_div_floor(up_y - p.up_pad_y, UP), in_x = ceil_div_floor(up_x - p.up_pad_x, UP);
    t.ky00 = (int)(in_y * UP + p.up_pad_y - up_y);
    t.kx00 = (int)(in_x * UP + p.up_pad_x - up_x);
    t.in_y = clamp_origin(in_y, p.n_in_y);
    t.in_x = clamp_origin(in_x, p.n_in_x);
    return t;
}

// Filters, as they are correlated and scaled, from global to shared memory.
template <int UP, bool UP_DENSE>
__device__ __forceinline__ void load_up_weights(const TilePlan& p, const Tile& t, float* w) {
    constexpr int ALL = TAPS * UP;
    if (UP_DENSE) {
        for (int i = threadIdx.x; i < DENSE_WEIGHTS; i += TILE_THREADS) {  // [py][px][6][6]
            const int py = i / 72, px = i / 36 % 2, ty = i / 6 % 6, tx = i % 6;
            const int ky = (py > t.ky00 ? UP : 0) + t.ky00 - py + ty * UP;
            const int kx = (px > t.kx00 ? UP : 0) + t.kx00 - px + tx * UP;
            w[i] = filter_tap(p.up_filter, p.up_flip, ky * ALL + kx, ALL * ALL) * p.up_gain;
        }
    } else {
        for (int i = threadIdx.x; i < 16 * UP; i += TILE_THREADS) {  // [x, y][UP][8]
            const int k = (i < 8 * UP ? t.kx00 : t.ky00) - i / 8 % UP + i % 8 * UP;
            w[i] = k >= 0 && k < ALL && i % 8 < 7 ? filter_tap(p.up_filter, p.up_flip, k, ALL) * p.up_gain : 0.f;
        }
    }
}

template <int DOWN, bool DOWN_DENSE> __device__ __forceinline__ void load_down_weights(const TilePlan& p, float* w) {
    constexpr int ALL = TAPS * DOWN, COUNT = DOWN_DENSE ? DENSE_WEIGHTS : ALL;
    for (int i = threadIdx.x; i < COUNT; i += TILE_THREADS) {
        const int k = DOWN_DENSE ? (i / 6 % 6 * 2 + i / 72) * ALL + i % 6 * 2 + i / 36 % 2 : i;  // [py][px][6][6]
        w[i] = filter_tap(p.down_filter, p.down_flip, k, DOWN_DENSE ? ALL * ALL : ALL) * p.down_gain;
    }
}

// Inputs with bias, zero outside of the image.
template <int PITCH>
__device__ __forceinline__ void load_inputs(const TilePlan& p, const Tile& t, int rows, int columns, float* in) {
    const float bias = p.bias ? p.bias[t.map % p.channels] : 0.f;
    const int64_t map = t.map * p.n_in_y * p.n_in_x;
    load_tile<float, WARPS>(p.x, p.type, map, t.in_y, t.in_x, p.n_in_y, p.n_in_x, bias, rows, columns, in, PITCH);
}

// Codes of N upsampled samples of row y from column x on, 2 bits each; those outside of the image: anything.
template <int N, bool ONLY_MULTIPLY>
__device__ __forceinline__ uint64_t read_codes(const TilePlan& p, const Tile& t, int y, int x) {
    if (!ONLY_MULTIPLY && p.slopes != MULTIPLY) return 0;
    const uint8_t* const row = p.codes + (t.map * p.n_up_y + y) * p.code_bytes;
    const int first = x >> 2, bytes = inside(y, 0, p.n_up_y) ? (p.n_up_x + 3) >> 2 : 0;
    uint64_t codes = 0;
#pragma unroll
    for (int i = 0; i <= N / 4; i++)
        if (inside(first, i, bytes)) codes |= (uint64_t)row[first + i] << (8 * i);
    return codes >> (2 * (x & 3));
}

// Activate N samples of row y of the upsampled image, from column x + offset on, STEP columns apart; `codes`: what
// read_codes() gave for them.
template <int N, int STEP, bool ONLY_MULTIPLY>
__device__ __forceinline__ void activate_row(
    const TilePlan& p, const Tile& t, int y, int x, int offset, uint64_t codes, float* v) {
    const bool row_exists = inside(y, 0, p.n_up_y);
    const int64_t row = (t.map * p.n_up_y + y) * p.code_bytes;
    if (ONLY_MULTIPLY || p.slopes == MULTIPLY) {
        codes >>= 2 * offset;
        if (N * STEP <= 8) {  // spares registers: they fit in 32 bits
            const unsigned low = (unsigned)codes;
#pragma unroll
            for (int i = 0; i < N; i++) v[i] *= slope_of(low >> (2 * STEP * i) & 3, p.slope);
        } else {
#pragma unroll
            for (int i = 0; i < N; i++) v[i] *= slope_of((unsigned)(codes >> (2 * STEP * i)) & 3, p.slope);
        }
    } else if (p.slopes == ACTIVATE) {
#pragma unroll
        for (int i = 0; i < N; i++) v[i] = activate(v[i], p.slope, p.clamp);
    } else {
        unsigned packed = 0;
#pragma unroll
        for (int i = 0; i < N; i++) {
            packed |= code_of(v[i], p.slope, p.clamp, 2 * i);
            v[i] = activate(v[i], p.slope, p.clamp);
        }
        if (row_exists && y < t.own_y_end)
#pragma unroll
            for (int i = 0; i < N / 4; i++)
                if (x + 4 * i < t.own_x_end) p.codes[row + (x >> 2) + i] = (uint8_t)(packed >> (8 * i));
    }
    if (row_exists && x >= 0 && x + N * STEP <= p.n_up_x) return;
#pragma unroll
    for (int i = 0; i < N; i++)
        if (!row_exists || !inside(x, offset + STEP * i, p.n_up_x)) v[i] = 0.f;
}

// Four neighbouring outputs to global memory.
__device__ __forceinline__ void write_outputs(const TilePlan& p, const Tile& t, int r, int c, const float* v) {
    const int y = t.out_y + r, x = t.out_x + c;
    if (y >= p.n_out_y) return;
    const int64_t place = (t.map * p.n_out_y + y) * p.n_out_x + x;
    if (p.aligned) {
        if (x < p.n_out_x) write_four(p.y, place, p.type, v);
    } else {
#pragma unroll
        for (int i = 0; i < BLOCK; i++)
            if (x + i < p.n_out_x) Samples<float>::write(p.y, place + i, p.type, v[i]);
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Stages

// in [.., PITCH] -> out [up_h, PITCH]: a thread makes 4 * UP samples of a column.
template <int UP, int PITCH>
__device__ __forceinline__ void upsample_columns(
    const float* weights, const float* in, float* out, int columns, int up_h) {
    float w[UP][8];
#pragma unroll
    for (int p = 0; p < UP; p++) load<8>(weights + 8 * p, w[p]);
    for (int first = threadIdx.x / LANES * BLOCK; first * UP < up_h; first += WARPS * BLOCK)
        for (int c = threadIdx.x % LANES; c < columns; c += LANES) {
            float v[BLOCK + TAPS];
#pragma unroll
            for (int i = 0; i < BLOCK + TAPS; i++) v[i] = in[(first + i) * PITCH + c];
#pragma unroll
            for (int q = 0; q < BLOCK; q++)
#pragma unroll
                for (int p = 0; p < UP; p++) {
                    float sum = 0;
#pragma unroll
                    for (int i = 0; i < 7; i++) sum += w[p][i] * v[q + i];
                    const int row = (first + q) * UP + p;
                    if (row < up_h) out[row * PITCH + c] = sum;
                }
        }
}

// in [up_h, IN_PITCH] -> activated planes: a thread makes 4 * UP samples of a row.
template <typename S, int UP, int DOWN>
__device__ __forceinline__ void upsample_rows(
    const TilePlan& p, const Tile& t, const float* weights, const float* in, float* planes, int skew) {
    float w[UP][8];
#pragma unroll
    for (int i = 0; i < UP; i++) load<8>(weights + 8 * i, w[i]);
    const Divisor groups(S::groups(t.width));
    for (int item = threadIdx.x; item < t.up_h * (int)groups.d; item += TILE_THREADS) {
        const int r = groups(item), g = item - r * groups.d;
        const int y = t.up_y + r, x = t.up_x + g * S::COLUMNS;
        const uint64_t codes = read_codes<S::COLUMNS, false>(p, t, y, x);  // arrive while the sums are made
        float v[12], u[S::COLUMNS];
        load<12>(in + r * S::IN_PITCH + BLOCK * g, v);
#pragma unroll
        for (int m = 0; m < S::COLUMNS; m++) {
            u[m] = 0;
#pragma unroll
            for (int i = 0; i < 7; i++) u[m] += w[m % UP][i] * v[m / UP + i];
        }
        activate_row<S::COLUMNS, 1, false>(p, t, y, x, 0, codes, u);
        constexpr int PLACES = S::COLUMNS / DOWN;
        float* const out = planes + r * S::ROW + r / SKEW_ROWS * skew + g * PLACES;
#pragma unroll
        for (int d = 0; d < DOWN; d++)
#pragma unroll
            for (int i = 0; i < PLACES; i += 4) {
                float* const place = out + d * S::PLANE + i;
                const float* const first = u + i * DOWN + d;
                if constexpr (PLACES >= 4) store4(place, first[0], first[DOWN], first[2 * DOWN], first[3 * DOWN]);
                else store2(place, first[0], first[DOWN]);
            }
    }
}

// Dense upsampling by 2, activated: a thread makes the 4x4 samples of one phase from 9x9 inputs.
template <typename S, int DOWN>
__device__ __forceinline__ void upsample_dense(
    const TilePlan& p, const Tile& t, const float* weights, const float* in, float* planes) {
    const int groups_y = S::groups(t.height), groups_x = S::groups(t.width), all = groups_y * groups_x;
    const Divisor by_all(all), by_x(groups_x);
    for (int item = threadIdx.x; item < 4 * all; item += TILE_THREADS) {
        const int phase = item >= 2 * all ? 2 + (item >= 3 * all) : item >= all, rest = item - phase * all;
        const int gy = by_x(rest), gx = rest - gy * groups_x, py = phase >> 1, px = phase & 1;
        const float* const rows = in + (BLOCK * gy + (py > t.ky00)) * S::IN_PITCH + BLOCK * gx;
        unsigned codes[BLOCK];  // arrive while the sums are made; of 8 columns and the 3 that these may begin late
#pragma unroll
        for (int r = 0; r < BLOCK; r++)
            codes[r] = (unsigned)read_codes<2 * BLOCK, true>(
                p, t, t.up_y + 2 * (BLOCK * gy + r) + py, t.up_x + gx * S::COLUMNS);
        float sum[BLOCK][BLOCK] = {};
        if (px > t.kx00) correlate<1>(rows, S::IN_PITCH, 0, weights + 36 * phase, sum);
        else correlate<0>(rows, S::IN_PITCH, 0, weights + 36 * phase, sum);
#pragma unroll
        for (int r = 0; r < BLOCK; r++) {
            const int row = 2 * (BLOCK * gy + r) + py;
            if (row >= t.up_h) continue;
            float* const u = sum[r];
            activate_row<BLOCK, 2, true>(p, t, t.up_y + row, t.up_x + gx * S::COLUMNS, px, codes[r], u);
            float* const out = planes + row * S::ROW + px * S::PLANE;  // column 8 * gx + 2 * c + px
            if (DOWN == 2) {
                store4(out + 4 * gx, u[0], u[1], u[2], u[3]);
            } else {
                store2(out + 2 * gx, u[0], u[2]);
                store2(out + 2 * S::PLANE + 2 * gx, u[1], u[3]);
            }
        }
    }
}

// Dense downsampling by 2, to global memory: a thread makes 4x4 outputs.
template <typename S>
__device__ __forceinline__ void downsample_dense(
    const TilePlan& p, const Tile& t, const float* weights, const float* planes, int skew) {
    const Divisor groups_x(t.width / BLOCK);
    for (int item = threadIdx.x; item < t.height / BLOCK * (int)groups_x.d; item += TILE_THREADS) {
        const int gy = groups_x(item), gx = item - gy * groups_x.d;
        const float* const first = planes + gy * (SKEW_ROWS * S::ROW + skew) + BLOCK * gx;
        float sum[BLOCK][BLOCK] = {};
#pragma unroll 1
        for (int phase = 0; phase < 4; phase++)
            correlate<0>(first + (phase >> 1) * S::ROW + (phase & 1) * S::PLANE, 2 * S::ROW, skew,
                         weights + 36 * phase, sum);
#pragma unroll
        for (int r = 0; r < BLOCK; r++) write_outputs(p, t, BLOCK * gy + r, BLOCK * gx, sum[r]);
    }
}

// planes [.., ROW] -> out [height, OUT_PITCH], in the same planes: a thread makes RUN x 4 samples.
template <typename S, int DOWN>
__device__ __forceinline__ void downsample_columns(
    const Tile& t, const float* weights, const float* planes, float* out) {
    float w[TAPS * DOWN];
    load<TAPS * DOWN>(weights, w);
    const int vectors = t.width / 4 + 2;  // of a plane: as far as rows will be read
    const Divisor by_row(DOWN * vectors), by_plane(vectors);
    for (int item = threadIdx.x; item < t.height / S::RUN * (int)by_row.d; item += TILE_THREADS) {
        const int run = by_row(item), rest = item - run * by_row.d, plane = by_plane(rest);
        const int place = plane * S::PLANE + 4 * (rest - plane * vectors);
        const float* const in = planes + run * S::RUN * DOWN * S::ROW + place;
        float sum[S::RUN][4] = {};
#pragma unroll
        for (int k = 0; k < (S::RUN - 1 + TAPS) * DOWN; k++) {
            float v[4];
            load<4>(in + k * S::ROW, v);
#pragma unroll
            for (int r = 0; r < S::RUN; r++) {
                if (k < r * DOWN || k >= (r + TAPS) * DOWN) continue;
#pragma unroll
                for (int c = 0; c < 4; c++) sum[r][c] += w[k - r * DOWN] * v[c];
            }
        }
#pragma unroll
        for (int r = 0; r < S::RUN; r++)
            store4(out + (run * S::RUN + r) * S::OUT_PITCH + place, sum[r][0], sum[r][1], sum[r][2], sum[r][3]);
    }
}

// in [height, OUT_PITCH] -> global memory: a thread makes four outputs of a row.
template <typename S, int DOWN>
__device__ __forceinline__ void downsample_rows(
    const TilePlan& p, const Tile& t, const float* weights, const float* in) {
    float w[TAPS * DOWN];
    load<TAPS * DOWN>(weights, w);
    const Divisor groups(t.width / BLOCK);
    for (int item = threadIdx.x; item < t.height * (int)groups.d; item += TILE_THREADS) {
        const int r = groups(item), g = item - r * groups.d;
        float sum[BLOCK] = {};
#pragma unroll
        for (int d = 0; d < DOWN; d++) {
            float v[12];
            load<12>(in + r * S::OUT_PITCH + d * S::PLANE + BLOCK * g, v);
#pragma unroll
            for (int j = 0; j < TAPS; j++)
#pragma unroll
                for (int c = 0; c < BLOCK; c++) sum[c] += w[j * DOWN + d] * v[c + j];
        }
        write_outputs(p, t, r, BLOCK * g, sum);
    }
}

template <int UP, bool UP_DENSE, int DOWN, bool DOWN_DENSE>
__global__ void __launch_bounds__(TILE_THREADS, 4) tile_kernel(const TilePlan p) {
    using S = Sizes<UP, UP_DENSE, DOWN, DOWN_DENSE>;
    const Tile t = tile_of<S, UP, DOWN>(p);
    float* const up_weights = shared_memory<float>();
    float* const down_weights = up_weights + S::UP_WEIGHTS;
    float* const a = down_weights + S::DOWN_WEIGHTS;
    float* const b = a + p.a_size;
    const int skew = DOWN_DENSE ? t.width % 32 : 0;  // so that a warp's reads go on in the next banks from row to row
    const int in_h = S::in_rows(t.height), in_w = S::in_columns(t.width);

    load_up_weights<UP, UP_DENSE>(p, t, up_weights);
    load_down_weights<DOWN, DOWN_DENSE>(p, down_weights);
    load_inputs<S::IN_PITCH>(p, t, in_h, in_w, UP_DENSE ? b : a);
    __syncthreads();
    if constexpr (UP_DENSE) {
        upsample_dense<S, DOWN>(p, t, up_weights, b, a);
    } else {
        upsample_columns<UP, S::IN_PITCH>(up_weights + 8 * UP, a, b, in_w, t.up_h);
        __syncthreads();
        upsample_rows<S, UP, DOWN>(p, t, up_weights, b, a, skew);
    }
    __syncthreads();
    if constexpr (DOWN_DENSE) {
        downsample_dense<S>(p, t, down_weights, a, skew);
    } else {
        downsample_columns<S, DOWN>(t, down_weights, a, b);
        __syncthreads();
        downsample_rows<S, DOWN>(p, t, down_weights, b);
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Host

inline int rounds(int items, int of) { return (items + of - 1) / of; }

// Estimated cycles of a multiprocessor for one tile, from the instructions of its warps.
template <int UP, bool UP_DENSE, int DOWN, bool DOWN_DENSE>
double tile_cost(int h, int w, int shared_bytes, int shared_per_sm) {
    using S = Sizes<UP, UP_DENSE, DOWN, DOWN_DENSE>;
    const int gy = S::groups(h), gx = S::groups(w), up_h = S::upsampled(h);
    double instructions = 1500 + 12. * rounds(S::in_columns(w), LANES) * S::in_rows(h);  // of all of the block's warps
    if (UP_DENSE)
        instructions += rounds(4 * gy * gx, TILE_THREADS) * WARPS * 850.;
    else
        instructions += rounds(S::in_columns(w), LANES) * gy * (20 + 9. * S::COLUMNS) +
                        rounds(up_h * gx, TILE_THREADS) * WARPS * (40 + 18. * S::COLUMNS);
    if (DOWN_DENSE)
        instructions += rounds(h * w / 16, LANES) * 2600.;
    else
        instructions += rounds(h / S::RUN * DOWN * (w / 4 + 2), LANES) * S::RUN * 5. * TAPS * DOWN +
                        rounds(h * w / 4, LANES) * (40 + 5. * TAPS * DOWN);
    const double blocks = smaller(shared_per_sm / (shared_bytes + 1024), 5);
    return instructions * (1 + 0.5 / blocks);  // few blocks hide little of each other's waiting
}

// The cheapest tile, then the launch.
template <int UP, bool UP_DENSE, int DOWN, bool DOWN_DENSE>
int launch_tiles(const FilteredLReLU& op, TilePlan plan, void* stream) {
    using S = Sizes<UP, UP_DENSE, DOWN, DOWN_DENSE>;
    int limit = 0, per_sm = 0;
    const int error = shared_limits(&limit, &per_sm);
    if (error) return error;
    double best = INFINITY;
    for (int h = S::RUN; h <= 64; h += S::RUN) {
        const int bytes = S::shared_bytes(h);
        if (bytes > limit || bytes + 1024 > per_sm) break;
        const int fewest = rounds(plan.n_out_x, S::TILE_W);
        for (int across = fewest; across < fewest + 3; across++) {
            const int w = rounds(rounds(plan.n_out_x, across), BLOCK) * BLOCK;
            const double tiles = (double)rounds(plan.n_out_y, h) * rounds(plan.n_out_x, w);
            const double cost = tiles * tile_cost<UP, UP_DENSE, DOWN, DOWN_DENSE>(h, w, bytes, per_sm);
            if (cost < best) best = cost, plan.tile_h = h, plan.tile_w = w;
        }
    }
    plan.tiles_x = rounds(plan.n_out_x, plan.tile_w);
    plan.tiles = plan.tiles_x * rounds(plan.n_out_y, plan.tile_h);
    plan.a_size = S::a_size(plan.tile_h);  // a multiple of four, as B must be aligned
    return launch_maps(&tile_kernel<UP, UP_DENSE, DOWN, DOWN_DENSE>, plan, op.maps, plan.tiles, TILE_THREADS,
                       S::shared_bytes(plan.tile_h), stream);
}

int launch_tiles_2s_2d(const FilteredLReLU& op, const TilePlan& plan, void* stream);
int launch_tiles_2s_2s(const FilteredLReLU& op, const TilePlan& plan, void* stream);
int launch_tiles_4s_2d(const FilteredLReLU& op, const TilePlan& plan, void* stream);
int launch_tiles_4s_2s(const FilteredLReLU& op, const TilePlan& plan, void* stream);
int launch_tiles_2d_2s(const FilteredLReLU& op, const TilePlan& plan, void* stream);
int launch_tiles_2d_4s(const FilteredLReLU& op, const TilePlan& plan, void* stream);
int launch_tiles_2s_4s(const FilteredLReLU& op, const TilePlan& plan, void* stream);

}  // namespace multiscale
