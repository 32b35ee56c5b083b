// A filtered leaky ReLU for all factors, filters and types: a block makes one tile of one map's outputs.
//
//     global x + bias -> P [in_h, in_w] -> Q (columns) -> P (rows) = upsampled tile [u_h, u_w], activated
//                     -> Q (columns) -> rows -> global y
//
// P and Q are the two halves of shared memory; a dense filter does both of its passes at once.

#include <math.h>

#include "filtered_lrelu.cuh"
#include "generic.cuh"

namespace {

using Factors = Line<0, 0, 0>;

struct Stage {
    Factors y, x;
    Taps taps;
    int separable, pad_y, pad_x;
};

struct GenericPlan {
    const void* x;
    void* y;
    const void* bias;
    uint8_t* codes;
    int64_t channels, code_bytes;
    int type, slopes;
    double slope, clamp;
    Stage up, down;
    int n_in_y, n_in_x, n_up_y, n_up_x, n_out_y, n_out_x;  // sides of inputs, upsampled samples, outputs
    int tile_h, tile_w, tiles_x, tiles;                    // outputs of a tile; tiles of a map
    int in_pitch, up_pitch, p_size;                        // samples
    int64_t first_map;
};

// The upsampled samples of a tile along an axis, and those whose codes it writes: [own, own_end), all of the image's
// samples being shared out among the tiles. Horizontally tiles begin at multiples of four, where bytes of codes do.
struct Span {
    int64_t position;  // of the first sample
    int shift, count;  // samples before the first that an output meets; samples in all
    int64_t own, own_end;
};

__device__ __forceinline__ int64_t span_start(int first_output, const Factors& line, int pad0, int multiple) {
    const int64_t position = (int64_t)first_output * line.down - pad0;
    return position & ~(int64_t)(multiple - 1);
}

__device__ __forceinline__ Span span_of(
    int first_output, int outputs, int tile, int n_out, int n_up, const Factors& line, int pad0, int multiple) {
    Span s;
    s.position = span_start(first_output, line, pad0, multiple);
    s.shift = (int)((int64_t)first_output * line.down - pad0 - s.position);
    s.count = ceil_div(s.shift + line.inputs(outputs), multiple) * multiple;
    const bool last = outputs >= n_out - first_output;
    const int64_t next = last ? n_up : span_start(first_output + tile, line, pad0, multiple);
    s.own = first_output == 0 ? 0 : larger<int64_t>(0, smaller<int64_t>(s.position, n_up));
    s.own_end = larger<int64_t>(0, smaller<int64_t>(next, n_up));
    return s;
}

constexpr int GROUP = 4;  // samples of a byte of codes

// Activation of the upsampled tile; writes codes, or multiplies by the slopes that they stand for.
template <typename A>
__device__ __forceinline__ void activate_tile(
    const GenericPlan& p, const Span& sy, const Span& sx, uint8_t* codes, A* u) {
    const int y0 = clamp_origin(sy.position, p.n_up_y), x0 = clamp_origin(sx.position, p.n_up_x);
    const A slope = A(p.slope), clamp = A(p.clamp);
    for_each(sy.count, sx.count / GROUP, [&](int r, int g) {
        A* const sample = u + r * p.up_pitch + g * GROUP;
        const bool exists = inside(y0, r, p.n_up_y) && inside(x0, g * GROUP, p.n_up_x);
        const int64_t row = y0 + r, column = x0 + g * GROUP;
        const int64_t byte = row * p.code_bytes + column / GROUP;
        const unsigned remembered = exists && p.slopes == MULTIPLY ? codes[byte] : 0;
        unsigned packed = 0;
        for (int k = 0; k < GROUP; k++) {
            const bool here = exists && inside(x0, g * GROUP + k, p.n_up_x);
            const A v = sample[k];
            const A multiplied = v * slope_of(remembered >> (2 * k) & 3, slope);
            sample[k] = !here ? A(0) : p.slopes == MULTIPLY ? multiplied : activate(v, slope, clamp);
            packed |= here ? code_of(v, slope, clamp, 2 * k) : 0;
        }
        const bool own = row >= sy.own && row < sy.own_end && column >= sx.own && column < sx.own_end;
        if (p.slopes == REMEMBER && exists && own) codes[byte] = (uint8_t)packed;
    });
}

// Zero codes of the tile's own samples that no output meets, where the tile does not reach them.
__device__ __forceinline__ void clear_codes(const GenericPlan& p, const Span& sy, const Span& sx, uint8_t* codes) {
    const int64_t y_end = sy.position + sy.count, x_end = sx.position + sx.count;
    if (sy.own >= sy.position && sy.own_end <= y_end && sx.own >= sx.position && sx.own_end <= x_end) return;
    const int64_t first = (sx.own + GROUP - 1) / GROUP, last = (sx.own_end + GROUP - 1) / GROUP;
    for (int64_t row = sy.own; row < sy.own_end; row++)
        for (int64_t byte = first + threadIdx.x; byte < last; byte += GENERIC_THREADS) {
            const bool done = row >= sy.position && row < y_end && byte * GROUP >= sx.position && byte * GROUP < x_end;
            if (!done) codes[row * p.code_bytes + byte] = 0;
        }
}

template <typename A> __global__ void __launch_bounds__(GENERIC_THREADS, 2) generic_kernel(const GenericPlan p) {
    const int64_t map = p.first_map + blockIdx.x / p.tiles;
    const int tile = blockIdx.x % p.tiles;
    const int oy = tile / p.tiles_x * p.tile_h, ox = tile % p.tiles_x * p.tile_w;
    const int th = smaller(p.tile_h, p.n_out_y - oy), tw = smaller(p.tile_w, p.n_out_x - ox);
    const Span sy = span_of(oy, th, p.tile_h, p.n_out_y, p.n_up_y, p.down.y, p.down.pad_y, 1);
    const Span sx = span_of(ox, tw, p.tile_w, p.n_out_x, p.n_up_x, p.down.x, p.down.pad_x, GROUP);
    const Start iy = start_of(sy.position, p.up.pad_y, p.up.y.up(), p.n_in_y);
    const Start ix = start_of(sx.position, p.up.pad_x, p.up.x.up(), p.n_in_x);
    const int in_h = p.up.y.inputs(sy.count), in_w = p.up.x.inputs(sx.count);
    uint8_t* const codes = p.codes ? p.codes + map * p.n_up_y * p.code_bytes : nullptr;

    A* const P = shared_memory<A>();
    A* const Q = P + p.p_size;
    const A bias = p.bias ? ((const A*)p.bias)[map % p.channels] : A(0);
    const int64_t in_map = map * p.n_in_y * p.n_in_x;
    load_tile<A, GENERIC_THREADS / LANES>(
        p.x, p.type, in_map, iy.origin, ix.origin, p.n_in_y, p.n_in_x, bias, in_h, in_w, P, p.in_pitch);
    __syncthreads();

    A *u = Q, *other = P;
    const Pass<A, 0> up(p.up.taps), down(p.down.taps);
    if (p.up.separable) {
        filter_columns<A>(p.up.y, up, iy.k00, P, Q, p.in_pitch, sy.count, in_w);
        __syncthreads();
        u = P, other = Q;
        for_each(sy.count, sx.count, [&](int r, int c) {
            u[r * p.up_pitch + c] = sum_of<A>(p.up.x, up, ix.k00, c, Q + r * p.in_pitch, 1);
        });
    } else {
        for_each(sy.count, sx.count, [&](int r, int c) {
            u[r * p.up_pitch + c] = dense_sum<A>(p.up.y, p.up.x, p.up.taps, iy.k00, ix.k00, r, c, P, p.in_pitch);
        });
    }
    __syncthreads();
    activate_tile<A>(p, sy, sx, codes, u);
    if (p.slopes == REMEMBER) clear_codes(p, sy, sx, codes);
    __syncthreads();

    const int64_t out_map = map * p.n_out_y * p.n_out_x;
    if (p.down.separable) {
        filter_columns<A>(p.down.y, down, 0, u, other, p.up_pitch, th, sx.count);
        __syncthreads();
    }
    for_each(th, tw, [&](int r, int c) {
        const int i = c * p.down.x.down;
        const Stage& d = p.down;
        const A v = d.separable ? sum_of<A>(d.x, down, 0, i, other + r * p.up_pitch + sx.shift, 1)
                                : dense_sum<A>(d.y, d.x, d.taps, 0, 0, r * d.y.down, i, u + sx.shift, p.up_pitch);
        Samples<A>::write(p.y, out_map + (int64_t)(oy + r) * p.n_out_x + (ox + c), p.type, v);
    });
}

template <typename A> Stage stage_of(const Resampling& r) {
    const Factors y{log2_of(r.y.up), r.y.down, taps_y(r)}, x{log2_of(r.x.up), r.x.down, taps_x(r)};
    return {y, x, taps_of<A>(r), is_separable(r), r.y.pad0, r.x.pad0};
}

// Sets a plan's memory for its tile; returns bytes of shared memory.
template <typename A> int lay_out(GenericPlan* p) {
    const int u_h = p->down.y.inputs(p->tile_h), u_w = ceil_div(GROUP - 1 + p->down.x.inputs(p->tile_w), GROUP) * GROUP;
    const int in_h = p->up.y.inputs(u_h);
    p->in_pitch = p->up.x.inputs(u_w);
    p->up_pitch = u_w;
    const int inputs = in_h * p->in_pitch, u = u_h * u_w;
    const int up_columns = p->up.separable ? u_h * p->in_pitch : 0;
    const int down_columns = p->down.separable ? p->tile_h * u_w : 0;
    p->p_size = p->up.separable ? larger(inputs, u) : larger(inputs, down_columns);
    const int q_size = p->up.separable ? larger(up_columns, down_columns) : u;
    return (p->p_size + q_size) * (int)sizeof(A);
}

template <typename A> int run(const FilteredLReLU& op, void* stream) {
    GenericPlan plan{op.x, op.y, op.bias, op.codes, op.channels, op.code_bytes, op.type, op.slopes, op.slope, op.clamp,
                     stage_of<A>(op.up), stage_of<A>(op.down), op.up.y.n_in, op.up.x.n_in, op.up.y.n_out, op.up.x.n_out,
                     op.down.y.n_out, op.down.x.n_out, 0, 0, 0, 0, 0, 0, 0, 0};
    plan.tile_h = smaller(GENERIC_TILE, plan.n_out_y);
    plan.tile_w = smaller(GENERIC_TILE, plan.n_out_x);
    int bytes;
    while ((bytes = lay_out<A>(&plan)) > GENERIC_BYTES && (plan.tile_h > 1 || plan.tile_w > 1)) {
        int& longer = plan.tile_h > plan.tile_w ? plan.tile_h : plan.tile_w;
        longer = ceil_div(longer, 2);
    }
    const int64_t tiles_x = ceil_div_floor(plan.n_out_x, plan.tile_w);
    const int64_t tiles = tiles_x * ceil_div_floor(plan.n_out_y, plan.tile_h);
    plan.tiles_x = (int)tiles_x;
    plan.tiles = (int)tiles;
    return launch_maps(&generic_kernel<A>, plan, op.maps, tiles, GENERIC_THREADS, bytes, stream);
}

}  // namespace

namespace multiscale {

int filtered_lrelu_generic(const FilteredLReLU& op, void* stream) {
    return op.type == FLOAT64 ? run<double>(op, stream) : run<float>(op, stream);
}

}  // namespace multiscale
