// The four ways to a filtered leaky ReLU; each returns 0 or a cudaError_t.

#pragma once

#include "device.cuh"

namespace multiscale {

// For everything (filtered_lrelu_generic.cu).
int filtered_lrelu_generic(const FilteredLReLU& op, void* stream);

// Without filters: one pass over memory (filtered_lrelu_pointwise.cu).
bool is_pointwise(const FilteredLReLU& op);
int filtered_lrelu_pointwise(const FilteredLReLU& op, void* stream);

// For the generator's layers and their gradients (filtered_lrelu_tiles.cuh, chosen in filtered_lrelu.cu); *done:
// whether there is such a kernel.
int filtered_lrelu_tiles(const FilteredLReLU& op, void* stream, bool* done);

// The same layers in half precision, where Python has prepared their filters (filtered_lrelu_mma.cuh).
int filtered_lrelu_mma(const FilteredLReLU& op, void* stream, bool* done);

}  // namespace multiscale
