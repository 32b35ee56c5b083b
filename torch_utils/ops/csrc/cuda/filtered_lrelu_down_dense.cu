// The tiles of layers with a dense downsampling filter.

#include "filtered_lrelu_tiles.cuh"

namespace multiscale {

int launch_tiles_2s_2d(const FilteredLReLU& op, const TilePlan& plan, void* stream) {
    return launch_tiles<2, false, 2, true>(op, plan, stream);
}

int launch_tiles_4s_2d(const FilteredLReLU& op, const TilePlan& plan, void* stream) {
    return launch_tiles<4, false, 2, true>(op, plan, stream);
}

}  // namespace multiscale
