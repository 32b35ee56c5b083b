// What the threads of a warp do together, on the tensor cores for one; from compute capability 8.0 on. All threads of the
// warp must be there. The emulation has functions of the same names.

#pragma once

#include "device.cuh"

#ifdef __CUDACC__
// sum += left * right: [16, 8] += [16, 16] [16, 8], half precision in, float32 sums. Lane 4 * g + t holds, of each factor,
// pairs (row, column) in a register, the lower column (left) or row (right) in the lower half:
//   left:  (g, 2t), (g + 8, 2t), (g, 2t + 8), (g + 8, 2t + 8), each with the next column;
//   right: (2t, g), (2t + 8, g), each with the next row;      sum: (g, 2t), (g, 2t + 1), (g + 8, 2t), (g + 8, 2t + 1).
__device__ __forceinline__ void multiply_add(float (&sum)[4], const unsigned (&left)[4], const unsigned (&right)[2]) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(left[0]), "r"(left[1]), "r"(left[2]), "r"(left[3]), "r"(right[0]), "r"(right[1]));
}

// Two or four 8x8 matrices of half-precision numbers from shared memory, each transposed: lane 4 * g + t gets (2t, g) and
// (2t + 1, g). Lane 8 * i + r gives the address of row r of matrix i, a multiple of 16 bytes.
__device__ __forceinline__ void load_transposed(unsigned (&a)[2], const unsigned short* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
                 : "=r"(a[0]), "=r"(a[1])
                 : "r"((unsigned)__cvta_generic_to_shared(row))
                 : "memory");
}
__device__ __forceinline__ void load_transposed(unsigned (&a)[2], unsigned (&b)[2], const unsigned short* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(a[0]), "=r"(a[1]), "=r"(b[0]), "=r"(b[1])
                 : "r"((unsigned)__cvta_generic_to_shared(row))
                 : "memory");
}

// Two numbers in half precision, the first in the lower half.
__device__ __forceinline__ unsigned pack_halves(float low, float high) {
    unsigned both;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
    return both;
}

// The same in bfloat16.
__device__ __forceinline__ unsigned pack_bfloats(float low, float high) {
    unsigned both;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
    return both;
}

// v * factor + summand, rounded once, of both halves.
__device__ __forceinline__ unsigned multiply_add_halves(unsigned v, unsigned factor, unsigned summand) {
    unsigned sum;
    asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(sum) : "r"(v), "r"(factor), "r"(summand));
    return sum;
}

// Leaky ReLU with a slope of 0 to 1 of both halves; the slope twice in a word. NaN stays.
__device__ __forceinline__ unsigned activate_halves(unsigned both, unsigned slope) {
    unsigned other;
    asm("mul.f16x2 %0, %1, %2;" : "=r"(other) : "r"(both), "r"(slope));
    asm("max.f16x2 %0, %1, %2;" : "=r"(both) : "r"(both), "r"(other));  // not NaN where only one is: infinity times 0
    return both;
}

// Clamped to [-limit, limit], which is twice in a word. NaN stays.
__device__ __forceinline__ unsigned clamp_halves(unsigned both, unsigned limit) {
    asm("min.NaN.f16x2 %0, %1, %2;" : "=r"(both) : "r"(both), "r"(limit));
    asm("max.NaN.f16x2 %0, %1, %2;" : "=r"(both) : "r"(both), "r"(limit ^ 0x80008000u));
    return both;
}

// All bits of a half where it is the limit or more; where it is 0, less, or NaN.
__device__ __forceinline__ unsigned at_least(unsigned both, unsigned limit) {
    unsigned mask;
    asm("set.ge.u32.f16x2 %0, %1, %2;" : "=r"(mask) : "r"(both), "r"(limit));
    return mask;
}
__device__ __forceinline__ unsigned not_positive(unsigned both) {
    unsigned mask;
    asm("set.leu.u32.f16x2 %0, %1, %2;" : "=r"(mask) : "r"(both), "r"(0));
    return mask;
}

// The larger ones of two pairs of a half type, which are not negative; a number rather than NaN.
template <int TYPE> __device__ __forceinline__ unsigned larger_halves(unsigned a, unsigned b) {
    unsigned larger;
    if (TYPE == FLOAT16) asm("max.f16x2 %0, %1, %2;" : "=r"(larger) : "r"(a), "r"(b));
    else asm("max.bf16x2 %0, %1, %2;" : "=r"(larger) : "r"(a), "r"(b));
    return larger;
}

__device__ __forceinline__ unsigned largest_of_warp(unsigned v) {
#if __CUDA_ARCH__ >= 800
    return __reduce_max_sync(0xffffffffu, v);
#else
    return v;  // nobody calls it
#endif
}
// What the lane has whose number differs in this bit.
__device__ __forceinline__ unsigned of_neighbour(unsigned v, int bit) { return __shfl_xor_sync(0xffffffffu, v, bit); }
#endif
