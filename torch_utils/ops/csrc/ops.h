// What Python hands to the kernels: plain structures, filled by native.py through ctypes. No PyTorch.
//
// Notation (reference.py): along one axis a resampling is y[m] = sum_j g[j*up + pad0 - m*down] x[j], g[k] = 0 outside
// 0 <= k < taps, where g is the filter read backwards, or forwards if it is to be flipped.

#pragma once

#include <stdint.h>

#define EXPORT extern "C" __attribute__((visibility("default")))  // a library's entry points; all else is hidden

enum Type { FLOAT32 = 0, FLOAT64 = 1, FLOAT16 = 2, BFLOAT16 = 3 };

enum Slopes {       // what a filtered leaky ReLU does to its upsampled samples v
    ACTIVATE = 0,   // v > 0 ? v : slope * v, then clamp to [-clamp, clamp]
    REMEMBER = 1,   // the same, and writes the slope's code: 0 where v > 0, 1 where not, and 2 or 3 where
                    // it is clamped (|v| >= clamp)
    MULTIPLY = 2,   // by the slope of the code that was written: 1, slope or 0
};

struct Axis {
    int32_t n_in, n_out;  // samples before and after
    int32_t up, down;     // 1, 2 or 4
    int32_t pad0;         // zeros before the upsampled samples; negative: cropped
};

struct Resampling {
    const void* filter;  // [taps_y, taps_x], or [taps_y] if separable, or null for no filter (one tap of 1);
                         // float64 for FLOAT64 images, else float32; on the images' device
    int32_t taps_y, taps_x;
    int32_t separable;   // 1: the same filter along both axes, taps_y == taps_x
    int32_t flip;        // 0: convolve (g reads the filter backwards), 1: correlate
    double gain;         // of the whole resampling
    struct Axis y, x;
};

struct Upfirdn2d {
    const void* x;  // [maps, y.n_in, x.n_in], contiguous, of `type`
    void* y;        // [maps, y.n_out, x.n_out], contiguous, of `type`
    int64_t maps;
    int32_t type;   // enum Type
    struct Resampling resampling;
};

struct FilteredLReLU {
    const void* x;      // [maps, up.y.n_in, up.x.n_in], contiguous, of `type`
    void* y;            // [maps, down.y.n_out, down.x.n_out], contiguous, of `type`
    const void* bias;   // [channels] (float64 for FLOAT64, else float32), added to map m's samples: bias[m % channels]; or null
    uint8_t* codes;     // [maps, up.y.n_out, code_bytes]: two bits a sample, in an order of each library's own; or null
    int64_t maps, channels;
    int64_t code_bytes; // bytes of codes in a row of upsampled samples (codes.py)
    int32_t type;       // enum Type
    int32_t slopes;     // enum Slopes
    double slope, clamp;  // clamp > 0, infinity for none
    struct Resampling up;    // its down is 1; the activation's gain is part of its gain
    struct Resampling down;  // its up is 1; its inputs are the outputs of `up`

    // The filters for tensor cores (tensor_cores.py), or null: [terms][quads][32 lanes][4 registers]; they are multiples
    // of the filters by the units.
    const void *up_registers, *down_registers;
    int32_t up_terms, down_terms;
    double up_unit, down_unit;
};
