// The entry point, and which filtered leaky ReLUs have tiles of their own: the generator's layers and their gradients.

#include "filtered_lrelu_mma.cuh"
#include "filtered_lrelu_tiles.cuh"

namespace multiscale {

namespace {

enum Kind { NEITHER, SEPARABLE, DENSE };  // filters with six taps for each phase, equal factors along both axes

Kind kind_of(const Resampling& r, int factor_y, int factor_x) {
    if (!r.filter || factor_y != factor_x || factor_x == 1) return NEITHER;
    if (r.taps_y != TAPS * factor_x || r.taps_x != TAPS * factor_x) return NEITHER;
    return r.separable ? SEPARABLE : factor_x == 2 ? DENSE : NEITHER;
}

// Whether the tiles reach all upsampled samples, begin where bytes of codes do, and indices stay far from overflow.
bool is_plain(const FilteredLReLU& op) {
    for (int n : {op.up.y.n_out, op.up.x.n_out, op.down.y.n_out, op.down.x.n_out})
        if (n > 1 << 28) return false;
    if (op.slopes == MULTIPLY) return true;
    if (op.down.y.pad0 != 0 || op.down.x.pad0 != 0) return false;
    const int d = op.down.x.down;
    return op.up.y.n_out < (op.down.y.n_out + TAPS) * d && op.up.x.n_out < (op.down.x.n_out + TAPS) * d;
}

// Whether all samples that outputs depend on exist; a forward kernel does not look whether they do.
bool reaches_all(const Axis& down) { return (down.n_out - 1) * down.down + TAPS * down.down <= down.n_in; }

TilePlan plan_of(const FilteredLReLU& op) {
    TilePlan p{};
    p.x = op.x, p.y = op.y, p.bias = (const float*)op.bias, p.codes = op.codes;
    p.up_filter = (const float*)op.up.filter, p.down_filter = (const float*)op.down.filter;
    p.channels = op.channels, p.code_bytes = op.code_bytes, p.type = op.type, p.slopes = op.slopes;
    p.up_flip = op.up.flip, p.down_flip = op.down.flip;
    p.slope = (float)op.slope, p.clamp = (float)op.clamp;
    p.up_gain = (float)(op.up.separable ? sqrt(op.up.gain) : op.up.gain);
    p.down_gain = (float)(op.down.separable ? sqrt(op.down.gain) : op.down.gain);
    p.n_in_y = op.up.y.n_in, p.n_in_x = op.up.x.n_in, p.n_up_y = op.up.y.n_out, p.n_up_x = op.up.x.n_out;
    p.n_out_y = op.down.y.n_out, p.n_out_x = op.down.x.n_out;
    p.up_pad_y = op.up.y.pad0, p.up_pad_x = op.up.x.pad0;
    p.down_pad_y = op.down.y.pad0, p.down_pad_x = op.down.x.pad0;
    p.aligned = p.n_out_x % 4 == 0 && is_aligned(op.y, op.type);
    return p;
}

}  // namespace

int filtered_lrelu_tiles(const FilteredLReLU& op, void* stream, bool* done) {
    *done = false;
    if (op.type == FLOAT64 || !is_plain(op)) return 0;
    const int up = op.up.x.up, down = op.down.x.down;
    const Kind up_kind = kind_of(op.up, op.up.y.up, up), down_kind = kind_of(op.down, op.down.y.down, down);
    const bool separable = up_kind == SEPARABLE && down_kind == SEPARABLE, multiply = op.slopes == MULTIPLY;
    int (*launch)(const FilteredLReLU&, const TilePlan&, void*) = nullptr;
    if (up_kind == SEPARABLE && down_kind == DENSE) launch = up == 2 ? launch_tiles_2s_2d : launch_tiles_4s_2d;
    if (separable && down == 2) launch = up == 2 ? launch_tiles_2s_2s : launch_tiles_4s_2s;
    if (separable && down == 4 && up == 2 && multiply) launch = launch_tiles_2s_4s;
    if (up_kind == DENSE && down_kind == SEPARABLE && multiply)
        launch = down == 2 ? launch_tiles_2d_2s : launch_tiles_2d_4s;
    if (!launch) return 0;
    *done = true;
    return launch(op, plan_of(op), stream);
}

int filtered_lrelu_mma(const FilteredLReLU& op, void* stream, bool* done) {
    *done = false;
    if (op.type != FLOAT16 && op.type != BFLOAT16) return 0;
    if (!op.up_registers || !op.down_registers || op.slope < 0 || op.slope > 1 || !is_plain(op)) return 0;
    if (kind_of(op.up, op.up.y.up, op.up.x.up) == NEITHER || kind_of(op.down, op.down.y.down, op.down.x.down) == NEITHER)
        return 0;
    if (op.slopes != ACTIVATE && (op.code_bytes % 4 || (uintptr_t)op.codes % 4)) return 0;
    if (op.slopes == MULTIPLY)
        return op.up.x.up == 2 && op.down_terms == 1 ? launch_mma_multiply(op, stream, done) : 0;
    if (op.down.x.down != 2 || op.up_terms != 1 || !reaches_all(op.down.y) || !reaches_all(op.down.x)) return 0;
    return op.slopes == REMEMBER ? launch_mma_remember(op, stream, done) : launch_mma_activate(op, stream, done);
}

}  // namespace multiscale

EXPORT int filtered_lrelu_cuda(const struct FilteredLReLU* op, void* stream) {
    if (op->maps <= 0) return 0;
    if (multiscale::is_pointwise(*op)) return multiscale::filtered_lrelu_pointwise(*op, stream);
    bool done = false;
    int error = multiscale::filtered_lrelu_mma(*op, stream, &done);
    if (!done) error = multiscale::filtered_lrelu_tiles(*op, stream, &done);
    return done ? error : multiscale::filtered_lrelu_generic(*op, stream);
}
