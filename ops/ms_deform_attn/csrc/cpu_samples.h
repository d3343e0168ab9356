// Buffers of one head, and where the samples of a block of queries are in them.
#pragma once

#include "cpu_vectors.h"

namespace locap_msda {
namespace {

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

}  // namespace
}  // namespace locap_msda
