// Derivatives of forward.cuh, from its inputs alone.
//
// The same lanes share a (query, head). A sample's three derivatives (weight, x, y) are sums over channels: each
// lane reduces its channels' part to these three numbers first, then STEP samples are transposed and summed over the
// lanes at once, after which lane s holds sample s: it writes, without atomics or barriers. Only the derivative of
// value needs atomics: they go to an accumulator of at least float, whatever the type of value.
#pragma once

#include "fixed_point.cuh"
#include "forward.cuh"

namespace msda {

// Vector reductions to memory came with compute capability 9.0. Before, neighbouring lanes add neighbouring numbers,
// so that a warp's addition touches as few lines as there are.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
constexpr int WIDEST_ADD = 4;
#else
constexpr int WIDEST_ADD = 1;
#endif

template <typename real>
struct Floating {
  using type = real;
  template <int VEC>
  static constexpr int WIDTH = VEC % WIDEST_ADD == 0 ? WIDEST_ADD : 1;

  type* at;

  template <int N>
  __device__ __forceinline__ void accumulate(int64_t i, real weight, const real* gradient) const {
    real product[N];
#pragma unroll
    for (int j = 0; j < N; ++j) product[j] = weight * gradient[j];
    add(at + i, product);
  }
};

// Sums of integers do not depend on their order: the deterministic form (fixed_point.cuh chooses the units).
template <typename real>
struct FixedPoint {
  using type = unsigned long long;
  template <int VEC>
  static constexpr int WIDTH = 1;

  type* at;
  Units* units;

  template <int N>
  __device__ __forceinline__ void accumulate(int64_t i, real weight, const real* gradient) const {
    const double product = double(weight) * double(gradient[0]) * units->per_one;
    if (product != product) units->size = product;  // integers know no NaN: all sums become NaN
    atomicAdd(at + i, type(__double2ll_rn(product)));
  }
};

template <int VEC, int LANES, typename T, typename Sum, typename real>
struct RowBackward {
  static constexpr int WIDTH = Sum::template WIDTH<VEC>;

  const T* value;     // channel 0 of the head, token 0
  const T* grad_out;  // channel 0 of the row
  Sum sum;            // and where channel 0 of token 0 is added
  int64_t value_stride, sum_stride, sum_start;
  int dim, lane;
  real own[VEC];      // grad_out of the channels this lane loads
  real shared[VEC];   // and of those it adds to, in runs of WIDTH

  __device__ __forceinline__ void load_gradient(int first) {
    const int channel = first + lane * VEC;
    if (channel >= dim) {  // only where VEC is 1: this lane takes part with zeros
      own[0] = shared[0] = 0;
      return;
    }
    load<VEC>(grad_out + channel, own);
#pragma unroll
    for (int i = 0; i < VEC; ++i) shared[i] = own[i];
    if constexpr (WIDTH != VEC) {
#pragma unroll
      for (int i = 0; i < VEC; i += WIDTH) {
        real run[WIDTH];
        load<WIDTH>(grad_out + i * LANES + lane * WIDTH, run);
#pragma unroll
        for (int j = 0; j < WIDTH; ++j) shared[i + j] = run[j];
      }
    }
  }

  __device__ __forceinline__ real dot(int first, uint32_t token) const {
    real pixel[VEC], total = 0;
    load<VEC>(value + int64_t(token) * value_stride + min(first + lane * VEC, dim - VEC), pixel);
#pragma unroll
    for (int i = 0; i < VEC; ++i) total += own[i] * pixel[i];
    return total;
  }

  __device__ __forceinline__ void scatter(int first, uint32_t token, real weight, uint32_t cell, uint32_t sides) const {
    if ((cell & sides) != sides || first + lane * VEC >= dim || !sum.at) return;
    const int64_t start = sum_start + int64_t(token) * sum_stride + first + lane * WIDTH;
#pragma unroll
    for (int i = 0; i < VEC; i += WIDTH) sum.template accumulate<WIDTH>(start + i * LANES, weight, shared + i);
  }

  // Adds one sample's share to the derivative of value; returns this lane's part of the sample's own derivatives.
  __device__ __forceinline__ Gradient<real> sample(const Sample<real>& mine, real my_weight, int width, int s) {
    const Sample<real> at{from_lane<LANES>(mine.cell, s), from_lane<LANES>(mine.x, s), from_lane<LANES>(mine.y, s)};
    const Corners<real> weights = corner_weights(at, from_lane<LANES>(my_weight, s));
    const uint32_t ul = token_of(at.cell), ur = ul + step_right(at.cell);
    const uint32_t down = step_down(at.cell, width), ll = ul + down, lr = ur + down;
    Corners<real> dots{};
    for (int first = 0; first < dim; first += VEC * LANES) {
      if constexpr (VEC == 1) load_gradient(first);
      dots.upper_left += dot(first, ul);
      dots.upper_right += dot(first, ur);
      dots.lower_left += dot(first, ll);
      dots.lower_right += dot(first, lr);
      scatter(first, ul, weights.upper_left, at.cell, LEFT | TOP);
      scatter(first, ur, weights.upper_right, at.cell, RIGHT | TOP);
      scatter(first, ll, weights.lower_left, at.cell, LEFT | BOTTOM);
      scatter(first, lr, weights.lower_right, at.cell, RIGHT | BOTTOM);
    }
    return sample_gradient(at.cell, at.x, at.y, dots);
  }

  // COUNT samples from `first` on: lane i ends with sample first + i % COUNT, summed over lanes that differ below COUNT.
  template <int COUNT>
  __device__ __forceinline__ Gradient<real> samples(const Sample<real>& mine, real my_weight, int width, int first) {
    if constexpr (COUNT == 1) {
      return sample(mine, my_weight, width, first);
    } else {
      const Gradient<real> a = samples<COUNT / 2>(mine, my_weight, width, first);
      const Gradient<real> b = samples<COUNT / 2>(mine, my_weight, width, first + COUNT / 2);
      return {exchange<COUNT / 2>(a.weight, b.weight), exchange<COUNT / 2>(a.x, b.x), exchange<COUNT / 2>(a.y, b.y)};
    }
  }

  template <int BIT>
  __device__ __forceinline__ real exchange(real a, real b) const {
    const bool second = lane & BIT;
    return (second ? b : a) + from_partner<LANES>(second ? a : b, BIT);
  }
};

template <int LANES, typename real>
__device__ __forceinline__ real sum_over_steps(real x) {
#pragma unroll
  for (int d = STEP<LANES>; d < LANES; d *= 2) x += from_partner<LANES>(x, d);
  return x;
}

// Softmax: the derivative of logit i is p_i (g_i - sum of p_j g_j).
template <int LANES, typename Inputs, typename real>
__device__ __forceinline__ void write_logits(const Problem& p, const Inputs& inputs, const typename Inputs::Row& row,
                                             const real* kept, real mean, int mine, bool writes) {
#pragma unroll
  for (int d = 1; d < STEP<LANES>; d *= 2) mean += from_partner<LANES>(mean, d);
  for (int l = 0; l < p.levels; ++l) {
    for (int k = mine; k - mine < p.points; k += STEP<LANES>, kept += blockDim.x) {
      const int sample = l * p.points + k;
      if (!writes || k >= p.points) continue;
      inputs.write_weight(row, sample, inputs.weight(row, inputs.read(row, l, sample)) * (*kept - mean));
    }
  }
}

using BackwardTile = Tile<8, 8>;
template <int LANES>
constexpr int BACKWARD_THREADS = BackwardTile::QUERIES* LANES < MAX_THREADS ? BackwardTile::QUERIES * LANES : MAX_THREADS;

template <int VEC, int LANES, typename T, typename Inputs, typename Sum>
__global__ void __launch_bounds__(MAX_THREADS, sizeof(typename Inputs::real) == 4 ? 2 : 1)
    backward_kernel(const __grid_constant__ Problem p, const __grid_constant__ Inputs inputs,
                    const T* __restrict__ value, const T* __restrict__ grad_out, const __grid_constant__ Sum sum) {
  using real = typename Inputs::real;
  extern __shared__ double kept_by_all[];  // derivatives by the weights, each lane's own: no barrier
  const int lane = threadIdx.x % LANES, mine = lane % STEP<LANES>;
  const Place place = block_place<BackwardTile>(p);
  const int dim = VEC == 1 ? p.dim : VEC * LANES;
  const int64_t sum_stride = int64_t(p.heads) * dim;
  const int64_t sum_start = int64_t(place.image) * p.tokens * sum_stride + int64_t(place.head) * dim;
  const T* head = value + place.image * p.value_image + place.head * p.value_head;
#pragma unroll 1
  for (int i = threadIdx.x / LANES; i < BackwardTile::QUERIES; i += blockDim.x / LANES) {
    const Query query = tile_query<BackwardTile>(p, place, i);
    const auto row = inputs.template row<LANES>(p, place, query, lane);
    RowBackward<VEC, LANES, T, Sum, real> backward{
        head, grad_out + row_index(p, place, query) * dim, sum, p.value_token, sum_stride, sum_start, dim, lane, {}, {}};
    if constexpr (VEC != 1) backward.load_gradient(0);
    real* const kept = reinterpret_cast<real*>(kept_by_all) + threadIdx.x;
    real mean = 0;
    int slot = 0;
    Raw<real> next = inputs.read(row, 0, min(mine, p.points - 1));
    for (int l = 0, k = 0; l < p.levels; ++slot) {
      const int here = l, point = k + mine, j = l * p.points + point;
      const Level& level = p.level[here];
      const Raw<real> raw = next;
      Sample<real> sample =
          locate(inputs.position(row, raw, level, here, p.points), level.height, level.width, level.start);
      const real weight = inputs.weight(row, raw);
      // A sample that is not there has no corner inside; its lanes run along.
      if (!query.exists || point >= p.points) sample.cell &= ~uint32_t(LEFT | RIGHT | TOP | BOTTOM);
      k += STEP<LANES>;
      if (k >= p.points) k = 0, ++l;
      if (l < p.levels) next = inputs.read(row, l, l * p.points + min(k + mine, p.points - 1));
      const Gradient<real> part = backward.template samples<STEP<LANES>>(sample, weight, level.width, 0);
      const Gradient<real> total{sum_over_steps<LANES>(part.weight), sum_over_steps<LANES>(part.x),
                                 sum_over_steps<LANES>(part.y)};
      const bool writes = query.exists && lane == mine && point < p.points;
      if (writes) inputs.write_position(row, j, level, here, p.points, weight * total.x, weight * total.y);
      if constexpr (Inputs::fused) {
        kept[slot * blockDim.x] = total.weight;
        mean += weight * total.weight;
      } else if (writes) {
        inputs.write_weight(row, j, total.weight);
      }
    }
    if constexpr (Inputs::fused) write_logits<LANES>(p, inputs, row, kept, mean, mine, query.exists && lane == mine);
  }
}

}  // namespace msda
