/* Multi-scale deformable attention: the C interface of the two compiled libraries.
 *
 * One library holds the functions locap_msda_cpu_*, another locap_msda_cuda_*; both know nothing of torch or Python.
 * Letters: N images, S tokens of all levels, Q queries, M heads, D channels per head, L levels, K points per level.
 *
 *   T  the type of value, out and grad_out (`dtype`)
 *   A  the type of sums: double if T is double, else float
 *   P  the type of offsets and logits and of their gradients (`points_dtype`), fused functions only
 *
 * Every tensor is contiguous and in the order of its letters, except `value` and `reference`, whose outer strides are
 * given in `problem`. The last axis is always contiguous. No alignment beyond that of one element may be assumed:
 * wide loads are for the library to check.
 *
 *   value           T  [N, S, M, D]        level by level, row by row; strides in `value_strides`
 *   locations       A  [N, Q, M, L, K, 2]  (x, y), 0..1 from one outer edge of the level to the other
 *   weights         A  [N, Q, M, L, K]     used as they are
 *   out, grad_out   T  [N, Q, M, D]
 *   grad_value      A  [N, S, M, D]        contiguous whatever the strides of value; every element is written
 *   grad_locations  A  [N, Q, M, L, K, 2]
 *   grad_weights    A  [N, Q, M, L, K]
 *
 *   offsets         P  [N, Q, M, L, K, 2]  (x, y)
 *   logits          P  [N, Q, M, L, K]     softmax over the joint L * K axis gives the weights
 *   reference       A  [N, Q, L, R]        R = `reference_dim`: 2 = (x, y), 4 = (centre x, centre y, width, height);
 *                                          strides in `reference_strides`, 0 on an axis that is broadcast
 *   grad_offsets    P  [N, Q, M, L, K, 2]
 *   grad_logits     P  [N, Q, M, L, K]
 *
 *   locations of the fused form, in type A:  R = 2: reference + offset / (W_l, H_l)
 *                                            R = 4: reference_xy + offset / K * reference_wh * 0.5
 *   The fused form gives no gradient of `reference`; a caller that wants one uses the unfused form.
 *
 * A sample at u = x * W_l - 0.5, v = y * H_l - 0.5 counts if u > -1, v > -1, u < W_l and v < H_l; else it gives 0 and
 * so are its gradients (a NaN location compares false). Corners outside the level read 0 and get no gradient.
 *
 * All outputs are overwritten, none is expected to be zeroed. A gradient pointer may be NULL: that gradient is not
 * wanted. Any size may be 0; then outputs that exist are still written (zeros where a sum is empty).
 * Sums are formed in type A and rounded once to the type of the output.
 */
#ifndef LOCAP_MS_DEFORM_ATTN_H
#define LOCAP_MS_DEFORM_ATTN_H

#include <stdint.h>

#define LOCAP_MSDA_ABI 1
#define LOCAP_MSDA_MAX_LEVELS 64 /* more give LOCAP_MSDA_BAD_SIZES */

#if defined(_WIN32)
#define LOCAP_MSDA_EXPORT __declspec(dllexport)
#else
#define LOCAP_MSDA_EXPORT __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

enum { LOCAP_MSDA_F32 = 0, LOCAP_MSDA_F16 = 1, LOCAP_MSDA_BF16 = 2, LOCAP_MSDA_F64 = 3 };

/* Return codes. From LOCAP_MSDA_CUDA_ERROR on: that number plus a cudaError_t. */
enum {
    LOCAP_MSDA_OK = 0,
    LOCAP_MSDA_BAD_DTYPE = 1,          /* an unknown code, or double mixed with another type */
    LOCAP_MSDA_BAD_SIZES = 2,          /* negative, too large, or the levels do not add up to `tokens` */
    LOCAP_MSDA_OUT_OF_MEMORY = 3,      /* of the host */
    LOCAP_MSDA_NOT_DETERMINISTIC = 4,  /* `deterministic` was asked for and this case has no such path */
    LOCAP_MSDA_WORKSPACE_TOO_SMALL = 5,
    LOCAP_MSDA_CUDA_ERROR = 1000
};

/* Which function a workspace is for. */
enum {
    LOCAP_MSDA_FORWARD = 0,
    LOCAP_MSDA_BACKWARD = 1,
    LOCAP_MSDA_FUSED_FORWARD = 2,
    LOCAP_MSDA_FUSED_BACKWARD = 3
};

typedef struct {
    int64_t batch, tokens, heads, dim, queries, levels, points; /* N S M D Q L K */
    const int64_t* shapes;        /* host memory, [L, 2]: rows (H_l, W_l) */
    int64_t value_strides[3];     /* of N, S, M, in elements */
    int64_t reference_strides[3]; /* of N, Q, L, in elements; fused functions only */
    void* workspace;              /* memory of the device (cuda) or host (cpu), aligned to 256 bytes */
    int64_t workspace_bytes;      /* at least what locap_msda_*_workspace asked for */
    void* stream;                 /* cudaStream_t; cpu: ignored */
    int32_t device;               /* CUDA ordinal, made current for the call; cpu: ignored */
    int32_t threads;              /* at most so many; cuda: ignored */
    int32_t dtype;                /* of T */
    int32_t points_dtype;         /* of P: that of T, or LOCAP_MSDA_F32 beside a 16-bit T; fused functions only */
    int32_t reference_dim;        /* 2 or 4; fused functions only */
    int32_t deterministic;        /* not 0: the same inputs must give the same bits every time */
} locap_msda_problem;

/* Q equal to S suggests that the queries are the tokens themselves, so that neighbours in the picture sample
 * neighbouring pixels. A library may choose its order of work by that, never its result. */
#define LOCAP_MSDA_DECLARE(LIBRARY)                                                                                    \
    /* LOCAP_MSDA_ABI of the header it was built with. */                                                              \
    LOCAP_MSDA_EXPORT int locap_msda_##LIBRARY##_abi(void);                                                            \
    /* 0 if the library can run on the device (cuda: a driver, a device of that number, code that fits it). */         \
    LOCAP_MSDA_EXPORT int locap_msda_##LIBRARY##_usable(int device);                                                   \
    /* What a return code means: static text, never NULL. */                                                           \
    LOCAP_MSDA_EXPORT const char* locap_msda_##LIBRARY##_error_text(int code);                                         \
    /* Bytes of workspace that the function wants for this problem, 0 for none; pointers in it are not read, except    \
     * `shapes`. */                                                                                                    \
    LOCAP_MSDA_EXPORT int64_t locap_msda_##LIBRARY##_workspace(const locap_msda_problem* problem, int function);       \
    LOCAP_MSDA_EXPORT int locap_msda_##LIBRARY##_forward(                                                              \
        const locap_msda_problem* problem, const void* value, const void* locations, const void* weights, void* out);  \
    LOCAP_MSDA_EXPORT int locap_msda_##LIBRARY##_backward(                                                             \
        const locap_msda_problem* problem, const void* value, const void* locations, const void* weights,              \
        const void* grad_out, void* grad_value, void* grad_locations, void* grad_weights);                             \
    LOCAP_MSDA_EXPORT int locap_msda_##LIBRARY##_fused_forward(                                                        \
        const locap_msda_problem* problem, const void* value, const void* offsets, const void* logits,                 \
        const void* reference, void* out);                                                                             \
    LOCAP_MSDA_EXPORT int locap_msda_##LIBRARY##_fused_backward(                                                       \
        const locap_msda_problem* problem, const void* value, const void* offsets, const void* logits,                 \
        const void* reference, const void* grad_out, void* grad_value, void* grad_offsets, void* grad_logits);

LOCAP_MSDA_DECLARE(cpu)
LOCAP_MSDA_DECLARE(cuda)

#ifdef __cplusplus
}
#endif
#endif
