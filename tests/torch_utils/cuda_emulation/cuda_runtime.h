// A stand-in for the CUDA headers: the kernels compile as plain C++ and run on the CPU, one thread of a block at a time.
//
// The threads are fibers. Each runs until its next barrier; the order changes from barrier to barrier (and with
// emulate_order), so that a missing barrier shows. Shared memory has exactly the size asked for and begins as NaN.

#pragma once

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

#include <map>
#include <memory>
#include <tuple>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)

struct dim3 {
    unsigned x = 1, y = 1, z = 1;
};

struct alignas(16) float4 {
    float x, y, z, w;
};
struct alignas(8) float2 {
    float x, y;
};
struct alignas(8) uint2 {
    unsigned x, y;
};
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline float2 make_float2(float x, float y) { return {x, y}; }

inline unsigned bits_of(float v) {
    unsigned bits;
    memcpy(&bits, &v, sizeof v);
    return bits;
}
inline float of_bits(unsigned bits) {
    float v;
    memcpy(&v, &bits, sizeof v);
    return v;
}
inline float from_float16(unsigned short bits) {
    _Float16 v;
    memcpy(&v, &bits, sizeof v);
    return (float)v;
}
inline unsigned short to_float16(float f) {
    const _Float16 v = (_Float16)f;
    unsigned short bits;
    memcpy(&bits, &v, sizeof v);
    return bits;
}

enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidValue = 1, cudaErrorInvalidConfiguration = 9 };
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };
enum cudaDeviceAttr { cudaDevAttrMaxSharedMemoryPerMultiprocessor = 81, cudaDevAttrMaxSharedMemoryPerBlockOptin = 97 };
struct cudaFuncAttributes {};

namespace emulation {

inline int shared_per_multiprocessor = 228 * 1024;  // as a H100 has it
inline unsigned order = 1;                          // odd: the stride in which threads take turns
inline std::map<const void*, int> allowed;          // shared memory of a kernel's blocks, where that was set

struct Fiber {
    ucontext_t context;
    bool finished;
};

struct Block {
    ucontext_t scheduler;
    std::vector<Fiber> fibers;
    Fiber* current = nullptr;
    void (*call)(void*) = nullptr;
    void* arguments = nullptr;
    std::unique_ptr<unsigned char[]> shared;
};

inline Block block;
constexpr size_t STACK_BYTES = 64 * 1024;
inline std::vector<std::unique_ptr<unsigned char[]>> stacks;

inline void fail(const char* what) {
    fprintf(stderr, "CUDA emulation: %s\n", what);
    abort();
}

inline void run_thread() {
    block.call(block.arguments);
    block.current->finished = true;
    swapcontext(&block.current->context, &block.scheduler);
}

}  // namespace emulation

inline dim3 threadIdx, blockIdx, blockDim, gridDim;

inline void __syncthreads() { swapcontext(&emulation::block.current->context, &emulation::block.scheduler); }

template <typename V> V* shared_memory() { return reinterpret_cast<V*>(emulation::block.shared.get()); }

namespace emulation {

inline void run_block(unsigned threads, int shared_bytes) {
    block.shared.reset(new unsigned char[shared_bytes]);
    memset(block.shared.get(), 0xff, shared_bytes);
    block.fibers.resize(threads);
    while (stacks.size() < threads) stacks.emplace_back(new unsigned char[STACK_BYTES]);
    for (unsigned i = 0; i < threads; i++) {
        Fiber& fiber = block.fibers[i];
        fiber.finished = false;
        getcontext(&fiber.context);
        fiber.context.uc_stack.ss_sp = stacks[i].get();
        fiber.context.uc_stack.ss_size = STACK_BYTES;
        fiber.context.uc_link = nullptr;
        makecontext(&fiber.context, run_thread, 0);
    }
    for (unsigned round = 0, alive = threads; alive; round++) {
        const unsigned before = alive;
        for (unsigned turn = 0; turn < threads; turn++) {
            const unsigned i = (round % 2 ? turn : threads - 1 - turn) * order % threads;
            if (block.fibers[i].finished) continue;
            threadIdx.x = i;
            block.current = &block.fibers[i];
            swapcontext(&block.scheduler, &block.current->context);
            alive -= block.current->finished;
        }
        if (alive && before != threads) fail("threads wait at a barrier that others never reach");
    }
}

}  // namespace emulation

namespace emulation {

template <typename... P>
int launch(void (*kernel)(P...), int64_t blocks, int threads, int shared_bytes, void*, P... arguments) {
    const auto set = allowed.find((const void*)kernel);
    const int largest = set == allowed.end() ? 48 * 1024 : set->second;
    const bool fits = blocks >= 1 && blocks <= 2147483647LL && threads >= 1 && threads <= 1024 && threads % 32 == 0;
    if (!fits || shared_bytes < 0 || shared_bytes > largest) return cudaErrorInvalidConfiguration;
    auto call = std::make_pair(kernel, std::tuple<P...>(arguments...));
    block.arguments = &call;
    block.call = [](void* p) {
        auto& [function, values] = *static_cast<decltype(call)*>(p);
        std::apply(function, values);
    };
    blockDim.x = (unsigned)threads;
    gridDim.x = (unsigned)blocks;
    for (int64_t i = 0; i < blocks; i++) {
        blockIdx.x = (unsigned)i;
        run_block((unsigned)threads, shared_bytes);
    }
    return 0;
}

}  // namespace emulation

inline cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline const char* cudaGetErrorString(cudaError_t e) { return e ? "invalid configuration argument" : "no error"; }
inline cudaError_t cudaFuncGetAttributes(cudaFuncAttributes*, const void*) { return cudaSuccess; }
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr which, int) {
    const bool block_limit = which == cudaDevAttrMaxSharedMemoryPerBlockOptin;
    *value = emulation::shared_per_multiprocessor - (block_limit ? 1024 : 0);
    return cudaSuccess;
}
inline cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute, int bytes) {
    if (bytes < 0 || bytes > emulation::shared_per_multiprocessor - 1024) return cudaErrorInvalidValue;
    return emulation::allowed[kernel] = bytes, cudaSuccess;
}
