// What the kernels ask of the device: packed loads, shuffles, reductions to memory; and the map from blocks to queries.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstring>

#include "ms_deform_attn.h"
#include "sampling.cuh"

namespace msda {

// A block works on one head of a tile of neighbouring queries, 8 x 8 where threads allow it: they sample overlapping
// pixels, so most of its loads hit the first-level cache.
template <int WIDTH_, int HEIGHT_>
struct Tile {
  static constexpr int WIDTH = WIDTH_, HEIGHT = HEIGHT_, QUERIES = WIDTH * HEIGHT;
};
constexpr int MAX_THREADS = 256;  // of a block, where nothing else is said
constexpr unsigned ALL_LANES = 0xffffffffu;

struct Level {
  int height, width;
  uint32_t start;       // first token
  uint32_t first_tile;  // when the queries are the tokens
};

// Sizes of one call, passed by value: no kernel reads them from memory, and no host copy waits for the device.
struct Problem {
  int64_t value_image, value_token, value_head;  // strides of value in elements
  int tokens, queries, tiles;                    // per image
  int heads, dim, levels, points;
  bool queries_are_tokens;
  Level level[LOCAP_MSDA_MAX_LEVELS];
};

// The part of a block: one head of one image, and a tile of queries.
struct Place {
  int image, head;
  int width, height;      // of the tile's level, less the tile's first column and row
  int first, row_stride;  // query of the tile's corner; from row to row
};

template <typename Tile>
__device__ __forceinline__ Place block_place(const Problem& p) {
  const unsigned tile_of_all = blockIdx.x / unsigned(p.heads), image = tile_of_all / unsigned(p.tiles);
  const int head = int(blockIdx.x - tile_of_all * unsigned(p.heads)), tile = int(tile_of_all - image * unsigned(p.tiles));
  if (!p.queries_are_tokens) return {int(image), head, Tile::WIDTH, Tile::HEIGHT, tile * Tile::QUERIES, Tile::WIDTH};
  int l = 0;
  while (l + 1 < p.levels && tile >= int(p.level[l + 1].first_tile)) ++l;
  const Level& level = p.level[l];
  const int here = tile - int(level.first_tile), tiles_per_row = (level.width + Tile::WIDTH - 1) / Tile::WIDTH;
  const int row = here / tiles_per_row, top = row * Tile::HEIGHT, left = (here - row * tiles_per_row) * Tile::WIDTH;
  return {int(image), head, level.width - left, level.height - top, int(level.start) + top * level.width + left,
          level.width};
}

// Query i of the tile. Lanes without one repeat the tile's first, so that warps stay whole, and write nothing.
struct Query {
  int index;
  bool exists;
};

template <typename Tile>
__device__ __forceinline__ Query tile_query(const Problem& p, const Place& place, int i) {
  const int column = i % Tile::WIDTH, row = i / Tile::WIDTH;
  const int index = place.first + row * place.row_stride + column;
  const bool exists = column < place.width && row < place.height && index < p.queries;
  return {exists ? index : place.first, exists};
}

// Number of a query's head among all of the batch.
__device__ __forceinline__ int64_t row_index(const Problem& p, const Place& place, const Query& query) {
  return (int64_t(place.image) * p.queries + query.index) * p.heads + place.head;
}

template <int BYTES>
struct Words;
template <>
struct Words<16> {
  using type = uint4;
};
template <>
struct Words<8> {
  using type = uint2;
};
template <>
struct Words<4> {
  using type = unsigned int;
};
template <>
struct Words<2> {
  using type = unsigned short;
};

template <typename real, typename T>
__device__ __forceinline__ real to(T x) {
  return real(x);
}
template <>
__device__ __forceinline__ float to<float, __half>(__half x) {
  return __half2float(x);
}
template <>
__device__ __forceinline__ float to<float, __nv_bfloat16>(__nv_bfloat16 x) {
  return __bfloat162float(x);
}
template <>
__device__ __forceinline__ __half to<__half, float>(float x) {
  return __float2half_rn(x);
}
template <>
__device__ __forceinline__ __nv_bfloat16 to<__nv_bfloat16, float>(float x) {
  return __float2bfloat16_rn(x);
}

// The type of sums.
template <typename T>
struct Wider {
  using type = float;
};
template <>
struct Wider<double> {
  using type = double;
};
template <typename T>
using wider = typename Wider<T>::type;

// N neighbours, at most 16 bytes, from one load through the read-only path. They stay packed until they are used:
// unpacked, 16-bit numbers need twice the registers.
template <int N, typename T>
struct Packed {
  T at[N];

  template <typename real>
  __device__ __forceinline__ real get(int i) const {
    return to<real>(at[i]);
  }
};

template <int N, typename T>
__device__ __forceinline__ Packed<N, T> load_packed(const T* at) {
  Packed<N, T> packed;
  if constexpr (N * sizeof(T) == 8 && N == 1) {
    packed.at[0] = __ldg(at);
  } else {
    using Word = typename Words<N * sizeof(T)>::type;
    const Word word = __ldg(reinterpret_cast<const Word*>(at));
    memcpy(packed.at, &word, sizeof(word));
  }
  return packed;
}

template <int N, typename T, typename real>
__device__ __forceinline__ void load(const T* at, real (&numbers)[N]) {
  const Packed<N, T> packed = load_packed<N>(at);
#pragma unroll
  for (int i = 0; i < N; ++i) numbers[i] = packed.template get<real>(i);
}

template <typename real, typename T>
__device__ __forceinline__ real load(const T* at) {
  real number[1];
  load<1>(at, number);
  return number[0];
}

template <int N, typename T, typename real>
__device__ __forceinline__ void store(T* at, const real (&numbers)[N]) {
  if constexpr (N * sizeof(T) == 8 && N == 1) {
    *at = to<T>(numbers[0]);
  } else {
    using Word = typename Words<N * sizeof(T)>::type;
    T parts[N];
#pragma unroll
    for (int i = 0; i < N; ++i) parts[i] = to<T>(numbers[i]);
    Word word;
    memcpy(&word, parts, sizeof(word));
    *reinterpret_cast<Word*>(at) = word;
  }
}

// Add to memory that nothing in the kernel reads; the old value is not asked for.
__device__ __forceinline__ void add(float* at, const float (&numbers)[1]) { atomicAdd(at, numbers[0]); }
__device__ __forceinline__ void add(double* at, const double (&numbers)[1]) { atomicAdd(at, numbers[0]); }
__device__ __forceinline__ void add(float* at, const float (&numbers)[4]) {
#if defined(MSDA_EMULATED)
  for (int i = 0; i < 4; ++i) atomicAdd(at + i, numbers[i]);
#elif __CUDA_ARCH__ >= 900
  asm volatile("red.relaxed.gpu.global.add.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(at)),
               "f"(numbers[0]), "f"(numbers[1]), "f"(numbers[2]), "f"(numbers[3]));
#endif
}

template <int LANES, typename T>
__device__ __forceinline__ T from_lane(T x, int lane) {
  return __shfl_sync(ALL_LANES, x, lane, LANES);
}
template <int LANES, typename T>
__device__ __forceinline__ T from_partner(T x, int distance) {
  return __shfl_xor_sync(ALL_LANES, x, distance, LANES);
}

}  // namespace msda
