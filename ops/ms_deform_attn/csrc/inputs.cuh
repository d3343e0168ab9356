// Where samples come from: given locations and weights, or offsets and logits that become both in registers.
//
// Both sources answer the same calls. `read` only loads, so that the next samples are on their way while the last
// ones are summed; `position` and `weight` do the arithmetic; `write_...` store derivatives.
#pragma once

#include "device.cuh"

namespace msda {

template <typename real>
struct Raw {
  real x, y, weight, anchor_x, anchor_y;
};

// locations [..., levels, points, 2] and attention weights [..., levels, points].
template <typename C>
struct Given {
  using real = C;
  static constexpr bool fused = false;
  const C* locations;
  const C* weights;
  C* grad_locations;
  C* grad_weights;

  struct Row {
    int64_t first;  // of the levels * points samples of one query and head
  };

  C* grad_points() const { return grad_locations; }
  C* grad_shares() const { return grad_weights; }

  template <int LANES>
  __device__ __forceinline__ Row row(const Problem& p, const Place& place, const Query& query, int) const {
    return {row_index(p, place, query) * (p.levels * p.points)};
  }
  __device__ __forceinline__ Raw<C> read(const Row& row, int, int sample) const {
    const int64_t i = row.first + sample;
    return {load<C>(locations + 2 * i), load<C>(locations + 2 * i + 1), load<C>(weights + i), C(0), C(0)};
  }
  __device__ __forceinline__ C weight(const Row&, const Raw<C>& raw) const { return raw.weight; }
  __device__ __forceinline__ Position<C> position(const Row&, const Raw<C>& raw, const Level& level, int, int) const {
    return scale(raw.x, raw.y, level.height, level.width);
  }
  __device__ __forceinline__ void write_position(const Row& row, int sample, const Level& level, int, int, C x,
                                                 C y) const {
    if (!grad_locations) return;
    const int64_t i = row.first + sample;
    grad_locations[2 * i] = x * C(level.width);
    grad_locations[2 * i + 1] = y * C(level.height);
  }
  __device__ __forceinline__ void write_weight(const Row& row, int sample, C gradient) const {
    if (grad_weights) grad_weights[row.first + sample] = gradient;
  }
};

// offsets [..., levels, points, 2] in pixels and logits [..., levels, points]: a softmax over all of a row's logits
// makes the weights. Both are floats, or of the 16-bit type T of value. Reference points (x, y) or boxes (centre, size) [images, queries, levels, 2 or 4] in [0, 1].
template <typename T, typename C>
struct Fused {
  using real = C;
  static constexpr bool fused = true;
  const void* offsets;
  const void* logits;
  const C* reference;
  void* grad_offsets;
  void* grad_logits;
  int64_t image_stride, query_stride, level_stride;  // of the reference, 0 where it is broadcast
  bool boxes, wide;                                  // wide: offsets and logits are of type C

  struct Row {
    int64_t first;
    const C* reference;
    C largest, share;  // of the softmax: a weight is exp(logit - largest) * share
  };

  void* grad_points() const { return grad_offsets; }
  void* grad_shares() const { return grad_logits; }

  template <int LANES>
  __device__ __forceinline__ Row row(const Problem& p, const Place& place, const Query& query, int lane) const {
    const int samples = p.levels * p.points;
    const int64_t first = row_index(p, place, query) * samples;
    C largest = number(logits, first), sum = 0;
    for (int j = lane; j < samples; j += LANES) largest = larger(largest, number(logits, first + j));
#pragma unroll
    for (int d = 1; d < LANES; d *= 2) largest = larger(largest, from_partner<LANES>(largest, d));
    for (int j = lane; j < samples; j += LANES) sum += exp(number(logits, first + j) - largest);
#pragma unroll
    for (int d = 1; d < LANES; d *= 2) sum += from_partner<LANES>(sum, d);
    return {first, reference + place.image * image_stride + query.index * query_stride, largest, 1 / sum};
  }
  __device__ __forceinline__ Raw<C> read(const Row& row, int level, int sample) const {
    const int64_t i = row.first + sample;
    const C* anchor = row.reference + level * level_stride;
    return {number(offsets, 2 * i), number(offsets, 2 * i + 1), number(logits, i), load<C>(anchor),
            load<C>(anchor + 1)};
  }
  __device__ __forceinline__ C weight(const Row& row, const Raw<C>& raw) const {
    return exp(raw.weight - row.largest) * row.share;
  }
  __device__ __forceinline__ Position<C> position(const Row& row, const Raw<C>& raw, const Level& level, int l,
                                                  int points) const {
    const C x = raw.x * pixels_per_offset(row, l, points, 2, level.width);
    const C y = raw.y * pixels_per_offset(row, l, points, 3, level.height);
    return {fma(raw.anchor_x, C(level.width), x), fma(raw.anchor_y, C(level.height), y), C(0), C(0)};
  }
  __device__ __forceinline__ void write_position(const Row& row, int sample, const Level& level, int l, int points, C x,
                                                 C y) const {
    if (!grad_offsets) return;
    const int64_t i = row.first + sample;
    write(grad_offsets, 2 * i, x * pixels_per_offset(row, l, points, 2, level.width));
    write(grad_offsets, 2 * i + 1, y * pixels_per_offset(row, l, points, 3, level.height));
  }
  __device__ __forceinline__ void write_weight(const Row& row, int sample, C gradient) const {
    if (grad_logits) write(grad_logits, row.first + sample, gradient);
  }

 private:
  __device__ __forceinline__ C number(const void* numbers, int64_t i) const {
    return wide ? load<C>(static_cast<const C*>(numbers) + i) : load<C>(static_cast<const T*>(numbers) + i);
  }
  __device__ __forceinline__ void write(void* numbers, int64_t i, C x) const {
    if (wide) {
      static_cast<C*>(numbers)[i] = x;
    } else {
      static_cast<T*>(numbers)[i] = to<T>(x);
    }
  }
  // Offsets are pixels around a point, and points-ths of half a box's side around a box.
  __device__ __forceinline__ C pixels_per_offset(const Row& row, int l, int points, int side, int size) const {
    return boxes ? load<C>(row.reference + l * level_stride + side) * (C(0.5) * C(size) / C(points)) : C(1);
  }
  // Unlike fmax this keeps a NaN, so that a diverged model shows.
  __device__ __forceinline__ static C larger(C a, C b) { return a > b || a != a ? a : b; }
};

}  // namespace msda
