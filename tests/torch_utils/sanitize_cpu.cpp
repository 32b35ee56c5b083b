// Runs the CPU kernels on random arguments, in arrays without a byte to spare: a sanitizer finds what lies outside.

#include <cstdio>
#include <random>

#include "cpu.cpp"

namespace {

std::mt19937 random_bits(1);
int draw(int first, int last) { return std::uniform_int_distribution<int>(first, last)(random_bits); }
int draw_factor() { return 1 << draw(0, 2); }

template <typename T> std::vector<T> values(size_t n) {
    std::vector<T> v(n);
    for (T& x : v) x = T(draw(-100, 100)) / 50;
    v.shrink_to_fit();
    return v;
}

Axis axis(int n_in, int taps, int up, int down, int pad0, int pad1) {
    return {n_in, (n_in * up + pad0 + pad1 - (taps - 1) + down - 1) / down, up, down, pad0};
}

// A random resampling of n_y x n_x samples, its filter in `memory`; nothing may be left of the samples.
template <typename T> Resampling resampling(int n_y, int n_x, bool up, bool down, bool pad, std::vector<T>& memory) {
    Resampling r{};
    const int kind = draw(0, 2);  // none, separable, dense
    r.separable = kind == 1;
    r.taps_y = kind ? draw(1, 32) : 1;
    r.taps_x = kind == 2 ? draw(1, 32) : r.taps_y;
    memory = values<T>(r.separable ? r.taps_y : r.taps_y * r.taps_x);
    if (draw(0, 1))  // its own mirror image, as low-pass filters are
        for (size_t i = 0; i < memory.size(); i++) memory[i] = 1;
    r.filter = kind ? memory.data() : nullptr;
    r.flip = draw(0, 1);
    r.gain = 1.5;
    const auto padding = [&] { return pad ? draw(-5, 40) : 0; };
    r.y = axis(n_y, r.taps_y, up ? draw_factor() : 1, down ? draw_factor() : 1, padding(), padding());
    r.x = axis(n_x, r.taps_x, up ? draw_factor() : 1, down ? draw_factor() : 1, padding(), padding());
    return r;
}

bool is_empty(const Resampling& r) { return r.y.n_out < 1 || r.x.n_out < 1; }

Axis transposed(const Axis& a, int taps) { return {a.n_out, a.n_in, a.down, a.up, taps - 1 - a.pad0}; }

Resampling transposed(Resampling r) {
    r.y = transposed(r.y, r.taps_y);
    r.x = transposed(r.x, r.taps_x);
    r.flip = !r.flip;
    return r;
}

template <typename T> bool run_upfirdn2d(Type type) {
    std::vector<T> filter;
    Upfirdn2d op{nullptr, nullptr, draw(0, 3), type, resampling<T>(draw(1, 60), draw(1, 60), true, true, true, filter)};
    const Resampling& r = op.resampling;
    if (is_empty(r)) return false;
    auto x = values<T>(op.maps * r.y.n_in * r.x.n_in), y = values<T>(op.maps * r.y.n_out * r.x.n_out);
    op.x = x.data(), op.y = y.data();
    return upfirdn2d_cpu(&op, draw(1, 3)) == 0;
}

template <typename T> bool run_filtered_lrelu(Type type) {
    std::vector<T> fu, fd;
    FilteredLReLU op{};
    op.type = type, op.maps = draw(1, 4), op.channels = draw(1, 2), op.slope = 0.2, op.clamp = 0.7;
    op.up = resampling<T>(draw(1, 40), draw(1, 40), true, false, true, fu);
    if (is_empty(op.up)) return false;
    op.down = resampling<T>(op.up.y.n_out, op.up.x.n_out, false, true, false, fd);
    if (is_empty(op.down)) return false;
    const int phases = std::max(op.up.x.up, op.down.x.down);
    op.code_bytes = round_up(ceil_div(op.up.x.n_out, phases), CODE_BLOCK) / 4 * phases;
    std::vector<uint8_t> codes(op.maps * op.up.y.n_out * op.code_bytes);
    auto x = values<T>(op.maps * op.up.y.n_in * op.up.x.n_in), bias = values<T>(op.channels);
    auto y = values<T>(op.maps * op.down.y.n_out * op.down.x.n_out);
    op.x = x.data(), op.y = y.data(), op.bias = bias.data();
    op.slopes = ACTIVATE;
    bool fine = filtered_lrelu_cpu(&op, draw(1, 3)) == 0;
    op.codes = codes.data(), op.slopes = REMEMBER;
    fine &= filtered_lrelu_cpu(&op, draw(1, 3)) == 0;
    std::swap(op.up, op.down);
    op.up = transposed(op.up), op.down = transposed(op.down);
    op.x = y.data(), op.y = x.data(), op.bias = nullptr, op.slopes = MULTIPLY;
    return fine & (filtered_lrelu_cpu(&op, draw(1, 3)) == 0);
}

}  // namespace

int main() {
    int runs = 0;
    for (int i = 0; i < 300; i++)
        runs += run_upfirdn2d<float>(FLOAT32) + run_upfirdn2d<double>(FLOAT64) + run_filtered_lrelu<float>(FLOAT32) +
                run_filtered_lrelu<double>(FLOAT64);
    std::printf("%d runs\n", runs);
    return runs < 300;
}
