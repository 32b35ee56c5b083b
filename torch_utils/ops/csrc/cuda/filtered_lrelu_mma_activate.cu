// Tensor cores for layers without gradient.

#include "filtered_lrelu_mma.cuh"

namespace multiscale {

int launch_mma_activate(const FilteredLReLU& op, void* stream, bool* done) {
    if (op.up.x.up == 2 && op.down_terms == 1) return *done = true, launch_mma<2, 1, 2, 1, ACTIVATE>(op, stream);
    if (op.up.x.up == 2 && op.down_terms == 2) return *done = true, launch_mma<2, 1, 2, 2, ACTIVATE>(op, stream);
    if (op.up.x.up == 2 && op.down_terms == 3) return *done = true, launch_mma<2, 1, 2, 3, ACTIVATE>(op, stream);
    if (op.up.x.up == 4 && op.down_terms == 1) return *done = true, launch_mma<4, 1, 2, 1, ACTIVATE>(op, stream);
    if (op.up.x.up == 4 && op.down_terms == 2) return *done = true, launch_mma<4, 1, 2, 2, ACTIVATE>(op, stream);
    if (op.up.x.up == 4 && op.down_terms == 3) return *done = true, launch_mma<4, 1, 2, 3, ACTIVATE>(op, stream);
    return 0;
}

}  // namespace multiscale

// Whether the library was compiled for GPUs that have what these kernels need; else they are empty.
EXPORT int cuda_tensor_cores(void) {
    cudaFuncAttributes attributes;
    const auto* const kernel = (const void*)&multiscale::mma_kernel<2, 1, 2, 2, ACTIVATE>;
    const cudaError_t error = cudaFuncGetAttributes(&attributes, kernel);
    if (error != cudaSuccess) return (void)cudaGetLastError(), 0;
    return attributes.ptxVersion >= 80;
}
