// Resampling of a tile in shared memory for all factors, filters and types: stages of the kernels that do every case.
//
// Along an axis, output o of a tile stands at i = o * down of the upsampled grid, counted from the tile's first sample;
// it meets local inputs j with taps k = j * up + k00 - i, k00 being the tap of the tile's first input at i = 0. The
// first j with k >= 0 is ceil((i - k00) / up), never negative since 0 <= k00 < up.

#pragma once

#include "device.cuh"

constexpr int GENERIC_THREADS = 256;
constexpr int GENERIC_TILE = 32;           // outputs a side, at most
constexpr int GENERIC_BYTES = 40 * 1024;   // of shared memory for a tile, where a tile of one output fits in it

// A filter as it is correlated: g[k] = first[k * step]; null: one tap of 1.
struct Taps {
    const void* first;
    int step, count;
    double gain;  // of one pass
};

// One axis of a stage. HOT_* are the factors and the taps if they are known when compiling, else 0.
template <int HOT_UP, int HOT_DOWN, int HOT_TAPS> struct Line {
    int up_log2, down, taps;

    BOTH int up() const { return HOT_UP ? HOT_UP : 1 << up_log2; }
    BOTH int stride() const { return HOT_DOWN ? HOT_DOWN : down; }
    BOTH int count() const { return HOT_TAPS ? HOT_TAPS : taps; }
    BOTH int first_input(int i, int k00) const { return HOT_UP == 1 ? i - k00 : (i - k00 + up() - 1) >> up_log2; }
    BOTH int inputs(int outputs) const {  // the most that so many outputs meet
        return (((outputs - 1) * stride() + up() - 1) >> up_log2) + ceil_div(count(), up());
    }
};

inline int log2_of(int factor) { return factor == 4 ? 2 : factor - 1; }  // of 1, 2 or 4

// Where a tile's inputs begin, and the tap of the first of them at the tile's first output.
struct Start {
    int origin, k00;
};

BOTH Start start_of(int64_t position, int pad0, int up, int n_in) {  // position on the upsampled grid
    const int64_t j = ceil_div_floor(position - pad0, up);
    return {clamp_origin(j, n_in), (int)(j * up + pad0 - position)};
}

// All of a block's threads over rows x columns of a tile: warps take rows, lanes columns.
template <typename F> __device__ __forceinline__ void for_each(int rows, int columns, F f) {
    const int lane = threadIdx.x % LANES;
    for (int r = threadIdx.x / LANES; r < rows; r += GENERIC_THREADS / LANES)
        for (int c = lane; c < columns; c += LANES) f(r, c);
}

template <typename A> __device__ __forceinline__ A tap(const Taps& f, int k) {
    return f.first ? ((const A*)f.first)[k * f.step] : A(1);
}

// The taps of one pass, times its gain, as a function of k: read from memory each time, or, of a hot filter, kept.
template <typename A, int HOT_TAPS> struct Pass {
    A g[HOT_TAPS];
    __device__ __forceinline__ explicit Pass(const Taps& f) {
#pragma unroll
        for (int k = 0; k < HOT_TAPS; k++) g[k] = tap<A>(f, k) * A(f.gain);
    }
    __device__ __forceinline__ A operator()(int k) const { return g[k]; }
    __device__ __forceinline__ A finish(A sum) const { return sum; }
};

template <typename A> struct Pass<A, 0> {
    const Taps& f;
    __device__ __forceinline__ explicit Pass(const Taps& f) : f(f) {}
    __device__ __forceinline__ A operator()(int k) const { return tap<A>(f, k); }
    __device__ __forceinline__ A finish(A sum) const { return sum * A(f.gain); }
};

// One output: the sum over k, from local input j on, `stride` apart in memory.
template <typename A, int UP, int DOWN, int TAPS>
__device__ __forceinline__ A sum_of(
    const Line<UP, DOWN, TAPS>& line, const Pass<A, TAPS>& g, int k00, int i, const A* inputs, int stride) {
    const int j = line.first_input(i, k00);
    const A* sample = inputs + j * stride;
    A sum = 0;
    if (UP == 1 && TAPS) {
#pragma unroll
        for (int k = 0; k < TAPS; k++) sum += g(k) * sample[k * stride];
    } else {
        for (int k = (j << line.up_log2) + k00 - i; k < line.count(); k += line.up(), sample += stride)
            sum += g(k) * *sample;
    }
    return g.finish(sum);
}

// The vertical pass: [.., columns] of `pitch` -> [rows, columns] of the same pitch.
template <typename A, int UP, int DOWN, int TAPS>
__device__ __forceinline__ void filter_columns(
    const Line<UP, DOWN, TAPS>& line, const Pass<A, TAPS>& g, int k00, const A* in, A* out, int pitch, int rows,
    int columns) {
    for_each(rows, columns, [&](int r, int c) {
        out[r * pitch + c] = sum_of<A>(line, g, k00, r * line.stride(), in + c, pitch);
    });
}

// One output of a filter that is not separable; gain included.
template <typename A, typename L>
__device__ __forceinline__ A dense_sum(
    const L& ly, const L& lx, const Taps& f, int ky00, int kx00, int iy, int ix, const A* in, int pitch) {
    const int jy = ly.first_input(iy, ky00), jx = lx.first_input(ix, kx00);
    const int ky0 = (jy << ly.up_log2) + ky00 - iy, kx0 = (jx << lx.up_log2) + kx00 - ix;
    const A* row = in + jy * pitch + jx;
    A sum = 0;
    for (int ky = ky0; ky < ly.count(); ky += ly.up(), row += pitch) {
        const A* sample = row;
        for (int kx = kx0; kx < lx.count(); kx += lx.up()) sum += tap<A>(f, ky * lx.count() + kx) * *sample++;
    }
    return sum * A(f.gain);
}

// The taps of one pass of a separable filter, or all of a dense one's, in the order in which they are correlated.
template <typename A> Taps taps_of(const Resampling& r) {
    const int all = r.separable ? r.taps_y : r.taps_y * r.taps_x;
    const A* f = (const A*)r.filter;
    const double gain = r.filter && r.separable ? sqrt(r.gain) : r.gain;
    if (!f) return {nullptr, 1, 1, gain};
    return {r.flip ? f : f + (all - 1), r.flip ? 1 : -1, all, gain};
}

inline bool is_separable(const Resampling& r) { return r.filter && r.separable; }
inline int taps_y(const Resampling& r) { return r.filter ? r.taps_y : 1; }
inline int taps_x(const Resampling& r) { return r.filter ? r.taps_x : 1; }
