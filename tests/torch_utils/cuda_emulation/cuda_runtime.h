// A stand-in for the CUDA headers: the kernels compile as plain C++ and run on the CPU, one thread of a block at a time.
//
// The threads are fibers. Each runs until its next barrier, of its block or of its warp; the order changes from round to
// round (and with emulate_order), so that a missing barrier shows. Shared memory has exactly the size asked for and begins
// as NaN. What a warp does together (csrc/cuda/warp.cuh) is done here by exchanging values at a barrier of the warp.

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
struct alignas(16) uint4 {
    unsigned x, y, z, w;
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
struct cudaFuncAttributes {
    int ptxVersion;
};

namespace emulation {

inline int shared_per_multiprocessor = 228 * 1024;  // as a H100 has it
inline unsigned order = 1;                          // odd: the stride in which threads take turns
inline std::map<const void*, int> allowed;          // shared memory of a kernel's blocks, where that was set

enum State { RUNNABLE, AT_BLOCK, AT_WARP, FINISHED };

struct Fiber {
    ucontext_t context;
    State state;
    unsigned exchanges;  // so far
};

constexpr unsigned WARP = 32, MOST_WARPS = 32, MOST_VALUES = 6;

struct Block {
    ucontext_t scheduler;
    std::vector<Fiber> fibers;
    uint64_t values[2][MOST_WARPS][WARP][MOST_VALUES];  // what the lanes of a warp exchange: now, and the last time
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
    block.current->state = FINISHED;
    swapcontext(&block.current->context, &block.scheduler);
}

inline void wait(State state) {
    Fiber* const fiber = block.current;
    fiber->state = state;
    swapcontext(&fiber->context, &block.scheduler);
}

}  // namespace emulation

inline dim3 threadIdx, blockIdx, blockDim, gridDim;

inline void __syncthreads() { emulation::wait(emulation::AT_BLOCK); }
inline void __syncwarp() { emulation::wait(emulation::AT_WARP); }

namespace emulation {

// What all lanes of a warp give, [lane][value]. It stays until the exchange after the next begins, for which all must come.
template <typename... V> const uint64_t (*exchange(V... value))[MOST_VALUES] {
    static_assert(sizeof...(V) <= MOST_VALUES);
    auto& values = block.values[block.current->exchanges++ % 2][threadIdx.x / WARP];
    unsigned i = 0;
    ((values[threadIdx.x % WARP][i++] = (uint64_t)value), ...);
    wait(AT_WARP);
    return values;
}

inline float half_of(uint64_t word, unsigned which) { return from_float16((unsigned short)(word >> (16 * which))); }

}  // namespace emulation

inline void multiply_add(float (&sum)[4], const unsigned (&left)[4], const unsigned (&right)[2]) {
    using namespace emulation;
    const auto values = exchange(left[0], left[1], left[2], left[3], right[0], right[1]);
    const unsigned lane = threadIdx.x % WARP;
    for (unsigned i = 0; i < 4; i++) {
        const unsigned row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
        double total = sum[i];
        for (unsigned k = 0; k < 16; k++) {
            const unsigned pair = k % 8 / 2, later = k / 8;
            const uint64_t a = values[row % 8 * 4 + pair][row / 8 + 2 * later];
            const uint64_t b = values[column * 4 + pair][4 + later];
            total += (double)half_of(a, k % 2) * half_of(b, k % 2);
        }
        sum[i] = (float)total;
    }
}

namespace emulation {

inline unsigned transposed(const uint64_t (*values)[MOST_VALUES], unsigned matrix) {
    const unsigned lane = threadIdx.x % WARP;
    unsigned both = 0;
    for (unsigned i = 0; i < 2; i++) {
        const auto row = (const unsigned short*)values[8 * matrix + lane % 4 * 2 + i][0];
        if ((uintptr_t)row % 16) fail("a row of a matrix is not aligned to 16 bytes");
        both |= (unsigned)row[lane / 4] << (16 * i);
    }
    return both;
}

}  // namespace emulation

inline void load_transposed(unsigned (&a)[2], const unsigned short* row) {
    const auto values = emulation::exchange((uintptr_t)row);
    for (unsigned i = 0; i < 2; i++) a[i] = emulation::transposed(values, i);
}
inline void load_transposed(unsigned (&a)[2], unsigned (&b)[2], const unsigned short* row) {
    const auto values = emulation::exchange((uintptr_t)row);
    for (unsigned i = 0; i < 2; i++) a[i] = emulation::transposed(values, i), b[i] = emulation::transposed(values, 2 + i);
}

inline unsigned pack_halves(float low, float high) { return to_float16(low) | (unsigned)to_float16(high) << 16; }

namespace emulation {

inline unsigned bfloat16_of(float v) {
    const unsigned bits = bits_of(v);
    return v != v ? 0x7fffu : (bits + 0x7fffu + (bits >> 16 & 1)) >> 16;
}

}  // namespace emulation

inline unsigned pack_bfloats(float low, float high) {
    return emulation::bfloat16_of(low) | emulation::bfloat16_of(high) << 16;
}

inline unsigned multiply_add_halves(unsigned v, unsigned factor, unsigned summand) {
    using emulation::half_of;
    unsigned sums = 0;
    for (unsigned i = 0; i < 2; i++) {  // a double has room for all bits of product and sum, or what it rounds is too small to matter
        const _Float16 sum = (_Float16)((double)half_of(v, i) * half_of(factor, i) + half_of(summand, i));
        unsigned short bits;
        memcpy(&bits, &sum, sizeof sum);
        sums |= (unsigned)bits << (16 * i);
    }
    return sums;
}

inline unsigned activate_halves(unsigned both, unsigned slope) {
    unsigned activated = 0;
    for (unsigned i = 0; i < 2; i++) {
        const float v = emulation::half_of(both, i);
        const float other = from_float16(to_float16(v * emulation::half_of(slope, i)));
        activated |= (unsigned)to_float16(v < other ? other : v) << (16 * i);
    }
    return activated;
}

inline unsigned clamp_halves(unsigned both, unsigned limit) {
    unsigned clamped = 0;
    for (unsigned i = 0; i < 2; i++) {
        const float v = emulation::half_of(both, i), most = emulation::half_of(limit, i);
        clamped |= (unsigned)to_float16(v > most ? most : v < -most ? -most : v) << (16 * i);
    }
    return clamped;
}

inline unsigned at_least(unsigned both, unsigned limit) {
    unsigned mask = 0;
    for (unsigned i = 0; i < 2; i++)
        if (emulation::half_of(both, i) >= emulation::half_of(limit, i)) mask |= 0xffffu << (16 * i);
    return mask;
}
inline unsigned not_positive(unsigned both) {
    unsigned mask = 0;
    for (unsigned i = 0; i < 2; i++)
        if (!(emulation::half_of(both, i) > 0)) mask |= 0xffffu << (16 * i);
    return mask;
}

template <int TYPE> unsigned larger_halves(unsigned a, unsigned b) {
    unsigned larger = 0;
    for (unsigned i = 0; i < 2; i++) {
        const unsigned of_a = a >> (16 * i) & 0xffff, of_b = b >> (16 * i) & 0xffff;
        const unsigned most = TYPE == 2 ? 0x7c00 : 0x7f80;  // infinity
        larger |= (of_b > most || (of_a <= most && of_a > of_b) ? of_a : of_b) << (16 * i);
    }
    return larger;
}

inline unsigned largest_of_warp(unsigned v) {
    const auto values = emulation::exchange(v);
    for (unsigned i = 0; i < emulation::WARP; i++)
        if (values[i][0] > v) v = (unsigned)values[i][0];
    return v;
}
inline unsigned of_neighbour(unsigned v, int bit) {
    const auto values = emulation::exchange(v);
    return (unsigned)values[threadIdx.x % emulation::WARP ^ (unsigned)bit][0];
}

template <typename V> V* shared_memory() { return reinterpret_cast<V*>(emulation::block.shared.get()); }

namespace emulation {

inline unsigned count(unsigned first, unsigned threads, State state) {
    unsigned n = 0;
    for (unsigned i = first; i < first + threads; i++) n += block.fibers[i].state == state;
    return n;
}

// Whether all of these threads stand at a barrier; then they go on.
inline bool release(unsigned first, unsigned threads, State state) {
    if (count(first, threads, state) != threads) return false;
    for (unsigned i = first; i < first + threads; i++) block.fibers[i].state = RUNNABLE;
    return true;
}

inline void run_block(unsigned threads, int shared_bytes) {
    block.shared.reset(new unsigned char[shared_bytes]);
    memset(block.shared.get(), 0xff, shared_bytes);
    block.fibers.resize(threads);
    while (stacks.size() < threads) stacks.emplace_back(new unsigned char[STACK_BYTES]);
    for (unsigned i = 0; i < threads; i++) {
        Fiber& fiber = block.fibers[i];
        fiber.state = RUNNABLE;
        fiber.exchanges = 0;
        getcontext(&fiber.context);
        fiber.context.uc_stack.ss_sp = stacks[i].get();
        fiber.context.uc_stack.ss_size = STACK_BYTES;
        fiber.context.uc_link = nullptr;
        makecontext(&fiber.context, run_thread, 0);
    }
    for (unsigned round = 0;; round++) {
        for (unsigned turn = 0; turn < threads; turn++) {
            const unsigned i = (round % 2 ? turn : threads - 1 - turn) * order % threads;
            if (block.fibers[i].state != RUNNABLE) continue;
            threadIdx.x = i;
            block.current = &block.fibers[i];
            swapcontext(&block.scheduler, &block.current->context);
        }
        if (count(0, threads, FINISHED) == threads) return;
        bool goes_on = release(0, threads, AT_BLOCK);
        for (unsigned warp = 0; warp < threads; warp += WARP) goes_on |= release(warp, WARP, AT_WARP);
        if (!goes_on) fail("threads wait at a barrier that others never reach");
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
inline cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void*) {
    return *attributes = {90}, cudaSuccess;
}
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr which, int) {
    const bool block_limit = which == cudaDevAttrMaxSharedMemoryPerBlockOptin;
    *value = emulation::shared_per_multiprocessor - (block_limit ? 1024 : 0);
    return cudaSuccess;
}
inline cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute, int bytes) {
    if (bytes < 0 || bytes > emulation::shared_per_multiprocessor - 1024) return cudaErrorInvalidValue;
    return emulation::allowed[kernel] = bytes, cudaSuccess;
}
