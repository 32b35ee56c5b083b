// A leaky ReLU without filters: every thread does four neighbouring samples of a row, which share a byte of codes.

#include "filtered_lrelu.cuh"

namespace {

constexpr int THREADS = 256;
constexpr int GROUP = 4;  // samples of a byte of codes

struct PointwisePlan {
    const void* x;
    void* y;
    const void* bias;
    uint8_t* codes;
    int64_t channels, code_bytes;
    int type, slopes, height, width, groups;  // groups of a row
    int aligned;                              // whether all groups are whole and aligned: then they move as vectors
    double slope, clamp, gain_before, gain_after;
    int64_t items, first_item;                // groups of all maps; the launch's first
};

// Four samples that lie together, in one access.
template <typename A> struct Group;

template <> struct Group<double> {
    static __device__ __forceinline__ void read(const void* p, int64_t i, int, double* v) {
        for (int k = 0; k < GROUP; k++) v[k] = ((const double*)p)[i + k];
    }
    static __device__ __forceinline__ void write(void* p, int64_t i, int, const double* v) {
        for (int k = 0; k < GROUP; k++) ((double*)p)[i + k] = v[k];
    }
};

template <> struct Group<float> {
    static __device__ __forceinline__ void read(const void* p, int64_t i, int type, float* v) {
        read_four(p, i, type, v);
    }
    static __device__ __forceinline__ void write(void* p, int64_t i, int type, const float* v) {
        write_four(p, i, type, v);
    }
};

// I: a type that counts the items.
template <typename A, typename I>
__global__ void __launch_bounds__(THREADS) pointwise_kernel(const PointwisePlan p) {
    const int64_t item64 = (int64_t)blockIdx.x * THREADS + threadIdx.x + p.first_item;
    if (item64 >= p.items) return;
    const I item = (I)item64, row = item / (I)p.groups;
    const int64_t map = row / (I)p.height;
    const int group = (int)(item - row * (I)p.groups), column = group * GROUP;
    const int count = smaller(GROUP, p.width - column);
    const int64_t place = (int64_t)row * p.width + column;
    const A slope = A(p.slope), clamp = A(p.clamp);
    const A bias = p.bias ? ((const A*)p.bias)[(I)map % (I)p.channels] : A(0);

    A v[GROUP] = {};
    if (p.aligned) Group<A>::read(p.x, place, p.type, v);
    else
#pragma unroll
        for (int k = 0; k < GROUP; k++)
            if (k < count) v[k] = Samples<A>::read(p.x, place + k, p.type);

    const int64_t byte = (int64_t)row * p.code_bytes + group;
    const unsigned remembered = p.slopes == MULTIPLY ? p.codes[byte] : 0;
    unsigned packed = 0;
#pragma unroll
    for (int k = 0; k < GROUP; k++) {
        const A u = (v[k] + bias) * A(p.gain_before);
        packed |= k < count ? code_of(u, slope, clamp, 2 * k) : 0;
        v[k] = p.slopes == MULTIPLY ? u * slope_of(remembered >> (2 * k) & 3, slope) : activate(u, slope, clamp);
        v[k] *= A(p.gain_after);
    }
    if (p.slopes == REMEMBER) p.codes[byte] = (uint8_t)packed;

    if (p.aligned) Group<A>::write(p.y, place, p.type, v);
    else
#pragma unroll
        for (int k = 0; k < GROUP; k++)
            if (k < count) Samples<A>::write(p.y, place + k, p.type, v[k]);
}

bool is_identity(const Axis& a) { return a.up == 1 && a.down == 1 && a.pad0 == 0 && a.n_in == a.n_out; }

template <typename A> int run(PointwisePlan plan, void* stream) {
    const int64_t threads = LARGEST_GRID * THREADS;  // of one launch
    const bool small = plan.items <= 0xffffffffLL && plan.channels <= 0xffffffffLL;
    for (plan.first_item = 0; plan.first_item < plan.items; plan.first_item += threads) {
        const int64_t blocks = (smaller(plan.items - plan.first_item, threads) + THREADS - 1) / THREADS;
        const int error = small ? launch(&pointwise_kernel<A, uint32_t>, blocks, THREADS, 0, stream, plan)
                                : launch(&pointwise_kernel<A, uint64_t>, blocks, THREADS, 0, stream, plan);
        if (error) return error;
    }
    return 0;
}

}  // namespace

namespace multiscale {

bool is_pointwise(const FilteredLReLU& op) {
    return !op.up.filter && !op.down.filter && is_identity(op.up.y) && is_identity(op.up.x) && is_identity(op.down.y) &&
           is_identity(op.down.x);
}

int filtered_lrelu_pointwise(const FilteredLReLU& op, void* stream) {
    const int height = op.up.y.n_in, width = op.up.x.n_in, groups = (int)(((int64_t)width + GROUP - 1) / GROUP);
    const bool aligned = width % GROUP == 0 && is_aligned(op.x, op.type) && is_aligned(op.y, op.type);
    const int64_t items = op.maps * height * groups;
    const PointwisePlan plan{op.x, op.y, op.bias, op.codes, op.channels, op.code_bytes, op.type, op.slopes,
                             height, width, groups, aligned, op.slope, op.clamp, op.up.gain, op.down.gain, items, 0};
    return op.type == FLOAT64 ? run<double>(plan, stream) : run<float>(plan, stream);
}

}  // namespace multiscale
