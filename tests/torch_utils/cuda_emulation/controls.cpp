// Settings of the emulation, for tests.

#include "cuda_runtime.h"

extern "C" void emulate_order(unsigned order) { emulation::order = order | 1; }
extern "C" void emulate_shared_memory(int bytes_per_multiprocessor) {
    emulation::shared_per_multiprocessor = bytes_per_multiprocessor;
    emulation::allowed.clear();  // another device
}

// The least that a kernel's blocks are allowed, among those for which it was set; 0: for none.
extern "C" int emulated_least_allowance() {
    int least = 0;
    for (const auto& [kernel, bytes] : emulation::allowed) least = least && least < bytes ? least : bytes;
    return least;
}
