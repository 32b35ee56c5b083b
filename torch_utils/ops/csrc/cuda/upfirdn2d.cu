// Upsample, filter, downsample: a block makes one tile of one map's outputs from the inputs that it meets.
//
//     global x -> shared [in_h, in_w] -> (separable: columns -> shared [th, in_w]) -> rows or dense sum -> global y

#include <math.h>

#include "generic.cuh"

namespace {

struct Upfirdn2dPlan {
    const void* x;
    void* y;
    int type, separable;
    int n_in_y, n_in_x, n_out_y, n_out_x, pad_y, pad_x;
    int up_log2_y, up_log2_x, down_y, down_x, taps_y, taps_x;
    Taps taps;
    int tile_h, tile_w, tiles_x, tiles;  // outputs of a tile; tiles of a map
    int in_h, in_w;                      // inputs of a tile
    int64_t first_map;
};

template <typename A, int UP, int DOWN, int TAPS>
__global__ void __launch_bounds__(GENERIC_THREADS, 4) upfirdn2d_kernel(const Upfirdn2dPlan p) {
    using L = Line<UP, DOWN, TAPS>;
    const L ly{p.up_log2_y, p.down_y, p.taps_y}, lx{p.up_log2_x, p.down_x, p.taps_x};
    const int64_t map = p.first_map + blockIdx.x / p.tiles;
    const int tile = blockIdx.x % p.tiles;
    const int oy = tile / p.tiles_x * p.tile_h, ox = tile % p.tiles_x * p.tile_w;
    const int th = smaller(p.tile_h, p.n_out_y - oy), tw = smaller(p.tile_w, p.n_out_x - ox);
    const Start sy = start_of((int64_t)oy * ly.stride(), p.pad_y, ly.up(), p.n_in_y);
    const Start sx = start_of((int64_t)ox * lx.stride(), p.pad_x, lx.up(), p.n_in_x);
    const int in_h = ly.inputs(th), in_w = lx.inputs(tw);

    A* const in = shared_memory<A>();
    A* const columns = in + p.in_h * p.in_w;
    const int64_t in_map = map * p.n_in_y * p.n_in_x, out_map = map * p.n_out_y * p.n_out_x;
    load_tile<A, GENERIC_THREADS / LANES>(
        p.x, p.type, in_map, sy.origin, sx.origin, p.n_in_y, p.n_in_x, A(0), in_h, in_w, in, p.in_w);
    __syncthreads();
    if (TAPS || p.separable) {
        const Pass<A, TAPS> g(p.taps);
        filter_columns<A>(ly, g, sy.k00, in, columns, p.in_w, th, in_w);
        __syncthreads();
        for_each(th, tw, [&](int r, int c) {
            const A v = sum_of<A>(lx, g, sx.k00, c * lx.stride(), columns + r * p.in_w, 1);
            Samples<A>::write(p.y, out_map + (int64_t)(oy + r) * p.n_out_x + (ox + c), p.type, v);
        });
    } else {
        for_each(th, tw, [&](int r, int c) {
            const int iy = r * ly.stride(), ix = c * lx.stride();
            const A v = dense_sum<A>(ly, lx, p.taps, sy.k00, sx.k00, iy, ix, in, p.in_w);
            Samples<A>::write(p.y, out_map + (int64_t)(oy + r) * p.n_out_x + (ox + c), p.type, v);
        });
    }
}

template <typename A, int UP, int DOWN, int TAPS>
int run(const Upfirdn2d& op, void* stream) {
    using L = Line<UP, DOWN, TAPS>;
    const Resampling& r = op.resampling;
    const L ly{log2_of(r.y.up), r.y.down, taps_y(r)}, lx{log2_of(r.x.up), r.x.down, taps_x(r)};
    int th = smaller(GENERIC_TILE, r.y.n_out), tw = smaller(2 * GENERIC_TILE, r.x.n_out), bytes;
    while (true) {
        bytes = (ly.inputs(th) + (is_separable(r) ? th : 0)) * lx.inputs(tw) * (int)sizeof(A);
        if (bytes <= GENERIC_BYTES || (th == 1 && tw == 1)) break;
        (th > tw || tw == 1 ? th : tw) = ceil_div(larger(th, tw), 2);
    }
    const int64_t tiles_x = ceil_div_floor(r.x.n_out, tw), tiles = tiles_x * ceil_div_floor(r.y.n_out, th);
    const Upfirdn2dPlan plan{op.x, op.y, op.type, is_separable(r), r.y.n_in, r.x.n_in, r.y.n_out, r.x.n_out,
                             r.y.pad0, r.x.pad0, ly.up_log2, lx.up_log2, ly.down, lx.down, ly.taps, lx.taps,
                             taps_of<A>(r), th, tw, (int)tiles_x, (int)tiles, ly.inputs(th), lx.inputs(tw), 0};
    return launch_maps(&upfirdn2d_kernel<A, UP, DOWN, TAPS>, plan, op.maps, tiles, GENERIC_THREADS, bytes, stream);
}

}  // namespace

EXPORT int upfirdn2d_cuda(const struct Upfirdn2d* op, void* stream) {
    const Resampling& r = op->resampling;
    if (op->maps <= 0) return 0;
    if (op->type == FLOAT64) return run<double, 0, 0, 0>(*op, stream);
    const bool four_taps = is_separable(r) && r.taps_y == 4 && r.y.up == 1 && r.x.up == 1 && r.y.down == r.x.down;
    if (four_taps && r.x.down == 1) return run<float, 1, 1, 4>(*op, stream);
    if (four_taps && r.x.down == 2) return run<float, 1, 2, 4>(*op, stream);
    return run<float, 0, 0, 0>(*op, stream);
}

EXPORT const char* cuda_error(int code) { return cudaGetErrorString((cudaError_t)code); }

EXPORT int cuda_probe(void) {
    cudaFuncAttributes attributes;
    const cudaError_t error = cudaFuncGetAttributes(&attributes, (const void*)&upfirdn2d_kernel<float, 0, 0, 0>);
    (void)cudaGetLastError();
    return (int)error;
}
