// Vectors of the instruction set compiled for, and conversions to the type of the sums.
#pragma once

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

}  // namespace
}  // namespace locap_msda
