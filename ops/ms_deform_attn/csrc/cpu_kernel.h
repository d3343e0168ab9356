// What cpu.cpp and the copies of cpu_kernel.cpp, one per instruction set, know of each other.
#pragma once

#include <cstdint>

#include "ms_deform_attn.h"

namespace locap_msda {

// One call. The three point tensors are locations, weights, none or offsets, logits, reference.
struct Job {
    const locap_msda_problem* problem;
    bool fused;
    const void *value, *points, *scores, *reference, *grad_out;
    void *out, *grad_value, *grad_points, *grad_scores;
    void* score_sums;      // fused backward: gradients of the softmaxed weights, type A, [N, Q, M, L, K]
    const int32_t* order;  // the queries in the order of work
    // Runs body(context, task, worker) for every task in 0 .. tasks - 1; workers are numbered from 0.
    void (*parallel)(int workers, int64_t tasks, void (*body)(void*, int64_t, int), void* context);
    void* (*allocate)(int64_t bytes);  // aligned to 64 bytes, nullptr when there is no more
    void (*release)(void*);
};

using Run = int (*)(const Job&);

struct Kernels {
    Run forward, backward;
};

Kernels kernels_base();
#if defined(LOCAP_MSDA_X86)
Kernels kernels_v3();
Kernels kernels_v4();
#endif

}  // namespace locap_msda
