// Multi-scale deformable attention on the CPU, compiled once per instruction set (-DLOCAP_MSDA_ISA=base, v3, v4).
//
// The heads of `value` lie interleaved, [S, M, D], so that the rows of one head fall into few cache sets. Each head is
// therefore first copied to a buffer of its own, in the type of the sums, its rows padded to whole vectors and every
// level surrounded by a border of zeros: a sample then needs no test and no conversion, and a sample that does not count
// is sent to a stretch of zeros. Queries are worked on in small tiles of the picture, level by level, so that their
// samples share the nearest cache.
//
// Only built-ins of the compiler are used here: an inline function of the standard library, compiled for one instruction
// set, could be linked into the code for another.
#include "cpu_kernel.h"

#define INLINE inline __attribute__((always_inline))

namespace locap_msda {
namespace {

#if defined(__AVX512F__)
#define VECTOR_BYTES 64
#elif defined(__AVX__)
#define VECTOR_BYTES 32
#else
#define VECTOR_BYTES 16
#endif

template <class A>
struct Vectors;
template <>
struct Vectors<float> {
    typedef float Aligned __attribute__((vector_size(VECTOR_BYTES), may_alias));
    typedef float Loose __attribute__((vector_size(VECTOR_BYTES), aligned(4), may_alias));
    typedef int32_t Int;
};
template <>
struct Vectors<double> {
    typedef double Aligned __attribute__((vector_size(VECTOR_BYTES), may_alias));
    typedef double Loose __attribute__((vector_size(VECTOR_BYTES), aligned(8), may_alias));
    typedef int64_t Int;
};

constexpr int kWidthStep = 16;    // rows of the buffers are a multiple of this many channels
constexpr int kBlockSamples = 512;  // at most, of one level
constexpr int kBlockQueries = 64;   // at most


// ---- conversions, free of branches so that loops over them become vector code ----

INLINE float bits_to_float(uint32_t bits) {
    float x;
    __builtin_memcpy(&x, &bits, 4);
    return x;
}
INLINE uint32_t float_to_bits(float x) {
    uint32_t bits;
    __builtin_memcpy(&bits, &x, 4);
    return bits;
}
INLINE float from_bf16(uint16_t h) { return bits_to_float(uint32_t(h) << 16); }
INLINE uint16_t to_bf16(float x) {
    const uint32_t bits = float_to_bits(x);
    const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    return uint16_t(x != x ? (bits >> 16) | 0x40u : rounded);
}
INLINE float from_f16(uint16_t h) {
    const uint32_t magnitude = uint32_t(h & 0x7fffu) << 13, exponent = magnitude & 0x0f800000u;
    const float normal = bits_to_float(magnitude + 0x38000000u);
    const float special = bits_to_float(magnitude + 0x70000000u);                              // infinity, NaN
    const float tiny = bits_to_float(magnitude + 0x38800000u) - bits_to_float(0x38800000u);  // subnormal
    const float x = exponent == 0x0f800000u ? special : exponent == 0 ? tiny : normal;
    return bits_to_float(float_to_bits(x) | (uint32_t(h & 0x8000u) << 16));
}
INLINE uint16_t to_f16(float x) {
    const uint32_t bits = float_to_bits(x), sign = bits & 0x80000000u, magnitude = bits ^ sign;
    const uint32_t tiny = float_to_bits(bits_to_float(magnitude) + 0.5f) - 0x3f000000u;
    const uint32_t normal = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
    const uint32_t large = magnitude > 0x7f800000u ? 0x7e00u : 0x7c00u;
    const uint32_t half = magnitude >= 0x47800000u ? large : magnitude < 0x38800000u ? tiny : normal;
    return uint16_t(half | (sign >> 16));
}

INLINE int64_t element_bytes(int dtype) { return dtype == LOCAP_MSDA_F64 ? 8 : dtype == LOCAP_MSDA_F32 ? 4 : 2; }

// Element `at` of a tensor given by address and type.
INLINE const char* element(const void* data, int dtype, int64_t at) {
    return static_cast<const char*>(data) + at * element_bytes(dtype);
}
INLINE char* element(void* data, int dtype, int64_t at) { return static_cast<char*>(data) + at * element_bytes(dtype); }

INLINE void load(double* to, const char* from, int, int64_t count) { __builtin_memcpy(to, from, count * 8); }
INLINE void load(float* to, const char* from, int dtype, int64_t count) {
    if (dtype == LOCAP_MSDA_F32) {
        const float* x = reinterpret_cast<const float*>(from);
        for (int64_t i = 0; i < count; ++i) to[i] = x[i];
        return;
    }
    const uint16_t* x = reinterpret_cast<const uint16_t*>(from);
    if (dtype == LOCAP_MSDA_BF16)
        for (int64_t i = 0; i < count; ++i) to[i] = from_bf16(x[i]);
    else
        for (int64_t i = 0; i < count; ++i) to[i] = from_f16(x[i]);
}
INLINE void store(char* to, int, const double* from, int64_t count) { __builtin_memcpy(to, from, count * 8); }
INLINE void store(char* to, int dtype, const float* from, int64_t count) {
    if (dtype == LOCAP_MSDA_F32) {
        float* x = reinterpret_cast<float*>(to);
        for (int64_t i = 0; i < count; ++i) x[i] = from[i];
        return;
    }
    uint16_t* x = reinterpret_cast<uint16_t*>(to);
    if (dtype == LOCAP_MSDA_BF16)
        for (int64_t i = 0; i < count; ++i) x[i] = to_bf16(from[i]);
    else
        for (int64_t i = 0; i < count; ++i) x[i] = to_f16(from[i]);
}

INLINE float exponential(float x) {  // x <= 0; relative error below 2 units in the last place
    x = x < -87.0f ? -87.0f : x;
    const float rounded = x * 1.44269504f + 12582912.0f, n = rounded - 12582912.0f;
    const float r = (x - n * 0.693145752f) - n * 1.42860677e-6f;
    float p = 1.98756915e-4f;
    p = p * r + 1.39819995e-3f;
    p = p * r + 8.33345190e-3f;
    p = p * r + 4.16657962e-2f;
    p = p * r + 1.66666655e-1f;
    p = p * r + 0.5f;
    p = p * r * r + r + 1.0f;
    return p * bits_to_float((float_to_bits(rounded) << 23) + 0x3f800000u);
}
INLINE double exponential(double x) { return __builtin_exp(x); }

// ---- sizes and scratch memory ----

struct Level {
    int64_t height, width, start;  // of the first token
    int64_t first_cell, stride;    // in the buffer of a head: cell of the border's corner, cells per row
};

struct Plan {
    int64_t width;                // channels of a buffer's row
    int64_t zeros, cells;         // of a head's buffer: where its stretch of zeros begins, and all of it
    int64_t zero_cells;           // of that stretch: four corners from its first cell stay inside
    int64_t largest_level;        // cells
    int64_t samples, block;       // per query: L * K; queries per block
    int levels;
    Level level[LOCAP_MSDA_MAX_LEVELS];
};

INLINE int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }
INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
INLINE int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

Plan make_plan(const locap_msda_problem& p) {
    Plan plan;
    plan.width = larger(ceil_div(p.dim, kWidthStep), 1) * kWidthStep;
    plan.levels = int(p.levels);
    plan.samples = p.levels * p.points;
    plan.block = larger(smaller(kBlockSamples / larger(p.points, 1), kBlockQueries), 1);
    int64_t start = 0, cell = 0, widest = 0, largest = 0;
    for (int l = 0; l < plan.levels; ++l) {
        const int64_t height = p.shapes[2 * l], width = p.shapes[2 * l + 1], cells = (height + 2) * (width + 2);
        plan.level[l] = {height, width, start, cell, width + 2};
        start += height * width;
        cell += cells;
        widest = larger(widest, width);
        largest = larger(largest, cells);
    }
    plan.zeros = cell;
    plan.zero_cells = widest + 4;
    plan.cells = cell + plan.zero_cells;
    plan.largest_level = largest;
    return plan;
}

// The samples of one block of queries on one level, query after query.
template <class A>
struct Samples {
    A *points, *probability;           // as they come: (x, y) in turn; softmax over all levels
    A *score;                          // attention weight; 0 where the sample does not count
    A *lx, *ly;                        // fractions
    A *w00, *w01, *w10, *w11;          // bilinear weights times score
    A* valid;                          // 1 or 0
    typename Vectors<A>::Int* cell;    // of the upper left corner
    A *rows, *dots;                    // channels per query; partial dot products per corner
};

constexpr int64_t kDots = 4 * VECTOR_BYTES / 8;  // numbers per sample in `dots`, at most

template <class T>
INLINE void take(T*& part, char*& memory, int64_t count) {
    part = reinterpret_cast<T*>(memory);
    memory += ceil_div(count * int64_t(sizeof(T)), 64) * 64;
}

// Divide memory among the parts; without memory, find out how many bytes that takes.
template <class A>
int64_t make_samples(const Plan& plan, int64_t points, char* memory, Samples<A>& s) {
    char* const begin = memory;
    const int64_t count = ceil_div(plan.block * larger(points, 1), 16) * 16;
    A** const parts[] = {&s.score, &s.lx, &s.ly, &s.w00, &s.w01, &s.w10, &s.w11, &s.valid};
    for (A** part : parts) take(*part, memory, count);
    take(s.points, memory, 4 * count);
    take(s.probability, memory, plan.block * plan.samples);
    take(s.cell, memory, count);
    take(s.dots, memory, count * kDots);
    take(s.rows, memory, plan.width * plan.block);
    return memory - begin;
}

// ---- buffers of one head ----

template <class A>
void pack(const Job& job, const Plan& plan, int64_t image, int64_t head, const Level& level, A* to) {
    const locap_msda_problem& p = *job.problem;
    const int64_t width = plan.width, row = level.stride * width, pad = width - p.dim;
    const int64_t bytes = p.value_strides[1] * element_bytes(p.dtype);
    __builtin_memset(to, 0, row * sizeof(A));
    for (int64_t y = 0; y < level.height; ++y) {
        const int64_t token = level.start + y * level.width;
        const char* from = element(job.value, p.dtype,
                                   image * p.value_strides[0] + token * p.value_strides[1] + head * p.value_strides[2]);
        A* cell = to + (y + 1) * row;
        for (int64_t c = 0; c < width; ++c) cell[c] = 0;
        cell += width;
        for (int64_t x = 0; x < level.width; ++x, cell += width, from += bytes) {
            load(cell, from, p.dtype, p.dim);
            for (int64_t c = 0; c < pad; ++c) cell[p.dim + c] = 0;
        }
        for (int64_t c = 0; c < width; ++c) cell[c] = 0;
    }
    __builtin_memset(to + (level.height + 1) * row, 0, row * sizeof(A));
}

template <class A>
void unpack(const Job& job, const Plan& plan, int64_t image, int64_t head, const Level& level, const A* from) {
    const locap_msda_problem& p = *job.problem;
    A* const grad = static_cast<A*>(job.grad_value);
    for (int64_t y = 0; y < level.height; ++y) {
        const A* cell = from + ((y + 1) * level.stride + 1) * plan.width;
        A* to = grad + (((image * p.tokens + level.start + y * level.width) * p.heads + head) * p.dim);
        for (int64_t x = 0; x < level.width; ++x, cell += plan.width, to += p.heads * p.dim)
            for (int64_t c = 0; c < p.dim; ++c) to[c] = cell[c];
    }
}

// ---- where the samples of a block are ----

template <class A>
void softmax_rows(A* score, int64_t rows, int64_t count) {
    for (int64_t i = 0; i < rows; ++i) {
        A* row = score + i * count;
        A top = row[0];
        for (int64_t j = 1; j < count; ++j) top = row[j] > top ? row[j] : top;
        for (int64_t j = 0; j < count; ++j) row[j] = row[j] - top;
    }
    for (int64_t t = 0; t < rows * count; ++t) score[t] = exponential(score[t]);
    for (int64_t i = 0; i < rows; ++i) {
        A* row = score + i * count;
        A sum = 0;
        for (int64_t j = 0; j < count; ++j) sum += row[j];
        const A scale = 1 / sum;
        for (int64_t j = 0; j < count; ++j) row[j] *= scale;
    }
}

INLINE int point_type(const Job& job) {
    const locap_msda_problem& p = *job.problem;
    return job.fused ? p.points_dtype : p.dtype == LOCAP_MSDA_F64 ? LOCAP_MSDA_F64 : LOCAP_MSDA_F32;
}

// Ask for what the next block will read, some of its queries at a time: the stride is too long for the processor's own
// foresight.
INLINE void prefetch(const void* data, int dtype, int64_t at, int64_t count) {
    const char* end = element(data, dtype, at + count);
    for (const char* line = element(data, dtype, at); line < end; line += 64) __builtin_prefetch(line, 0, 2);
}

struct Block {
    int64_t image, head, rows, next_rows;
    const int32_t *queries, *next;
};

// The place of a query's first sample.
INLINE int64_t sample_of(const Job& job, const Plan& plan, const Block& b, int32_t query) {
    const locap_msda_problem& p = *job.problem;
    return ((b.image * p.queries + query) * p.heads + b.head) * plan.samples;
}

// The place of a query's first channel in the output.
INLINE int64_t row_of(const Job& job, const Block& b, int32_t query) {
    const locap_msda_problem& p = *job.problem;
    return ((b.image * p.queries + query) * p.heads + b.head) * p.dim;
}

void prefetch_next(const Job& job, const Plan& plan, const Block& b, int64_t first, int64_t step) {
    const locap_msda_problem& p = *job.problem;
    const int dtype = point_type(job), exact = p.dtype == LOCAP_MSDA_F64 ? LOCAP_MSDA_F64 : LOCAP_MSDA_F32;
    for (int64_t i = first; i < b.next_rows; i += step) {
        const int64_t at = sample_of(job, plan, b, b.next[i]), row = row_of(job, b, b.next[i]);
        prefetch(job.points, dtype, 2 * at, 2 * plan.samples);
        prefetch(job.scores, dtype, at, plan.samples);
        if (job.out) prefetch(job.out, p.dtype, row, p.dim);
        if (job.grad_out) prefetch(job.grad_out, p.dtype, row, p.dim);
        if (job.grad_points) prefetch(job.grad_points, dtype, 2 * at, 2 * plan.samples);
        if (job.score_sums) prefetch(job.score_sums, exact, at, plan.samples);
    }
}

template <class A>
void softmax_of_block(const Job& job, const Plan& plan, Samples<A>& s, const Block& b) {
    const int dtype = point_type(job);
    for (int64_t i = 0; i < b.rows; ++i)
        load(s.probability + i * plan.samples, element(job.scores, dtype, sample_of(job, plan, b, b.queries[i])), dtype,
             plan.samples);
    softmax_rows(s.probability, b.rows, plan.samples);
}

// Copy points (x, y in turn) and weights of the block's samples on a level. K = 0: any number.
template <class A, int K>
void copy_samples(const Job& job, const Plan& plan, Samples<A>& s, const Block& b, int l) {
    const int64_t points = K ? K : job.problem->points;
    const int dtype = point_type(job);
    for (int64_t i = 0; i < b.rows; ++i) {
        const int64_t at = sample_of(job, plan, b, b.queries[i]) + l * points;
        load(s.points + 2 * i * points, element(job.points, dtype, 2 * at), dtype, 2 * points);
        if (!job.fused) load(s.score + i * points, element(job.scores, dtype, at), dtype, points);
        else
            for (int64_t j = 0; j < points; ++j) s.score[i * points + j] = s.probability[i * plan.samples + l * points + j];
    }
}

// From offsets to locations.
template <class A>
void locate(const Job& job, const Plan& plan, Samples<A>& s, const Block& b, int l) {
    const locap_msda_problem& p = *job.problem;
    const A share = A(0.5) / A(p.points), per_width = 1 / A(plan.level[l].width), per_height = 1 / A(plan.level[l].height);
    for (int64_t i = 0; i < b.rows; ++i) {
        const A* reference = static_cast<const A*>(job.reference) + b.image * p.reference_strides[0] +
                             b.queries[i] * p.reference_strides[1] + l * p.reference_strides[2];
        const A x = reference[0], y = reference[1];
        const A along_x = p.reference_dim == 4 ? reference[2] * share : per_width;
        const A along_y = p.reference_dim == 4 ? reference[3] * share : per_height;
        A* point = s.points + 2 * i * p.points;
        for (int64_t j = 0; j < p.points; ++j) {
            point[2 * j] = x + point[2 * j] * along_x;
            point[2 * j + 1] = y + point[2 * j + 1] * along_y;
        }
    }
}

// Turn locations and weights into cells, fractions and the weights of the four corners.
template <class A>
void weigh(Samples<A>& samples, int64_t count, const Level& level, int64_t first_cell, int64_t zeros) {
    typedef typename Vectors<A>::Int Int;
    const Samples<A> s = samples;
    const Int nowhere = Int(zeros), first = Int(first_cell + level.stride + 1), stride = Int(level.stride);
    const A width = A(level.width), height = A(level.height);
#pragma GCC ivdep
    for (int64_t t = 0; t < count; ++t) {
        const A u = s.points[2 * t] * width - A(0.5), v = s.points[2 * t + 1] * height - A(0.5);
        const bool counts = (u > A(-1)) & (v > A(-1)) & (u < width) & (v < height);
        const A uc = counts ? u : A(0), vc = counts ? v : A(0), a = counts ? s.score[t] : A(0);
        Int column = Int(uc), row = Int(vc);  // towards zero; floor is one less below
        column -= A(column) > uc ? 1 : 0;
        row -= A(row) > vc ? 1 : 0;
        const A lx = uc - A(column), ly = vc - A(row);
        const Int inside = first + row * stride + column;
        s.cell[t] = counts ? inside : nowhere;
        const A lower = a * ly, upper = a - lower, w11 = lower * lx, w01 = upper * lx;
        s.w11[t] = w11;
        s.w10[t] = lower - w11;
        s.w01[t] = w01;
        s.w00[t] = upper - w01;
        s.lx[t] = lx;
        s.ly[t] = ly;
        s.score[t] = a;
        s.valid[t] = counts ? A(1) : A(0);
    }
}

// The samples of a block on a level, ready for use; its cells begin at `first_cell`, its zeros at `zeros`.
template <class A>
void prepare(const Job& job, const Plan& plan, Samples<A>& s, const Block& b, int l, int64_t first_cell, int64_t zeros) {
    if (job.problem->points == 4) copy_samples<A, 4>(job, plan, s, b, l);
    else copy_samples<A, 0>(job, plan, s, b, l);
    if (job.fused) locate(job, plan, s, b, l);
    weigh(s, b.rows * job.problem->points, plan.level[l], first_cell, zeros);
}

INLINE Block block_at(const Job& job, const Plan& plan, int64_t image, int64_t head, int64_t begin, int64_t end) {
    const int64_t rows = smaller(plan.block, end - begin), next = begin + rows;
    return {image, head, rows, smaller(plan.block, end - next), job.order + begin, job.order + next};
}

// ---- forward: C channels, a whole number of vectors, from channel `at` on ----

template <class A, int C>
void gather(const Samples<A>& samples, const A* cells, int64_t width, int64_t at, int64_t rows, int64_t points,
            int64_t stride, bool first) {
    typedef typename Vectors<A>::Aligned V;
    constexpr int lanes = VECTOR_BYTES / sizeof(A), n = C / lanes;
    const Samples<A> s = samples;
    cells += at;
    for (int64_t i = 0, t = 0; i < rows; ++i) {
        V* out = reinterpret_cast<V*>(s.rows + i * width + at);
        V upper[n], lower[n] = {};  // two chains of additions, so that they overlap
#pragma GCC unroll 16
        for (int k = 0; k < n; ++k) upper[k] = first ? V{} : out[k];
        for (int64_t j = 0; j < points; ++j, ++t) {
            const A* top = cells + int64_t(s.cell[t]) * width;
            const A* bottom = top + stride * width;
            const V* p00 = reinterpret_cast<const V*>(top);
            const V* p01 = reinterpret_cast<const V*>(top + width);
            const V* p10 = reinterpret_cast<const V*>(bottom);
            const V* p11 = reinterpret_cast<const V*>(bottom + width);
            const A w00 = s.w00[t], w01 = s.w01[t], w10 = s.w10[t], w11 = s.w11[t];
#pragma GCC unroll 16
            for (int k = 0; k < n; ++k) {
                upper[k] += w00 * p00[k];
                lower[k] += w10 * p10[k];
                upper[k] += w01 * p01[k];
                lower[k] += w11 * p11[k];
            }
        }
#pragma GCC unroll 16
        for (int k = 0; k < n; ++k) out[k] = upper[k] + lower[k];
    }
}

// Rows of the common widths have their own code, in which the width is a constant.
template <class A>
void gather_rows(const Samples<A>& s, const A* cells, int64_t width, int64_t rows, int64_t points, int64_t stride,
                 bool first) {
    int64_t at = 0;
    if constexpr (sizeof(A) == 4) {
        if (width == 32) return gather<A, 32>(s, cells, 32, 0, rows, points, stride, first);
        if (width == 64) return gather<A, 64>(s, cells, 64, 0, rows, points, stride, first);
        for (; width - at >= 128; at += 128) gather<A, 128>(s, cells, width, at, rows, points, stride, first);
        for (; width - at >= 32; at += 32) gather<A, 32>(s, cells, width, at, rows, points, stride, first);
    }
    for (; width - at >= 16; at += 16) gather<A, 16>(s, cells, width, at, rows, points, stride, first);
}

template <class A>
void forward_queries(const Job& job, const Plan& plan, Samples<A>& s, int64_t image, int64_t head, const A* cells,
                     int64_t begin, int64_t end) {
    const locap_msda_problem& p = *job.problem;
    if (plan.samples == 0) __builtin_memset(s.rows, 0, plan.block * plan.width * sizeof(A));
    for (; begin < end; begin += plan.block) {
        const Block b = block_at(job, plan, image, head, begin, end);
        if (job.fused && plan.samples) softmax_of_block(job, plan, s, b);
        for (int l = 0; l < plan.levels && p.points; ++l) {
            prefetch_next(job, plan, b, l, plan.levels);
            prepare(job, plan, s, b, l, plan.level[l].first_cell, plan.zeros);
            gather_rows(s, cells, plan.width, b.rows, p.points, plan.level[l].stride, l == 0);
        }
        for (int64_t i = 0; i < b.rows; ++i)
            store(element(job.out, p.dtype, row_of(job, b, b.queries[i])), p.dtype, s.rows + i * plan.width, p.dim);
    }
}

// Heads are worked on `wave` at a time: first their buffers are filled, then the queries are shared out.
template <class A>
struct Forward {
    const Job& job;
    Plan plan;
    int64_t first_head, wave, chunk, chunks;
    A* cells;
    char* scratch;
    int64_t scratch_bytes;

    A* buffer(int64_t k) const { return cells + k * plan.cells * plan.width; }

    void fill(int64_t k, int l) const {
        const int64_t head = first_head + k;
        if (l == plan.levels)
            __builtin_memset(buffer(k) + plan.zeros * plan.width, 0, plan.zero_cells * plan.width * sizeof(A));
        else
            pack(job, plan, head / job.problem->heads, head % job.problem->heads, plan.level[l],
                 buffer(k) + plan.level[l].first_cell * plan.width);
    }

    void look(int64_t k, int64_t begin, int64_t end, int worker) const {
        const int64_t head = first_head + k;
        Samples<A> s;
        make_samples(plan, job.problem->points, scratch + worker * scratch_bytes, s);
        forward_queries(job, plan, s, head / job.problem->heads, head % job.problem->heads, buffer(k), begin, end);
    }

    static void fill_task(void* self, int64_t task, int) {
        const Forward& f = *static_cast<Forward*>(self);
        f.fill(task / (f.plan.levels + 1), int(task % (f.plan.levels + 1)));
    }
    static void look_task(void* self, int64_t task, int worker) {
        const Forward& f = *static_cast<Forward*>(self);
        const int64_t begin = task % f.chunks * f.chunk;
        f.look(task / f.chunks, begin, smaller(begin + f.chunk, f.job.problem->queries), worker);
    }
    // Both at once: as many heads as there are workers, or more, need no waiting for each other.
    static void head_task(void* self, int64_t head, int worker) {
        Forward f = *static_cast<Forward*>(self);
        f.first_head = head - worker;
        for (int l = 0; l <= f.plan.levels; ++l) f.fill(worker, l);
        f.look(worker, 0, f.job.problem->queries, worker);
    }
};

template <class A>
int forward_as(const Job& job) {
    const locap_msda_problem& p = *job.problem;
    const int64_t heads = p.batch * p.heads;
    if (heads == 0 || p.queries == 0 || p.dim == 0) return LOCAP_MSDA_OK;
    Forward<A> f{job, make_plan(p), 0, smaller(heads, p.threads), 0, 0, nullptr, nullptr, 0};
    f.chunk = ceil_div(larger(ceil_div(p.queries, 4 * p.threads), 256), f.plan.block) * f.plan.block;
    f.chunks = ceil_div(p.queries, f.chunk);
    Samples<A> unused;
    f.scratch_bytes = make_samples(f.plan, p.points, nullptr, unused);
    f.cells = static_cast<A*>(job.allocate(f.wave * f.plan.cells * f.plan.width * sizeof(A)));
    f.scratch = static_cast<char*>(job.allocate(p.threads * f.scratch_bytes));
    if (f.cells && f.scratch) {
        if (heads % p.threads == 0 || heads >= 4 * p.threads) {
            job.parallel(int(f.wave), heads, Forward<A>::head_task, &f);
        } else {
            for (; f.first_head < heads; f.first_head += f.wave) {
                f.wave = smaller(f.wave, heads - f.first_head);
                job.parallel(p.threads, f.wave * (f.plan.levels + 1), Forward<A>::fill_task, &f);
                job.parallel(p.threads, f.wave * f.chunks, Forward<A>::look_task, &f);
            }
        }
    }
    const bool done = f.cells && f.scratch;
    job.release(f.cells);
    job.release(f.scratch);
    return done ? LOCAP_MSDA_OK : LOCAP_MSDA_OUT_OF_MEMORY;
}

// ---- backward: whole levels of one head at a time, so that nobody else adds to the same gradient ----

#if defined(__clang__) || __GNUC__ >= 12
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#if VECTOR_BYTES == 64
#define LOW_HALVES(a, b) SHUFFLE(a, b, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23)
#define HIGH_HALVES(a, b) SHUFFLE(a, b, 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31)
#define LOW_QUARTERS(a, b) SHUFFLE(a, b, 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27)
#define HIGH_QUARTERS(a, b) SHUFFLE(a, b, 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31)
#define EVEN(a, b) SHUFFLE(a, b, 0, 2, 16, 18, 4, 6, 20, 22, 8, 10, 24, 26, 12, 14, 28, 30)
#define ODD(a, b) SHUFFLE(a, b, 1, 3, 17, 19, 5, 7, 21, 23, 9, 11, 25, 27, 13, 15, 29, 31)
#elif VECTOR_BYTES == 32
#define LOW_HALVES(a, b) SHUFFLE(a, b, 0, 1, 2, 3, 8, 9, 10, 11)
#define HIGH_HALVES(a, b) SHUFFLE(a, b, 4, 5, 6, 7, 12, 13, 14, 15)
#define EVEN(a, b) SHUFFLE(a, b, 0, 2, 8, 10, 4, 6, 12, 14)
#define ODD(a, b) SHUFFLE(a, b, 1, 3, 9, 11, 5, 7, 13, 15)
#else
#define EVEN(a, b) SHUFFLE(a, b, 0, 2, 4, 6)
#define ODD(a, b) SHUFFLE(a, b, 1, 3, 5, 7)
#endif
#endif

// Keep the products of the four corners: four partial sums for each, 16 numbers per sample.
INLINE void keep(float* dots, bool first, const Vectors<float>::Aligned* d) {
    typedef Vectors<float>::Aligned V;
    V* to = reinterpret_cast<V*>(dots);
#if VECTOR_BYTES == 64
    const V upper = LOW_HALVES(d[0], d[1]) + HIGH_HALVES(d[0], d[1]);
    const V lower = LOW_HALVES(d[2], d[3]) + HIGH_HALVES(d[2], d[3]);
    const V sum = LOW_QUARTERS(upper, lower) + HIGH_QUARTERS(upper, lower);
    to[0] = first ? sum : to[0] + sum;
#elif VECTOR_BYTES == 32
    const V upper = LOW_HALVES(d[0], d[1]) + HIGH_HALVES(d[0], d[1]);
    const V lower = LOW_HALVES(d[2], d[3]) + HIGH_HALVES(d[2], d[3]);
    to[0] = first ? upper : to[0] + upper;
    to[1] = first ? lower : to[1] + lower;
#else
    for (int corner = 0; corner < 4; ++corner) to[corner] = first ? d[corner] : to[corner] + d[corner];
#endif
}
INLINE void keep(double* dots, bool first, const Vectors<double>::Aligned* d) {
    typedef Vectors<double>::Aligned V;
    V* to = reinterpret_cast<V*>(dots);
    for (int corner = 0; corner < 4; ++corner) to[corner] = first ? d[corner] : to[corner] + d[corner];
}

// The products of four samples with their four corners, corner by corner: 16 numbers.
INLINE void finish(const float* dots, float* to) {
    typedef Vectors<float>::Aligned V;
    constexpr int n = 64 / VECTOR_BYTES;  // vectors per sample
    const V* from = reinterpret_cast<const V*>(dots);
    for (int k = 0; k < n; ++k) {
        const V a = from[k], b = from[n + k], c = from[2 * n + k], d = from[3 * n + k];
        const V ab = EVEN(a, b) + ODD(a, b), cd = EVEN(c, d) + ODD(c, d);
        reinterpret_cast<V*>(to)[k] = EVEN(ab, cd) + ODD(ab, cd);
    }
}
INLINE void finish(const double* dots, double* to) {
    constexpr int lanes = VECTOR_BYTES / 8;
    for (int corner = 0; corner < 4; ++corner)
        for (int sample = 0; sample < 4; ++sample) {
            double sum = 0;
            for (int lane = 0; lane < lanes; ++lane) sum += dots[(sample * 4 + corner) * lanes + lane];
            to[corner * 4 + sample] = sum;
        }
}

template <class A>
constexpr int64_t dots_per_sample() {
    return sizeof(A) == 4 ? 16 : 4 * VECTOR_BYTES / 8;
}

template <class A, int C, bool kGradValue>
void scatter(const Samples<A>& samples, const A* cells, A* grads, int64_t width, int64_t at, int64_t rows,
             int64_t points, int64_t stride) {
    typedef typename Vectors<A>::Aligned V;
    constexpr int lanes = VECTOR_BYTES / sizeof(A), n = C / lanes;
    const Samples<A> s = samples;
    for (int64_t i = 0, t = 0; i < rows; ++i) {
        V g[n];
#pragma GCC unroll 16
        for (int k = 0; k < n; ++k) g[k] = reinterpret_cast<const V*>(s.rows + i * width + at)[k];
        for (int64_t j = 0; j < points; ++j, ++t) {
            const int64_t offset = int64_t(s.cell[t]) * width + at, below = offset + stride * width;
            const int64_t corner[4] = {offset, offset + width, below, below + width};
            const A weight[4] = {s.w00[t], s.w01[t], s.w10[t], s.w11[t]};
            V d[4];
#pragma GCC unroll 4
            for (int c = 0; c < 4; ++c) {
                const V* value = reinterpret_cast<const V*>(cells + corner[c]);
                d[c] = value[0] * g[0];
#pragma GCC unroll 16
                for (int k = 1; k < n; ++k) d[c] += value[k] * g[k];
                if (kGradValue) {
                    V* grad = reinterpret_cast<V*>(grads + corner[c]);
#pragma GCC unroll 16
                    for (int k = 0; k < n; ++k) grad[k] += weight[c] * g[k];
                }
            }
            keep(s.dots + t * dots_per_sample<A>(), at == 0, d);
        }
    }
}

template <class A, bool kGradValue>
void scatter_rows(const Samples<A>& s, const A* cells, A* grads, int64_t width, int64_t rows, int64_t points,
                  int64_t stride) {
    int64_t at = 0;
    if constexpr (sizeof(A) == 4) {
        if (width == 32) return scatter<A, 32, kGradValue>(s, cells, grads, 32, 0, rows, points, stride);
        if (width == 64) return scatter<A, 64, kGradValue>(s, cells, grads, 64, 0, rows, points, stride);
        for (; width - at >= 128; at += 128)
            scatter<A, 128, kGradValue>(s, cells, grads, width, at, rows, points, stride);
        for (; width - at >= 32; at += 32) scatter<A, 32, kGradValue>(s, cells, grads, width, at, rows, points, stride);
    }
    for (; width - at >= 16; at += 16) scatter<A, 16, kGradValue>(s, cells, grads, width, at, rows, points, stride);
}

// From the products to the gradients of score (into s.score) and of u and v (into s.lx and s.ly).
template <class A>
void differentiate(Samples<A>& samples, int64_t count) {
    const Samples<A> s = samples;
    for (int64_t t = 0; t < count; t += 4) {
        A d[16] __attribute__((aligned(64)));
        finish(s.dots + t * dots_per_sample<A>(), d);
#pragma GCC ivdep
        for (int k = 0; k < 4; ++k) {
            const A lx = s.lx[t + k], ly = s.ly[t + k], a = s.score[t + k];
            const bool counts = s.valid[t + k] != 0;
            const A upper = d[4 + k] - d[k], lower = d[12 + k] - d[8 + k];  // along x
            const A left = d[8 + k] - d[k], right = d[12 + k] - d[4 + k];   // along y
            const A along_y = left + lx * (right - left);
            const A score = d[k] + lx * upper + ly * along_y;
            const A x = a * (upper + ly * (lower - upper)), y = a * along_y;
            s.score[t + k] = counts ? score : A(0);
            s.lx[t + k] = counts ? x : A(0);
            s.ly[t + k] = counts ? y : A(0);
        }
    }
}

template <class A>
struct Backward {
    const Job& job;
    Plan plan;
    int at_once;  // levels: all of a head, or one where there are more threads than heads
    char* scratch;
    int64_t scratch_bytes, buffer_bytes;

    // Gradients of one block's points leave in the type they are wanted in. K = 0: any number.
    template <int K>
    void write(Samples<A>& s, const Block& b, int l) const {
        const locap_msda_problem& p = *job.problem;
        const int exact = sizeof(A) == 8 ? LOCAP_MSDA_F64 : LOCAP_MSDA_F32, dtype = point_type(job);
        const int64_t points = K ? K : p.points;
        const A width = A(plan.level[l].width), height = A(plan.level[l].height), share = A(0.5) / A(points);
        for (int64_t i = 0; i < b.rows; ++i) {
            const int64_t at = sample_of(job, plan, b, b.queries[i]) + l * points;
            if (job.score_sums) store(element(job.score_sums, exact, at), exact, s.score + i * points, points);
            if (!job.grad_points) continue;
            A along_x = job.fused ? A(1) : width, along_y = job.fused ? A(1) : height;
            if (job.fused && p.reference_dim == 4) {
                const A* reference = static_cast<const A*>(job.reference) + b.image * p.reference_strides[0] +
                                     b.queries[i] * p.reference_strides[1] + l * p.reference_strides[2];
                along_x = width * (reference[2] * share), along_y = height * (reference[3] * share);
            }
            for (int64_t j = 0; j < points; ++j) {
                s.points[2 * j] = s.lx[i * points + j] * along_x;
                s.points[2 * j + 1] = s.ly[i * points + j] * along_y;
            }
            store(element(job.grad_points, dtype, 2 * at), dtype, s.points, 2 * points);
        }
    }

    void read_grad(Samples<A>& s, const Block& b) const {
        const locap_msda_problem& p = *job.problem;
        for (int64_t i = 0; i < b.rows; ++i) {
            A* row = s.rows + i * plan.width;
            load(row, element(job.grad_out, p.dtype, row_of(job, b, b.queries[i])), p.dtype, p.dim);
            for (int64_t c = p.dim; c < plan.width; ++c) row[c] = 0;
        }
    }

    void block(Samples<A>& s, const Block& b, int l, const A* values, A* grads, int64_t zeros) const {
        const locap_msda_problem& p = *job.problem;
        const Level& level = plan.level[l];
        const int64_t first_cell = level.first_cell - plan.level[l - l % at_once].first_cell;
        prepare(job, plan, s, b, l, first_cell, zeros);
        if (job.grad_value)
            scatter_rows<A, true>(s, values, grads, plan.width, b.rows, p.points, level.stride);
        else
            scatter_rows<A, false>(s, values, grads, plan.width, b.rows, p.points, level.stride);
        if (!job.grad_points && !job.score_sums) return;
        differentiate(s, b.rows * p.points);
        if (p.points == 4) write<4>(s, b, l);
        else write<0>(s, b, l);
    }

    // The levels from `first` to before `last` of a head.
    void levels(int64_t image, int64_t head, int first, int last, char* memory) const {
        const locap_msda_problem& p = *job.problem;
        const int64_t origin = plan.level[first].first_cell, wide = plan.width;
        const int64_t zeros = (last < plan.levels ? plan.level[last].first_cell : plan.zeros) - origin;
        A* values = reinterpret_cast<A*>(memory);
        A* grads = reinterpret_cast<A*>(memory + buffer_bytes);
        Samples<A> s;
        make_samples(plan, p.points, memory + 2 * buffer_bytes, s);
        for (int l = first; l < last; ++l)
            pack(job, plan, image, head, plan.level[l], values + (plan.level[l].first_cell - origin) * wide);
        __builtin_memset(values + zeros * wide, 0, plan.zero_cells * wide * sizeof(A));
        if (job.grad_value) __builtin_memset(grads, 0, (zeros + plan.zero_cells) * wide * sizeof(A));
        for (int64_t q = 0; q < p.queries && p.points; q += plan.block) {
            const Block b = block_at(job, plan, image, head, q, p.queries);
            read_grad(s, b);
            if (job.fused) softmax_of_block(job, plan, s, b);
            for (int l = first; l < last; ++l) {
                prefetch_next(job, plan, b, l - first, last - first);
                block(s, b, l, values, grads, zeros);
            }
        }
        if (!job.grad_value) return;
        for (int l = first; l < last; ++l)
            unpack(job, plan, image, head, plan.level[l], grads + (plan.level[l].first_cell - origin) * wide);
    }

    static void levels_task(void* self, int64_t task, int worker) {
        const Backward& b = *static_cast<Backward*>(self);
        const int64_t tasks = b.plan.levels / b.at_once, head = task / tasks, heads = b.job.problem->heads;
        const int first = int(task % tasks) * b.at_once;
        b.levels(head / heads, head % heads, first, first + b.at_once, b.scratch + worker * b.scratch_bytes);
    }

    // Through the softmax: the gradient of a logit is p (g - sum of p g over the joint axis).
    static void softmax_task(void* self, int64_t row, int worker) {
        const Backward& b = *static_cast<Backward*>(self);
        const locap_msda_problem& p = *b.job.problem;
        const int64_t all = b.plan.samples, block = b.plan.block, first = row * block;
        const int64_t rows = smaller(block, p.batch * p.queries * p.heads - first);
        A* probability = reinterpret_cast<A*>(b.scratch + worker * b.scratch_bytes);
        load(probability, element(b.job.scores, p.points_dtype, first * all), p.points_dtype, rows * all);
        softmax_rows(probability, rows, all);
        const A* grad = static_cast<const A*>(b.job.score_sums) + first * all;
        for (int64_t i = 0; i < rows; ++i, grad += all, probability += all) {
            A sum = 0;
            for (int64_t j = 0; j < all; ++j) sum += probability[j] * grad[j];
            for (int64_t j = 0; j < all; ++j) probability[j] *= grad[j] - sum;
            store(element(b.job.grad_scores, p.points_dtype, (first + i) * all), p.points_dtype, probability, all);
        }
    }
};

template <class A>
int backward_as(const Job& job) {
    const locap_msda_problem& p = *job.problem;
    Backward<A> b{job, make_plan(p), int(p.levels), nullptr, 0, 0};
    const int64_t heads = p.batch * p.heads;
    if (heads == 0 || p.levels == 0) return LOCAP_MSDA_OK;
    if (heads % p.threads != 0 && heads < 4 * p.threads) b.at_once = 1;
    const int64_t tasks = heads * p.levels / b.at_once;
    const int workers = int(smaller(p.threads, tasks));
    const int64_t cells = (b.at_once == 1 ? b.plan.largest_level : b.plan.zeros) + b.plan.zero_cells;
    b.buffer_bytes = cells * b.plan.width * int64_t(sizeof(A));
    Samples<A> unused;
    b.scratch_bytes = 2 * b.buffer_bytes + make_samples(b.plan, p.points, nullptr, unused);
    b.scratch = static_cast<char*>(job.allocate(workers * b.scratch_bytes));
    if (!b.scratch) return LOCAP_MSDA_OUT_OF_MEMORY;
    job.parallel(workers, tasks, Backward<A>::levels_task, &b);
    if (job.fused && job.grad_scores && p.queries && p.points)
        job.parallel(workers, ceil_div(p.batch * p.queries * p.heads, b.plan.block), Backward<A>::softmax_task, &b);
    job.release(b.scratch);
    return LOCAP_MSDA_OK;
}

int forward(const Job& job) {
    return job.problem->dtype == LOCAP_MSDA_F64 ? forward_as<double>(job) : forward_as<float>(job);
}
int backward(const Job& job) {
    return job.problem->dtype == LOCAP_MSDA_F64 ? backward_as<double>(job) : backward_as<float>(job);
}

}  // namespace

#define NAMED_(isa) kernels_##isa
#define NAMED(isa) NAMED_(isa)
Kernels NAMED(LOCAP_MSDA_ISA)() { return {forward, backward}; }

}  // namespace locap_msda
