// Forward: channels in whole vectors.
#pragma once

#include "cpu_samples.h"

namespace locap_msda {
namespace {

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

int forward(const Job& job) {
    return job.problem->dtype == LOCAP_MSDA_F64 ? forward_as<double>(job) : forward_as<float>(job);
}

}  // namespace
}  // namespace locap_msda
