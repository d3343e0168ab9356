// Deterministic sums: gradients as multiples of one power of two, added up as 64-bit integers.
//
// The unit follows from the largest |grad_out| and |weight|: a pixel receives at most queries * points products of the
// two, and their sum stays below 2^62 units.
#pragma once

#include "device.cuh"

namespace msda {

struct Units {
  unsigned long long grad_out, weight;  // largest magnitudes: doubles' bits, which are in the order of the numbers
  double per_one, size;
};

template <typename T>
__global__ void __launch_bounds__(MAX_THREADS)
    find_largest(const T* __restrict__ numbers, int64_t count, unsigned long long* largest) {
  const int64_t threads = int64_t(gridDim.x) * blockDim.x;
  unsigned long long mine = 0;
  for (int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += threads) {
    const double number = double(load<wider<T>>(numbers + i));
    mine = max(mine, static_cast<unsigned long long>(__double_as_longlong(fabs(number))));  // a NaN is largest
  }
  for (int d = 1; d < 32; d *= 2) mine = max(mine, from_partner<32>(mine, d));
  if (threadIdx.x % 32 == 0) atomicMax(largest, mine);
}

static __global__ void choose_units(Units* units, double terms, bool softmax) {
  const double weight = softmax ? 1 : __longlong_as_double(static_cast<long long>(units->weight));
  const double bound = __longlong_as_double(static_cast<long long>(units->grad_out)) * weight * terms;
  const double exponent = bound > 0 ? fmin(floor(62 - log2(bound)), 1000.0) : bound;  // 0, or NaN
  if (threadIdx.x == 0) {
    units->per_one = bound <= 1.7e308 ? exp2(exponent) : bound - bound;  // NaN from infinity
    units->size = 1 / units->per_one;
  }
}

template <typename real>
__global__ void __launch_bounds__(MAX_THREADS)
    to_floating(const unsigned long long* __restrict__ sums, const Units* units, int64_t count, real* out) {
  const int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i < count) out[i] = real(double(static_cast<long long>(sums[i])) * units->size);
}

}  // namespace msda
