// The arithmetic of one sample, for device and host alike.
//
// Positions are in pixels from the outer left and upper edge of a level, so pixel i has its centre at i + 0.5 and
// a sample at u = x * width - 0.5 (align_corners=False) lies between the pixels floor(u) and floor(u) + 1.
#pragma once

#include <cmath>
#include <cstdint>

#if defined(__CUDACC__)
#define MSDA_INLINE __host__ __device__ __forceinline__
#else
#define MSDA_INLINE inline
#endif

namespace msda {

// Which of the four pixels around a sample lie inside the level. A corner is inside when its column and its row are.
enum Side : uint32_t { LEFT = 1, RIGHT = 2, TOP = 4, BOTTOM = 8 };
constexpr int SIDE_BITS = 4;
constexpr int64_t MAX_TOKENS = int64_t(1) << (32 - SIDE_BITS);

// A position and what its rounding lost: the fraction keeps full precision on wide levels.
template <typename real>
struct Position {
  real x, y, lost_x, lost_y;
};

template <typename real>
struct Sample {
  uint32_t cell;  // token of the upper left corner, clamped into the level, above the four Side bits
  real x, y;      // fractions: 0 on the left or upper pixel, 1 on the other one
};

template <typename real>
struct Corners {
  real upper_left, upper_right, lower_left, lower_right;
};

template <typename real>
struct Gradient {
  real weight, x, y;
};

MSDA_INLINE uint32_t token_of(uint32_t cell) { return cell >> SIDE_BITS; }

// Tokens from the upper left corner to its right and lower neighbour; 0 where clamping made the two one pixel.
MSDA_INLINE uint32_t step_right(uint32_t cell) { return (cell & (LEFT | RIGHT)) == (LEFT | RIGHT) ? 1u : 0u; }
MSDA_INLINE uint32_t step_down(uint32_t cell, int width) {
  return (cell & (TOP | BOTTOM)) == (TOP | BOTTOM) ? uint32_t(width) : 0u;
}

// Location in [0, 1] -> pixels.
template <typename real>
MSDA_INLINE Position<real> scale(real x, real y, int height, int width) {
  const real columns = real(width), rows = real(height), px = x * columns, py = y * rows;
  return {px, py, std::fma(x, columns, -px), std::fma(y, rows, -py)};
}

// A sample counts when -1 < u < width and -1 < v < height; any other one, NaN included, has no corner inside.
template <typename real>
MSDA_INLINE Sample<real> locate(const Position<real>& at, int height, int width, uint32_t start) {
  const real half = real(0.5);
  if (!(at.x > -half && at.y > -half && at.x < real(width) + half && at.y < real(height) + half)) {
    return {start << SIDE_BITS, real(0), real(0)};
  }
  const real left = std::floor(at.x - half), top = std::floor(at.y - half);
  const int column = int(left), row = int(top);
  const uint32_t sides = (column >= 0 ? LEFT : 0u) | (column + 1 < width ? RIGHT : 0u) | (row >= 0 ? TOP : 0u) |
                         (row + 1 < height ? BOTTOM : 0u);
  const uint32_t token = start + uint32_t(row < 0 ? 0 : row) * uint32_t(width) + uint32_t(column < 0 ? 0 : column);
  return {token << SIDE_BITS | sides, (at.x - (left + half)) + at.lost_x, (at.y - (top + half)) + at.lost_y};
}

template <typename real>
MSDA_INLINE real inside(uint32_t cell, uint32_t sides, real number) {
  return (cell & sides) == sides ? number : real(0);
}

// Bilinear weights times the attention weight, 0 for corners outside.
template <typename real>
MSDA_INLINE Corners<real> corner_weights(const Sample<real>& sample, real weight) {
  const real left = inside(sample.cell, LEFT, 1 - sample.x), right = inside(sample.cell, RIGHT, sample.x);
  const real top = inside(sample.cell, TOP, weight * (1 - sample.y));
  const real bottom = inside(sample.cell, BOTTOM, weight * sample.y);
  return {top * left, top * right, bottom * left, bottom * right};
}

// From the dot products of the four pixels with the output's gradient: derivatives by the attention weight, and by
// the position in pixels before multiplication with the attention weight.
template <typename real>
MSDA_INLINE Gradient<real> sample_gradient(uint32_t cell, real x, real y, const Corners<real>& dot) {
  const real ul = inside(cell, LEFT | TOP, dot.upper_left), ur = inside(cell, RIGHT | TOP, dot.upper_right);
  const real ll = inside(cell, LEFT | BOTTOM, dot.lower_left), lr = inside(cell, RIGHT | BOTTOM, dot.lower_right);
  const real top = 1 - y, left = 1 - x;
  const real upper = ur - ul, lower = lr - ll;
  return {top * (left * ul + x * ur) + y * (left * ll + x * lr), top * upper + y * lower,
          left * (ll - ul) + x * (lr - ur)};
}

}  // namespace msda
