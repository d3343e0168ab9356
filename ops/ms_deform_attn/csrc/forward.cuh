// out[image, query, head] = sum over levels and points of weight * bilinear sample of value[image, :, head].
//
// LANES neighbouring lanes share one (query, head); each owns VEC channels (16 bytes) of all four pixels of a sample.
// Lane s prepares sample s of the next STEP: the arithmetic of a sample is done once, then handed round by shuffles.
// Widths that VEC * LANES does not cover take several passes with VEC = 1.
#pragma once

#include "inputs.cuh"

namespace msda {

template <int LANES>
constexpr int STEP = LANES < 4 ? LANES : 4;

template <typename real>
struct Prepared {
  uint32_t cell;
  Corners<real> weights;
};

template <int VEC, typename T, typename real>
__device__ __forceinline__ void add_pixel(const Packed<VEC, T>& pixel, real weight, real (&sum)[VEC]) {
#pragma unroll
  for (int i = 0; i < VEC; ++i) sum[i] += weight * pixel.template get<real>(i);
}

template <int VEC, int LANES, typename T, typename real>
__device__ __forceinline__ void add_sample(const T* channels, int64_t token_stride, int width,
                                           const Prepared<real>& mine, int s, real (&sum)[VEC]) {
  const uint32_t cell = from_lane<LANES>(mine.cell, s);
  const T* corner = channels + int64_t(token_of(cell)) * token_stride;
  const int64_t right = step_right(cell) * token_stride, down = step_down(cell, width) * token_stride;
  const auto ul = load_packed<VEC>(corner), ur = load_packed<VEC>(corner + right);
  const auto ll = load_packed<VEC>(corner + down), lr = load_packed<VEC>(corner + down + right);
  add_pixel(ul, from_lane<LANES>(mine.weights.upper_left, s), sum);
  add_pixel(ur, from_lane<LANES>(mine.weights.upper_right, s), sum);
  add_pixel(ll, from_lane<LANES>(mine.weights.lower_left, s), sum);
  add_pixel(lr, from_lane<LANES>(mine.weights.lower_right, s), sum);
}

template <int VEC, int LANES, typename T, typename Inputs>
__device__ __forceinline__ void add_row(const Problem& p, const Inputs& inputs, const typename Inputs::Row& row,
                                        const T* channels, int64_t token_stride, int lane,
                                        typename Inputs::real (&sum)[VEC]) {
  using real = typename Inputs::real;
  const int mine = lane % STEP<LANES>, last = p.points - 1, last_level = p.levels - 1;
  Raw<real> next = inputs.read(row, 0, min(mine, last));
  for (int l = 0, k = 0; l < p.levels;) {
    const Level& level = p.level[l];
    const Raw<real> raw = next;
    const int count = min(STEP<LANES>, p.points - k);
    const Sample<real> sample =
        locate(inputs.position(row, raw, level, l, p.points), level.height, level.width, level.start);
    const real weight = inputs.weight(row, raw);
    k += STEP<LANES>;
    if (k >= p.points) k = 0, ++l;
    const int upcoming = min(l, last_level);  // after the last a sample is read again: cheaper than a branch
    next = inputs.read(row, upcoming, upcoming * p.points + min(k + mine, last));
    const Prepared<real> prepared{sample.cell, corner_weights(sample, weight)};
    if (count == STEP<LANES>) {
#pragma unroll
      for (int s = 0; s < STEP<LANES>; ++s)
        add_sample<VEC, LANES>(channels, token_stride, level.width, prepared, s, sum);
    } else {
      for (int s = 0; s < count; ++s)
        add_sample<VEC, LANES>(channels, token_stride, level.width, prepared, s, sum);
    }
  }
}

// One query for each group of lanes. 64 registers for each of 1024 threads fill a multiprocessor; two lanes have more
// channels to hold than that.
template <int LANES>
struct ForwardTile : Tile<LANES == 32 ? 4 : 8, LANES < 16 ? 8 : 4> {};
template <int LANES>
constexpr int FORWARD_THREADS = ForwardTile<LANES>::QUERIES* LANES;
template <int LANES, typename real>
constexpr int FORWARD_BLOCKS = sizeof(real) == 4 ? (LANES == 2 ? 768 : 1024) / FORWARD_THREADS<LANES> : 1;

template <int VEC, int LANES, typename T, typename Inputs>
__global__ void __launch_bounds__(FORWARD_THREADS<LANES>, (FORWARD_BLOCKS<LANES, typename Inputs::real>))
    forward_kernel(const __grid_constant__ Problem p, const __grid_constant__ Inputs inputs,
                   const T* __restrict__ value, T* __restrict__ out) {
  using real = typename Inputs::real;
  const int lane = threadIdx.x % LANES;
  const Place place = block_place<ForwardTile<LANES>>(p);
  const Query query = tile_query<ForwardTile<LANES>>(p, place, threadIdx.x / LANES);
  const auto row = inputs.template row<LANES>(p, place, query, lane);
  const T* head = value + place.image * p.value_image + place.head * p.value_head;
  const int dim = VEC == 1 ? p.dim : VEC * LANES;
  for (int first = 0; first < dim; first += VEC * LANES) {
    const int channel = first + lane * VEC;
    real sum[VEC] = {};
    add_row<VEC, LANES>(p, inputs, row, head + min(channel, dim - VEC), p.value_token, lane, sum);
    if (query.exists && channel < dim) store<VEC>(out + row_index(p, place, query) * dim + channel, sum);
  }
}

}  // namespace msda
