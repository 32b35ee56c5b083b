// The tiles of layers whose filters are separable, and of their gradients.

#include "filtered_lrelu_tiles.cuh"

namespace multiscale {

int launch_tiles_2s_2s(const FilteredLReLU& op, const TilePlan& plan, void* stream) {
    return launch_tiles<2, false, 2, false>(op, plan, stream);
}

int launch_tiles_4s_2s(const FilteredLReLU& op, const TilePlan& plan, void* stream) {
    return launch_tiles<4, false, 2, false>(op, plan, stream);
}

int launch_tiles_2s_4s(const FilteredLReLU& op, const TilePlan& plan, void* stream) {
    return launch_tiles<2, false, 4, false>(op, plan, stream);
}

}  // namespace multiscale
