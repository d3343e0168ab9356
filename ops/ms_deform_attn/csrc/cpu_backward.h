// Backward: whole levels of one head at a time, so that nobody else adds to the same gradient.
#pragma once

#include "cpu_samples.h"

namespace locap_msda {
namespace {

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

int backward(const Job& job) {
    return job.problem->dtype == LOCAP_MSDA_F64 ? backward_as<double>(job) : backward_as<float>(job);
}

}  // namespace
}  // namespace locap_msda
