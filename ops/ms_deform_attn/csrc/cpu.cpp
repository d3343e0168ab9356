// The CPU library: checks, the order of the queries, threads, and the choice of an instruction set.
#include <atomic>
#include <cstdlib>
#include <new>
#include <system_error>
#include <thread>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "cpu_kernel.h"

namespace locap_msda {
namespace {

constexpr int64_t kLimit = int64_t(1) << 31;   // cells and queries are counted in 32 bits
constexpr int64_t kTile = 8;                   // side of a tile of queries
constexpr int64_t kLargePage = int64_t(1) << 21;
constexpr double kWorkPerThread = 2e6;         // multiply-adds below which another thread does not pay

Kernels kernels() {
#if defined(LOCAP_MSDA_X86)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512cd") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
        return kernels_v4();
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2"))
        return kernels_v3();
#endif
    return kernels_base();
}

void parallel(int workers, int64_t tasks, void (*body)(void*, int64_t, int), void* context) {
    std::atomic<int64_t> next{0};
    const auto work = [&](int worker) {
        for (int64_t task; (task = next.fetch_add(1)) < tasks;) body(context, task, worker);
    };
    std::vector<std::thread> others;
    try {
        others.reserve(size_t(workers));
        for (int worker = 1; worker < workers && worker < tasks; ++worker) others.emplace_back(work, worker);
    } catch (const std::system_error&) {  // no more threads: those there are do all of it
    }
    work(0);
    for (auto& other : others) other.join();
}

// Large pages, where the system has them, spare most of the faults and address look-ups that a fresh buffer costs.
void* allocate(int64_t bytes) {
    const int64_t page = bytes >= kLargePage ? kLargePage : 64;
    void* memory = std::aligned_alloc(size_t(page), size_t((bytes + page) / page * page));
#if defined(__linux__)
    if (memory && page == kLargePage) madvise(memory, size_t((bytes + page) / page * page), MADV_HUGEPAGE);
#endif
    return memory;
}
void release(void* memory) { std::free(memory); }

bool checked(const locap_msda_problem& p, bool fused, int& code) {
    const auto fail = [&](int found) { return code = found, false; };
    const auto known = [](int dtype) { return dtype >= LOCAP_MSDA_F32 && dtype <= LOCAP_MSDA_F64; };
    if (!known(p.dtype)) return fail(LOCAP_MSDA_BAD_DTYPE);
    if (fused && p.points_dtype != p.dtype && (p.points_dtype != LOCAP_MSDA_F32 || p.dtype == LOCAP_MSDA_F64))
        return fail(LOCAP_MSDA_BAD_DTYPE);
    if (fused && p.reference_dim != 2 && p.reference_dim != 4) return fail(LOCAP_MSDA_BAD_SIZES);
    for (int64_t size : {p.batch, p.tokens, p.heads, p.dim, p.queries, p.levels, p.points})
        if (size < 0 || size >= kLimit) return fail(LOCAP_MSDA_BAD_SIZES);
    if (p.levels > LOCAP_MSDA_MAX_LEVELS) return fail(LOCAP_MSDA_BAD_SIZES);
    int64_t tokens = 0, cells = 0;
    for (int64_t l = 0; l < p.levels; ++l) {
        const int64_t height = p.shapes[2 * l], width = p.shapes[2 * l + 1];
        if (height < 0 || width < 0 || height >= kLimit || width >= kLimit) return fail(LOCAP_MSDA_BAD_SIZES);
        tokens += height * width;
        cells += (height + 2) * (width + 2) + width + 4;
    }
    if (tokens != p.tokens || cells >= kLimit) return fail(LOCAP_MSDA_BAD_SIZES);
    return true;
}

// Tile by tile where the queries are the tokens, else one after the other.
std::vector<int32_t> order_of_work(const locap_msda_problem& p) {
    std::vector<int32_t> order;
    order.reserve(size_t(p.queries));
    if (p.queries != p.tokens) {
        for (int64_t q = 0; q < p.queries; ++q) order.push_back(int32_t(q));
        return order;
    }
    for (int64_t l = 0, start = 0; l < p.levels; ++l) {
        const int64_t height = p.shapes[2 * l], width = p.shapes[2 * l + 1];
        for (int64_t top = 0; top < height; top += kTile)
            for (int64_t left = 0; left < width; left += kTile)
                for (int64_t y = top; y < top + kTile && y < height; ++y)
                    for (int64_t x = left; x < left + kTile && x < width; ++x)
                        order.push_back(int32_t(start + y * width + x));
        start += height * width;
    }
    return order;
}

int run(const locap_msda_problem* given, Job job, bool backward) {
    locap_msda_problem problem = *given;
    int code = LOCAP_MSDA_OK;
    if (!checked(problem, job.fused, code)) return code;
    const double work = double(problem.batch) * problem.queries * problem.heads * problem.levels * problem.points *
                        (problem.dim + 16) * 4;
    const double useful = work / kWorkPerThread + 1;
    if (problem.threads < 1) problem.threads = 1;
    if (problem.threads > useful) problem.threads = int32_t(useful);
    try {
        const std::vector<int32_t> order = order_of_work(problem);
        job.problem = &problem;
        job.order = order.data();
        job.parallel = parallel, job.allocate = allocate, job.release = release;
        static const Kernels chosen = kernels();
        return backward ? chosen.backward(job) : chosen.forward(job);
    } catch (const std::bad_alloc&) {
        return LOCAP_MSDA_OUT_OF_MEMORY;
    }
}

// Gradients of the softmaxed weights need a place of their own where those of the logits are narrower.
int64_t score_bytes(const locap_msda_problem& p) {
    if (p.points_dtype != LOCAP_MSDA_F16 && p.points_dtype != LOCAP_MSDA_BF16) return 0;
    return p.batch * p.queries * p.heads * p.levels * p.points * 4;
}

}  // namespace
}  // namespace locap_msda

using locap_msda::Job;

extern "C" {

int locap_msda_cpu_abi(void) { return LOCAP_MSDA_ABI; }

int locap_msda_cpu_usable(int) { return LOCAP_MSDA_OK; }

const char* locap_msda_cpu_error_text(int code) {
    switch (code) {
        case LOCAP_MSDA_OK: return "no error";
        case LOCAP_MSDA_BAD_DTYPE: return "this mixture of types is not supported";
        case LOCAP_MSDA_BAD_SIZES: return "the sizes are negative, too large or contradict each other";
        case LOCAP_MSDA_OUT_OF_MEMORY: return "out of memory";
        case LOCAP_MSDA_NOT_DETERMINISTIC: return "there is no deterministic way for this case";
        case LOCAP_MSDA_WORKSPACE_TOO_SMALL: return "the workspace is too small";
        default: return "unknown error";
    }
}

int64_t locap_msda_cpu_workspace(const locap_msda_problem* problem, int function) {
    return function == LOCAP_MSDA_FUSED_BACKWARD ? locap_msda::score_bytes(*problem) : 0;
}

int locap_msda_cpu_forward(const locap_msda_problem* problem, const void* value, const void* locations,
                           const void* weights, void* out) {
    Job job{};
    job.value = value, job.points = locations, job.scores = weights, job.out = out;
    return locap_msda::run(problem, job, false);
}

int locap_msda_cpu_backward(const locap_msda_problem* problem, const void* value, const void* locations,
                            const void* weights, const void* grad_out, void* grad_value, void* grad_locations,
                            void* grad_weights) {
    Job job{};
    job.value = value, job.points = locations, job.scores = weights, job.grad_out = grad_out;
    job.grad_value = grad_value, job.grad_points = grad_locations, job.score_sums = grad_weights;
    return locap_msda::run(problem, job, true);
}

int locap_msda_cpu_fused_forward(const locap_msda_problem* problem, const void* value, const void* offsets,
                                 const void* logits, const void* reference, void* out) {
    Job job{};
    job.fused = true;
    job.value = value, job.points = offsets, job.scores = logits, job.reference = reference, job.out = out;
    return locap_msda::run(problem, job, false);
}

int locap_msda_cpu_fused_backward(const locap_msda_problem* problem, const void* value, const void* offsets,
                                  const void* logits, const void* reference, const void* grad_out, void* grad_value,
                                  void* grad_offsets, void* grad_logits) {
    Job job{};
    job.fused = true;
    job.value = value, job.points = offsets, job.scores = logits, job.reference = reference, job.grad_out = grad_out;
    job.grad_value = grad_value, job.grad_points = grad_offsets, job.grad_scores = grad_logits;
    if (grad_logits && locap_msda::score_bytes(*problem)) {
        if (problem->workspace_bytes < locap_msda::score_bytes(*problem)) return LOCAP_MSDA_WORKSPACE_TOO_SMALL;
        job.score_sums = problem->workspace;
    } else {
        job.score_sums = grad_logits;
    }
    return locap_msda::run(problem, job, true);
}

}  // extern "C"
