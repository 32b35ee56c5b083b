// What all kernels share: launching, shared memory, samples of three types read and written as one, small arithmetic.
//
// Written so that a plain C++ compiler can take the same files, with a stand-in for the CUDA headers that runs a
// block's threads one after the other (tests/torch_utils/cuda_emulation): kernels start through launch() only, and shared
// memory is dynamic only.

#pragma once

#include <cuda_runtime.h>
#include <math.h>
#include <stdint.h>

#include "../ops.h"

constexpr int LANES = 32;                     // threads of a warp
#ifdef TEST_LARGEST_GRID  // blocks of one launch
constexpr int64_t LARGEST_GRID = TEST_LARGEST_GRID;
#else
constexpr int64_t LARGEST_GRID = 2147483647;
#endif
constexpr int SHARED_ALWAYS = 48 * 1024;      // bytes of shared memory that a block gets without asking

// ---------------------------------------------------------------------------------------------------------------------
// Arithmetic of both sides

#define BOTH __host__ __device__ __forceinline__

BOTH int ceil_div(int a, int b) { return (a + b - 1) / b; }  // a >= 0, b > 0
BOTH int64_t ceil_div_floor(int64_t a, int64_t b) { return a >= 0 ? (a + b - 1) / b : -(-a / b); }  // any a, b > 0
template <typename V> BOTH constexpr V smaller(V a, V b) { return a < b ? a : b; }
template <typename V> BOTH constexpr V larger(V a, V b) { return a > b ? a : b; }

// An origin of a tile; just outside of the `n` samples if it is farther away, where all of the tile is zero anyway.
// With inside() this keeps 32-bit indices right for every padding. Tiles have fewer than 4096 samples a side.
BOTH int clamp_origin(int64_t origin, int n) { return (int)larger<int64_t>(smaller<int64_t>(origin, n), -4096); }
BOTH bool inside(int origin, int i, int n) { return (unsigned)origin + (unsigned)i < (unsigned)n; }

// ---------------------------------------------------------------------------------------------------------------------
// Host

// Bytes of shared memory of the current device: the most for a block, and of a multiprocessor.
inline int shared_limits(int* per_block, int* per_multiprocessor) {
    int device = 0;
    cudaError_t error = cudaGetDevice(&device);
    if (error == cudaSuccess)
        error = cudaDeviceGetAttribute(per_block, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
    if (error == cudaSuccess)
        error = cudaDeviceGetAttribute(per_multiprocessor, cudaDevAttrMaxSharedMemoryPerMultiprocessor, device);
    if (error != cudaSuccess) (void)cudaGetLastError();
    return (int)error;
}

// Let a kernel's blocks have as much shared memory as the device has for one. Never less: the setting is the kernel's, and
// another thread may be about to launch the same kernel with a larger tile.
inline int allow_shared(const void* kernel) {
    int limit = 0, per_multiprocessor = 0;
    const int failed = shared_limits(&limit, &per_multiprocessor);
    if (failed) return failed;
    const cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, limit);
    if (error != cudaSuccess) (void)cudaGetLastError();
    return (int)error;
}

// Start a kernel on a stream; 0 or the cudaError_t. An error of a launch is returned, not left for the next caller.
template <typename... P>
int launch(void (*kernel)(P...), int64_t blocks, int threads, int shared_bytes, void* stream, P... arguments) {
    if (shared_bytes > SHARED_ALWAYS)
        if (const int error = allow_shared((const void*)kernel)) return error;
#ifdef __CUDACC__
    void* pointers[] = {(void*)&arguments...};
    const cudaError_t error = cudaLaunchKernel((const void*)kernel, dim3((unsigned)blocks), dim3((unsigned)threads),
                                               pointers, (size_t)shared_bytes, (cudaStream_t)stream);
    if (error != cudaSuccess) (void)cudaGetLastError();
    return (int)error;
#else
    return emulation::launch(kernel, blocks, threads, shared_bytes, stream, arguments...);
#endif
}

// Launch over maps x tiles blocks: in one launch, or in several whose plans begin at a later map (`first_map`).
template <typename Plan>
int launch_maps(
    void (*kernel)(Plan), Plan plan, int64_t maps, int64_t tiles, int threads, int shared_bytes, void* stream) {
    const int64_t at_a_time = larger<int64_t>(LARGEST_GRID / tiles, 1);
    for (plan.first_map = 0; plan.first_map < maps; plan.first_map += at_a_time) {
        const int64_t left = maps - plan.first_map;
        const int64_t blocks = (left < at_a_time ? left : at_a_time) * tiles;
        const int error = launch(kernel, blocks, threads, shared_bytes, stream, plan);
        if (error) return error;
    }
    return 0;
}

// ---------------------------------------------------------------------------------------------------------------------
// Device

#ifdef __CUDACC__
template <typename V> __device__ __forceinline__ V* shared_memory() {
    extern __shared__ __align__(16) unsigned char bytes[];
    return reinterpret_cast<V*>(bytes);
}
#endif

// Half types as their bits. Not with CUDA's headers for them, which take longer to compile than all kernels of a file.
#ifdef __CUDACC__
__device__ __forceinline__ float from_float16(unsigned short bits) {
    float v;
    asm("cvt.f32.f16 %0, %1;" : "=f"(v) : "h"(bits));
    return v;
}
__device__ __forceinline__ unsigned short to_float16(float v) {
    unsigned short bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(v));
    return bits;
}
__device__ __forceinline__ unsigned bits_of(float v) { return __float_as_uint(v); }
__device__ __forceinline__ float of_bits(unsigned bits) { return __uint_as_float(bits); }
#endif

__device__ __forceinline__ float from_bfloat16(unsigned short bits) { return of_bits((unsigned)bits << 16); }
__device__ __forceinline__ unsigned short to_bfloat16(float v) {  // to the nearest, ties to even
    const unsigned bits = bits_of(v);
    return v != v ? (unsigned short)0x7fff : (unsigned short)((bits + 0x7fffu + (bits >> 16 & 1)) >> 16);
}

__device__ __forceinline__ float from_half_type(unsigned short bits, int type) {
    return type == FLOAT16 ? from_float16(bits) : from_bfloat16(bits);
}
__device__ __forceinline__ unsigned short to_half_type(float v, int type) {
    return type == FLOAT16 ? to_float16(v) : to_bfloat16(v);
}

// Sample i of an array of `type`. A is the type of the arithmetic: float for all but FLOAT64. The type is no template
// parameter of the kernels: that would triple them. Where many samples are read, with_type() branches once for all.
template <typename A> struct Samples;

template <> struct Samples<double> {
    static __device__ __forceinline__ double read(const void* p, int64_t i, int) { return ((const double*)p)[i]; }
    static __device__ __forceinline__ void write(void* p, int64_t i, int, double v) { ((double*)p)[i] = v; }
};

template <> struct Samples<float> {
    static __device__ __forceinline__ float read(const void* p, int64_t i, int type) {
        return type == FLOAT32 ? ((const float*)p)[i] : from_half_type(((const unsigned short*)p)[i], type);
    }
    static __device__ __forceinline__ void write(void* p, int64_t i, int type, float v) {
        if (type == FLOAT32) ((float*)p)[i] = v;
        else ((unsigned short*)p)[i] = to_half_type(v, type);
    }
};

// n / d for n * d < 2^20, without a division.
struct Divisor {
    unsigned d, magic;
    __device__ __forceinline__ explicit Divisor(int d) : d(d), magic((1u << 20) / d + 1) {}
    __device__ __forceinline__ int operator()(int n) const { return (unsigned)n * magic >> 20; }
};

template <int V> struct Constant {
    static constexpr int value = V;
};

// f with the type of an array as a constant: one branch, outside of the loops that f has.
template <typename A, typename F> __device__ __forceinline__ void with_type(int type, F f) {
    if constexpr (sizeof(A) == sizeof(double)) f(Constant<FLOAT64>());
    else if (type == FLOAT32) f(Constant<FLOAT32>());
    else if (type == FLOAT16) f(Constant<FLOAT16>());
    else f(Constant<BFLOAT16>());
}

constexpr int ROWS_IN_FLIGHT = 8;  // rows of a warp that are asked for before the first of them is waited for

// [rows, columns] samples of a map [n_y, n_x] that begins at `map`, from (y0, x0) on, plus a bias; zero outside of the
// map. Warps take rows, lanes columns.
template <typename A, int WARPS>
__device__ __forceinline__ void load_tile(
    const void* x, int type, int64_t map, int y0, int x0, int n_y, int n_x, A bias, int rows, int columns, A* to,
    int pitch) {
    with_type<A>(type, [&](auto constant) {
        for (int first = threadIdx.x / LANES; first < rows; first += WARPS * ROWS_IN_FLIGHT)
            for (int c = threadIdx.x % LANES; c < columns; c += LANES) {
                const bool column_exists = inside(x0, c, n_x);
                A v[ROWS_IN_FLIGHT];
#pragma unroll
                for (int i = 0; i < ROWS_IN_FLIGHT; i++) {
                    const int r = first + i * WARPS;
                    const bool exists = column_exists && r < rows && inside(y0, r, n_y);
                    const unsigned place = (unsigned)(y0 + r) * n_x + (x0 + c);  // a map has fewer than 2^31 samples
                    v[i] = exists ? Samples<A>::read(x, map + place, decltype(constant)::value) + bias : A(0);
                }
#pragma unroll
                for (int i = 0; i < ROWS_IN_FLIGHT; i++)
                    if (first + i * WARPS < rows) to[(first + i * WARPS) * pitch + c] = v[i];
            }
    });
}

// Four neighbouring samples in one access of 8 or 16 bytes; i must be a multiple of four, the array is_aligned().
union FourHalves {
    uint2 bits;
    unsigned short half[4];
};

__device__ __forceinline__ void read_four(const void* p, int64_t i, int type, float* v) {
    if (type == FLOAT32) {
        const float4 four = *(const float4*)((const float*)p + i);
        v[0] = four.x, v[1] = four.y, v[2] = four.z, v[3] = four.w;
        return;
    }
    FourHalves four;
    four.bits = *(const uint2*)((const unsigned short*)p + i);
#pragma unroll
    for (int k = 0; k < 4; k++) v[k] = from_half_type(four.half[k], type);
}

__device__ __forceinline__ void write_four(void* p, int64_t i, int type, const float* v) {
    if (type == FLOAT32) {
        *(float4*)((float*)p + i) = make_float4(v[0], v[1], v[2], v[3]);
        return;
    }
    FourHalves four;
#pragma unroll
    for (int k = 0; k < 4; k++) four.half[k] = to_half_type(v[k], type);
    *(uint2*)((unsigned short*)p + i) = four.bits;
}

inline bool is_aligned(const void* p, int type) { return (uintptr_t)p % (type == FLOAT32 ? 16 : 8) == 0; }

__device__ __forceinline__ float absolute(float v) { return fabsf(v); }
__device__ __forceinline__ double absolute(double v) { return fabs(v); }
__device__ __forceinline__ float with_sign(float size, float v) { return copysignf(size, v); }
__device__ __forceinline__ double with_sign(double size, double v) { return copysign(size, v); }

// v -> leaky ReLU, clamped. Comparisons let NaN through.
template <typename A> __device__ __forceinline__ A activate(A v, A slope, A clamp) {
    v = v > A(0) ? v : slope * v;
    return absolute(v) >= clamp ? with_sign(clamp, v) : v;
}

// The code of the slope that activate() has at v, `shift` bits to the left.
template <typename A> __device__ __forceinline__ unsigned code_of(A v, A slope, A clamp, int shift) {
    const bool positive = v > A(0);
    return absolute(positive ? v : slope * v) >= clamp ? 2u << shift : positive ? 0u : 1u << shift;
}

// The factor that a code stands for.
template <typename A> __device__ __forceinline__ A slope_of(unsigned code, A slope) {
    return code == 0 ? A(1) : code == 1 ? slope : A(0);
}
