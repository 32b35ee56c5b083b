// The ops on a CPU: a pipeline of stages for one map, each of whose rows is a weighted sum of shifted rows of the last.
//
// Rows keep their samples split into phases, so that every sum runs over contiguous memory whatever the factors: with P
// phases, sample P*q + r stands at place q of phase r. The upsampled rows of a filtered leaky ReLU have L = lcm(up, down)
// phases, its input rows L / up, its output rows L / down; nothing is multiplied by an inserted zero, nothing is computed
// to be dropped, and a stage keeps only the few rows that the next one's filter spans, in a ring: they stay in the cache.
//
//     x row + bias -> [horizontal up] -> vertical up -> leaky ReLU, codes -> vertical down -> [horizontal down] -> y row
//
// A dense filter does both directions in one stage. Written with the vector extensions of GCC and Clang.

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <new>
#include <numeric>
#include <type_traits>
#include <vector>

#include "ops.h"

namespace {

#if defined(__AVX512F__)
constexpr int VECTOR_BYTES = 64, REGISTERS = 32;
#elif defined(__AVX__)
constexpr int VECTOR_BYTES = 32, REGISTERS = 16;
#else
constexpr int VECTOR_BYTES = 16, REGISTERS = 16;
#endif

// Rows that are summed at a time: what they share is loaded once. (float64 is for checks: less to compile.)
template <typename T> constexpr int TOGETHER = sizeof(T) == 8 ? 1 : REGISTERS == 32 ? 4 : 2;

constexpr int CODES_PER_BYTE = 4;
constexpr int CODE_BLOCK = 64;  // samples to which native.py rounds up a phase's codes: at least 4 vectors
constexpr int SMALLEST_BAND = 16;  // output rows; the rows that a filter spans are computed once more for each band

template <typename T> struct Simd {
    static constexpr int LANES = VECTOR_BYTES / sizeof(T);
    using Integer = std::conditional_t<sizeof(T) == 4, int32_t, int64_t>;
    typedef T Vector __attribute__((vector_size(VECTOR_BYTES)));
    typedef Integer Integers __attribute__((vector_size(VECTOR_BYTES)));
    typedef uint8_t Bytes __attribute__((vector_size(LANES)));

    static Vector first_lanes(Vector v, Integer n) {  // zeros from lane n on
        Integers lane;
        for (int i = 0; i < LANES; i++) lane[i] = i;
        return lane < n ? v : Vector{};
    }
};

template <typename V, typename P> inline V load(const P* p) { V v; std::memcpy(&v, p, sizeof v); return v; }
template <typename V, typename P> inline void store(P* p, V v) { std::memcpy(p, &v, sizeof v); }

int64_t floor_div(int64_t a, int64_t b) { return a / b - (a % b < 0); }
int64_t ceil_div(int64_t a, int64_t b) { return -floor_div(-a, b); }
int64_t round_up(int64_t n, int64_t unit) { return ceil_div(n, unit) * unit; }

constexpr Axis unchanged(int32_t n) { return {n, n, 1, 1, 0}; }

// ---------------------------------------------------------------------------------------------------------------------
// Filters and rows

// The filter as it is correlated, [height, width], scaled.
template <typename T> struct Kernel {
    int height = 1, width = 1;
    std::vector<T> g;

    T at(int64_t y, int64_t x) const { return g[y * width + x]; }

    bool is_mirrored() const {  // from left to right, in pairs
        for (int y = 0; y < height; y++)
            for (int x = 0; x < width / 2; x++)
                if (at(y, x) != at(y, width - 1 - x)) return false;
        return width % 2 == 0;
    }
};

template <typename T> Kernel<T> dense_kernel(const Resampling& r) {
    Kernel<T> k{r.taps_y, r.taps_x, {}};
    const int taps = r.taps_y * r.taps_x;
    const T* f = static_cast<const T*>(r.filter);
    for (int i = 0; i < taps; i++) k.g.push_back(T((f ? f[r.flip ? i : taps - 1 - i] : T(1)) * r.gain));
    return k;
}

// One pass of a separable filter, with the square root of the gain.
template <typename T> Kernel<T> separable_kernel(const Resampling& r, bool vertical) {
    Resampling line = r;
    line.taps_x = 1;
    line.gain = std::sqrt(r.gain);
    Kernel<T> k = dense_kernel<T>(line);
    if (!vertical) std::swap(k.height, k.width);
    return k;
}

// The latest rows of a stage. A row: `phases` times [left margin, samples, right margin], `stride` samples each; zeros
// beyond the samples. Margins and capacity are what the next stage asks for before the memory is made.
template <typename T> struct Ring {
    int64_t phases = 1, length = 0, left = 0, stride = 0, rows = 1;

    Ring(int64_t phases, int64_t n) : phases(phases), length(n) {
        stride = round_up(ceil_div(n, phases), Simd<T>::LANES);
    }

    int64_t phase_length(int64_t phase) const { return ceil_div(length - phase, phases); }

    void reserve(int64_t first, int64_t last) {  // places that will be read in some phase, from first on, before last
        const int64_t right = std::max(stride - left, last);
        left = std::max(left, round_up(-first, Simd<T>::LANES));
        stride = round_up(left + right, Simd<T>::LANES);
    }

    void allocate(int64_t window) {
        while (rows < window) rows *= 2;
        const size_t size = rows * phases * stride * sizeof(T);
        memory.reset(static_cast<T*>(std::aligned_alloc(VECTOR_BYTES, size)));
        if (!memory) throw std::bad_alloc();
        std::memset(static_cast<void*>(memory.get()), 0, size);
    }

    T* row(int64_t j) const { return memory.get() + (j & (rows - 1)) * phases * stride; }
    T* samples(int64_t j, int64_t phase) const { return row(j) + phase * stride + left; }

private:
    struct Free { void operator()(void* p) const { std::free(p); } };
    std::unique_ptr<T, Free> memory;
};

// ---------------------------------------------------------------------------------------------------------------------
// What is done to sums on their way to memory

struct Plain {
    template <int V, typename Vector> void operator()(Vector*, int64_t, int64_t, int64_t) const {}
};

template <typename T, Slopes MODE> struct Activation {
    using S = Simd<T>;
    T slope, clamp;
    uint8_t* codes;            // of the map
    int64_t row_bytes, phase_bytes;
    int64_t first, last;       // rows whose codes are this pipeline's to write

    // V vectors of row m from place q of a phase on; a chunk's codes are a byte for each lane, two bits for each vector.
    template <int V, typename Vector> void operator()(Vector* v, int64_t m, int64_t phase, int64_t q) const {
        const int64_t place = m * row_bytes + phase * phase_bytes + q / CODES_PER_BYTE;
        if constexpr (MODE == MULTIPLY) {
            const auto packed = __builtin_convertvector(load<typename S::Bytes>(codes + place), typename S::Integers);
            for (int i = 0; i < V; i++) {
                const auto negative = packed & (1 << 2 * i), clamped = packed & (2 << 2 * i);
                v[i] *= negative != 0 ? Vector{} + slope : Vector{} + T(1);
                v[i] = clamped != 0 ? Vector{} : v[i];
            }
        } else {
            const Vector largest = Vector{} + clamp, smallest = -largest;
            typename S::Integers packed{};
            for (int i = 0; i < V; i++) {
                const Vector sloped = v[i] * slope;
                if (MODE == REMEMBER) {
                    const auto positive = v[i] > Vector{};
                    v[i] = positive ? v[i] : sloped;
                    const auto clamped = (v[i] >= largest) | (v[i] <= smallest);
                    packed |= (~positive & (1 << 2 * i)) | (clamped & (2 << 2 * i));
                } else if (slope <= 1) {
                    v[i] = v[i] > sloped ? v[i] : sloped;
                } else {
                    v[i] = v[i] < sloped ? v[i] : sloped;
                }
                v[i] = smallest > v[i] ? smallest : v[i];  // one instruction each, which lets NaN through
                v[i] = largest < v[i] ? largest : v[i];
            }
            if (MODE == REMEMBER && m >= first && m < last)
                store(codes + place, __builtin_convertvector(packed, typename S::Bytes));
        }
    }
};

// ---------------------------------------------------------------------------------------------------------------------
// Stages

// Rows on demand: after require(j), rows up to j have been made, and those that the ring still holds can be read.
template <typename T> struct Rows {
    Ring<T> ring;

    explicit Rows(Ring<T> ring) : ring(std::move(ring)) {}
    virtual ~Rows() = default;
    virtual void start(int64_t first) { next = first; }
    void require(int64_t last) { while (next <= last) next += make(next); }

protected:
    int64_t next = 0;

    virtual int64_t make(int64_t row) = 0;  // makes a row, or a few; says how many
};

// Rows of a map, with the bias of its channel, split into phases.
template <typename T> struct Source : Rows<T> {
    const T* map = nullptr;
    T bias = 0;

    Source(int32_t width, int64_t phases) : Rows<T>(Ring<T>(phases, width)) {}

private:
    int64_t make(int64_t j) override {
        switch (this->ring.phases) {
            case 1: split<1>(j); break;
            case 2: split<2>(j); break;
            default: split<4>(j);
        }
        return 1;
    }

    template <int PHASES> void split(int64_t j) {
        const T* x = map + j * this->ring.length;
        for (int phase = 0; phase < PHASES; phase++) {
            T* y = this->ring.samples(j, phase);
            const int64_t n = this->ring.phase_length(phase);
            for (int64_t q = 0; q < n; q++) y[q] = x[q * PHASES + phase] + bias;
        }
    }
};

// Rows that are weighted sums of another stage's. R neighbouring rows are made together, each phase by itself. Where the
// filter is its own mirror image, each row's mirrored samples are added before they are weighted, once for all R sums.
template <typename T, int R, typename Finish = Plain> struct Stage : Rows<T> {
    using Vector = typename Simd<T>::Vector;
    static constexpr int LANES = Simd<T>::LANES;
    static constexpr bool PLAIN = std::is_same_v<Finish, Plain>;
    static constexpr int CHUNK = R == 1 && PLAIN ? 8 : 4;  // vectors that are summed at a time, of each of the rows
    static constexpr int MOST_ROWS = 128;                  // that meet filters of up to 64 taps

    Stage(Rows<T>& source, const Kernel<T>& g, const Axis& y, const Axis& x, Finish finish = {})
        : Rows<T>(Ring<T>(source.ring.phases * x.up / x.down, x.n_out)), finish(finish), source(source), y(y),
          folded(CAN_FOLD && x.up == 1 && g.is_mirrored()) {
        int64_t window = 1;
        for (int residue = 0; residue < y.up; residue++) {
            tables.push_back(table(g, x, residue));
            const auto& rows = tables.back().rows;
            if (!rows.empty()) window = std::max(window, rows.back().j - rows.front().j + 1);
        }
        Ring<T>& ring = source.ring;
        ring.allocate(window + TOGETHER<T> - 1);  // a source may be some rows ahead
        for (auto& t : tables)
            for (auto& c : t.columns) {
                c.offset += c.phase * ring.stride + ring.left;
                c.mirror += c.mirror_phase * ring.stride + ring.left;
            }
    }

    Finish finish;

    void start(int64_t first) override {
        this->next = first;
        source.start(std::clamp<int64_t>(ceil_div(first * y.down - y.pad0, y.up), 0, y.n_in));
    }

private:
    static constexpr bool CAN_FOLD = R > 1 && PLAIN;

    struct Row {     // of the source, that sums [from, to) of the R need
        int64_t j;
        int from, to;
    };
    struct Column {  // where a tap lies in a row of the source (and its mirrored one), and its weights in the R sums
        int64_t phase, offset, mirror_phase, mirror;
        T w[R];
    };
    struct Table {   // what rows m, m + 1, .. are made of, where m % up is the table's index
        std::vector<Row> rows;              // at m = the index
        std::vector<Column> columns;        // [phase of the result][row][taps[phase]]
        std::vector<int64_t> first, taps;   // for each phase: its first column; columns for each row
    };

    Rows<T>& source;
    Axis y;
    bool folded;
    std::vector<Table> tables;

    Table table(const Kernel<T>& g, const Axis& x, int residue) {
        const auto tap = [&](int64_t j, int r) { return j * y.up + y.pad0 - (residue + r) * int64_t(y.down); };
        Table t;
        const int64_t end = floor_div((residue + R - 1) * int64_t(y.down) - y.pad0 + g.height - 1, y.up);
        for (int64_t j = ceil_div(residue * int64_t(y.down) - y.pad0, y.up); j <= end; j++) {
            int from = 0, to = R;
            while (from < to && tap(j, from) >= g.height) from++;
            while (from < to && tap(j, to - 1) < 0) to--;
            if (from < to) t.rows.push_back({j, from, to});
        }
        for (int64_t phase = 0; phase < this->ring.phases; phase++) {
            t.first.push_back(t.columns.size());
            t.taps.push_back(0);
            for (const Row& row : t.rows) {
                const size_t before = t.columns.size();
                for (int i = 0; i < (folded ? g.width / 2 : g.width); i++)
                    if (reads(x, phase, i)) {
                        t.columns.push_back(column(x, phase, i, g.width - 1 - i));
                        for (int r = row.from; r < row.to; r++) t.columns.back().w[r] = g.at(tap(row.j, r), i);
                    }
                t.taps.back() = t.columns.size() - before;
            }
        }
        return t;
    }

    // Whether a tap of the filter meets a sample, and not a zero between two, in this phase of the result.
    static bool reads(const Axis& x, int64_t phase, int tap) { return (phase * x.down - x.pad0 + tap) % x.up == 0; }

    Column column(const Axis& x, int64_t phase, int tap, int mirrored_tap) {
        const int64_t reach = round_up(this->ring.phase_length(phase), LANES), phases = source.ring.phases;
        Column c{};
        const auto place = [&](int i, int64_t& source_phase, int64_t& offset) {
            const int64_t j = (phase * x.down - x.pad0 + i) / x.up;
            offset = floor_div(j, phases);
            source_phase = j - offset * phases;
            source.ring.reserve(offset, offset + reach);
        };
        place(tap, c.phase, c.offset);
        if (folded) place(mirrored_tap, c.mirror_phase, c.mirror);
        return c;
    }

    int64_t make(int64_t m) override {
        const Table& t = tables[m % y.up];
        const int64_t shift = m / y.up * y.down;
        int64_t first = 0, last = t.rows.size();  // of the source rows, those that there are
        while (first < last && t.rows[first].j + shift < 0) first++;
        while (first < last && t.rows[last - 1].j + shift >= y.n_in) last--;
        if (first < last) source.require(t.rows[last - 1].j + shift);
        const T* samples[MOST_ROWS];
        for (int64_t i = first; i < last; i++) samples[i] = source.ring.row(t.rows[i].j + shift);
        for (int64_t phase = 0; phase < this->ring.phases; phase++) {
            const Column* columns = t.columns.data() + t.first[phase] + first * t.taps[phase];
            const Sum sum{samples + first, t.rows.data() + first, columns, last - first, t.taps[phase]};
            if (CAN_FOLD && folded) make_phase<true>(m, phase, sum);
            else make_phase<false>(m, phase, sum);
        }
        return R;
    }

    struct Sum {
        const T* const* samples;
        const Row* rows;
        const Column* columns;
        int64_t n_rows, taps;
    };

    template <bool FOLD> void make_phase(int64_t m, int64_t phase, const Sum& sum) {
        const int64_t n = this->ring.phase_length(phase);
        for (int64_t q = 0; q < n; q += CHUNK * LANES)
            switch (std::min<int64_t>(ceil_div(n - q, LANES), CHUNK)) {
                case 1: chunk<1, FOLD>(m, phase, q, sum); break;
                case 2: chunk<2, FOLD>(m, phase, q, sum); break;
                case 3: chunk<3, FOLD>(m, phase, q, sum); break;
                case 4: chunk<4, FOLD>(m, phase, q, sum); break;
                case 5: chunk<std::min(5, CHUNK), FOLD>(m, phase, q, sum); break;
                case 6: chunk<std::min(6, CHUNK), FOLD>(m, phase, q, sum); break;
                case 7: chunk<std::min(7, CHUNK), FOLD>(m, phase, q, sum); break;
                case 8: chunk<CHUNK, FOLD>(m, phase, q, sum);
            }
        if (const int64_t rest = n % LANES)
            for (int r = 0; r < R; r++) {
                T* last = this->ring.samples(m + r, phase) + n - rest;
                store(last, Simd<T>::first_lanes(load<Vector>(last), rest));
            }
    }

    template <int V, bool FOLD> void chunk(int64_t m, int64_t phase, int64_t q, const Sum& sum) {
        Vector sums[R][V] = {};
        const Column* columns = sum.columns;
        for (int64_t i = 0; i < sum.n_rows; i++, columns += sum.taps) {
            const T* x = sum.samples[i] + q;
            switch (sum.rows[i].from * 5 + sum.rows[i].to) {
                case 1: add<0, 1, V, FOLD>(sums, x, columns, sum.taps); break;
                case 2: add<0, 2, V, FOLD>(sums, x, columns, sum.taps); break;
                case 3: add<0, 3, V, FOLD>(sums, x, columns, sum.taps); break;
                case 4: add<0, 4, V, FOLD>(sums, x, columns, sum.taps); break;
                case 7: add<1, 2, V, FOLD>(sums, x, columns, sum.taps); break;
                case 8: add<1, 3, V, FOLD>(sums, x, columns, sum.taps); break;
                case 9: add<1, 4, V, FOLD>(sums, x, columns, sum.taps); break;
                case 13: add<2, 3, V, FOLD>(sums, x, columns, sum.taps); break;
                case 14: add<2, 4, V, FOLD>(sums, x, columns, sum.taps); break;
                case 19: add<3, 4, V, FOLD>(sums, x, columns, sum.taps); break;
            }
        }
#pragma GCC unroll 4
        for (int r = 0; r < R; r++) {
            if (m + r >= y.n_out) break;
            finish.template operator()<V>(sums[r], m + r, phase, q);
            T* result = this->ring.samples(m + r, phase) + q;
#pragma GCC unroll 8
            for (int v = 0; v < V; v++) store(result + v * LANES, sums[r][v]);
        }
    }

    // What one row of the source adds to sums [FROM, TO): numbers that the compiler knows, so that all stay in registers.
    template <int FROM, int TO, int V, bool FOLD>
    static inline __attribute__((always_inline)) void add(
        Vector (&sums)[R][V], const T* x, const Column* columns, int64_t taps) {
        if constexpr (TO <= R)
            for (const Column* c = columns; c < columns + taps; c++)
#pragma GCC unroll 8
                for (int v = 0; v < V; v++) {
                    Vector samples = load<Vector>(x + c->offset + v * LANES);
                    if (FOLD) samples += load<Vector>(x + c->mirror + v * LANES);
#pragma GCC unroll 4
                    for (int r = FROM; r < TO; r++) sums[r][v] += c->w[r] * samples;
                }
    }
};

// Rows [first, last) of the last stage, its phases interleaved again.
template <int PHASES, typename T> void write(Rows<T>& rows, T* map, int64_t first, int64_t last) {
    for (int64_t m = first; m < last; m++) {
        rows.require(m);
        const T* x[PHASES];
        for (int phase = 0; phase < PHASES; phase++) x[phase] = rows.ring.samples(m, phase);
        const int64_t length = rows.ring.length, whole = length / PHASES;
        T* y = map + m * length;
        for (int64_t q = 0; q < whole; q++)
            for (int phase = 0; phase < PHASES; phase++) y[q * PHASES + phase] = x[phase][q];
        for (int64_t i = whole * PHASES; i < length; i++) y[i] = x[i - whole * PHASES][whole];
    }
}

template <typename T> void write(Rows<T>& rows, T* map, int64_t first, int64_t last) {
    rows.start(first);
    switch (rows.ring.phases) {
        case 1: write<1>(rows, map, first, last); break;
        case 2: write<2>(rows, map, first, last); break;
        default: write<4>(rows, map, first, last);
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Pipelines

// The stages of one map, each the source of the next.
template <typename T> struct Pipeline {
    std::vector<std::unique_ptr<Rows<T>>> stages;
    Source<T>* source;

    Pipeline(int32_t width, int64_t phases) : source(new Source<T>(width, phases)) { stages.emplace_back(source); }

    Rows<T>& last() const { return *stages.back(); }

    template <int R, typename Finish = Plain>
    Stage<T, R, Finish>* add(const Kernel<T>& g, const Axis& y, const Axis& x, Finish finish = {}) {
        auto* stage = new Stage<T, R, Finish>(last(), g, y, x, finish);
        stages.emplace_back(stage);
        return stage;
    }

    // Upwards: the horizontal pass first, while there are few rows.
    template <typename Finish> Stage<T, TOGETHER<T>, Finish>* add_up(const Resampling& r, Finish finish) {
        if (!r.separable) return add<TOGETHER<T>>(dense_kernel<T>(r), r.y, r.x, finish);
        add<1>(separable_kernel<T>(r, false), unchanged(r.y.n_in), r.x);
        return add<TOGETHER<T>>(separable_kernel<T>(r, true), r.y, unchanged(r.x.n_out), finish);
    }

    // Downwards: the vertical pass first, which leaves few rows.
    void add_down(const Resampling& r) {
        if (!r.separable) { add<TOGETHER<T>>(dense_kernel<T>(r), r.y, r.x); return; }
        add<TOGETHER<T>>(separable_kernel<T>(r, true), r.y, unchanged(r.x.n_in));
        add<1>(separable_kernel<T>(r, false), unchanged(r.y.n_out), r.x);
    }
};

// Run `work(pipeline, map, first row, last row)` for bands of all maps, each thread with a pipeline of its own.
template <typename Make, typename Work>
int for_bands(int64_t maps, int64_t n_out, int threads, const Make& make, const Work& work) {
    const int64_t wanted = threads > 1 && maps < 4 * threads ? ceil_div(4 * threads, std::max<int64_t>(maps, 1)) : 1;
    const int64_t bands = std::clamp<int64_t>(n_out / SMALLEST_BAND, 1, wanted);
    bool failed = false;
#pragma omp parallel num_threads(threads)
    {
        decltype(make()) pipeline;
        try {
            pipeline = make();
        } catch (const std::bad_alloc&) {
#pragma omp atomic write
            failed = true;
        }
#pragma omp for schedule(dynamic)
        for (int64_t item = 0; item < maps * bands; item++) {
            const int64_t band = item % bands;
            if (pipeline) work(*pipeline, item / bands, band * n_out / bands, (band + 1) * n_out / bands);
        }
    }
    return failed;
}

template <typename T> int upfirdn2d(const Upfirdn2d& op, int threads) {
    const Resampling& r = op.resampling;
    const int32_t phases = std::lcm(r.x.up, r.x.down);
    const auto make = [&] {
        auto pipeline = std::make_unique<Pipeline<T>>(r.x.n_in, phases / r.x.up);
        if (r.y.down > 1 || r.x.down > 1) pipeline->add_down(r);
        else pipeline->add_up(r, Plain{});
        pipeline->last().ring.allocate(TOGETHER<T>);
        return pipeline;
    };
    return for_bands(op.maps, r.y.n_out, threads, make, [&](Pipeline<T>& p, int64_t map, int64_t first, int64_t last) {
        p.source->map = static_cast<const T*>(op.x) + map * r.y.n_in * r.x.n_in;
        write(p.last(), static_cast<T*>(op.y) + map * r.y.n_out * r.x.n_out, first, last);
    });
}

template <typename T, Slopes MODE> int filtered_lrelu(const FilteredLReLU& op, int threads) {
    const Axis &y = op.down.y, &x = op.down.x;
    const int32_t phases = std::lcm(op.up.x.up, x.down);
    struct Layer : Pipeline<T> {
        using Pipeline<T>::Pipeline;
        Stage<T, TOGETHER<T>, Activation<T, MODE>>* middle = nullptr;
    };
    const auto make = [&] {
        auto layer = std::make_unique<Layer>(op.up.x.n_in, phases / op.up.x.up);
        const int64_t phase_bytes = round_up(ceil_div(op.up.x.n_out, phases), CODE_BLOCK) / CODES_PER_BYTE;
        layer->middle = layer->add_up(
            op.up, Activation<T, MODE>{T(op.slope), T(op.clamp), nullptr, op.code_bytes, phase_bytes, 0, 0});
        layer->add_down(op.down);
        layer->last().ring.allocate(TOGETHER<T>);
        return layer;
    };
    // Upsampled rows belong to the first band that needs them.
    const auto end = [&](int64_t row) { return row ? (row - 1) * y.down - y.pad0 + op.down.taps_y : 0; };
    return for_bands(op.maps, y.n_out, threads, make, [&](Layer& layer, int64_t map, int64_t first, int64_t last) {
        auto& activation = layer.middle->finish;
        if (MODE != ACTIVATE) activation.codes = op.codes + map * op.up.y.n_out * op.code_bytes;
        activation.first = end(first);
        activation.last = last == y.n_out ? op.up.y.n_out : end(last);
        layer.source->map = static_cast<const T*>(op.x) + map * op.up.y.n_in * op.up.x.n_in;
        layer.source->bias = op.bias ? static_cast<const T*>(op.bias)[map % op.channels] : T(0);
        write(layer.last(), static_cast<T*>(op.y) + map * y.n_out * x.n_out, first, last);
    });
}

template <typename T> int filtered_lrelu(const FilteredLReLU& op, int threads) {
    switch (op.slopes) {
        case ACTIVATE: return filtered_lrelu<T, ACTIVATE>(op, threads);
        case REMEMBER: return filtered_lrelu<T, REMEMBER>(op, threads);
        default: return filtered_lrelu<T, MULTIPLY>(op, threads);
    }
}

}  // namespace

// Both return 0, or 1 if there was not enough memory for the scratch rows of each thread.

EXPORT int upfirdn2d_cpu(const Upfirdn2d* op, int threads) {
    return op->type == FLOAT64 ? upfirdn2d<double>(*op, threads) : upfirdn2d<float>(*op, threads);
}

EXPORT int filtered_lrelu_cpu(const FilteredLReLU* op, int threads) {
    return op->type == FLOAT64 ? filtered_lrelu<double>(*op, threads) : filtered_lrelu<float>(*op, threads);
}
