// The tiles of the gradients of layers with a dense downsampling filter: it upsamples there.

#include "filtered_lrelu_tiles.cuh"

namespace multiscale {

int launch_tiles_2d_2s(const FilteredLReLU& op, const TilePlan& plan, void* stream) {
    return launch_tiles<2, true, 2, false>(op, plan, stream);
}

int launch_tiles_2d_4s(const FilteredLReLU& op, const TilePlan& plan, void* stream) {
    return launch_tiles<2, true, 4, false>(op, plan, stream);
}

}  // namespace multiscale
