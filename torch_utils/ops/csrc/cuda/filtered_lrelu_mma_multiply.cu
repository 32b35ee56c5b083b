// Tensor cores for the gradients of layers.

#include "filtered_lrelu_mma.cuh"

namespace multiscale {

int launch_mma_multiply(const FilteredLReLU& op, void* stream, bool* done) {
    if (op.down.x.down == 2 && op.up_terms == 1)
        return *done = true, launch_mma<2, 1, 2, 1, MULTIPLY>(op, stream);
    if (op.down.x.down == 2 && op.up_terms == 2)
        return *done = true, launch_mma<2, 2, 2, 1, MULTIPLY>(op, stream);
    if (op.down.x.down == 2 && op.up_terms == 3)
        return *done = true, launch_mma<2, 3, 2, 1, MULTIPLY>(op, stream);
    if (op.down.x.down == 4 && op.up_terms == 1)
        return *done = true, launch_mma<2, 1, 4, 1, MULTIPLY>(op, stream);
    if (op.down.x.down == 4 && op.up_terms == 2)
        return *done = true, launch_mma<2, 2, 4, 1, MULTIPLY>(op, stream);
    if (op.down.x.down == 4 && op.up_terms == 3)
        return *done = true, launch_mma<2, 3, 4, 1, MULTIPLY>(op, stream);
    return 0;
}

}  // namespace multiscale
