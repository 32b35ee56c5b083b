// Settings of the emulation, for tests.

#include "cuda_runtime.h"

extern "C" void emulate_order(unsigned order) { emulation::order = order | 1; }
extern "C" void emulate_shared_memory(int bytes_per_multiprocessor) {
    emulation::shared_per_multiprocessor = bytes_per_multiprocessor;
}
