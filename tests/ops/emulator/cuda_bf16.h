// The upper half of a float, rounded to nearest even.
#pragma once

#include <cstdint>
#include <cstring>

struct __nv_bfloat16 {
  uint16_t bits;
};

inline float __bfloat162float(__nv_bfloat16 x) {
  const uint32_t wide = uint32_t(x.bits) << 16;
  float number;
  std::memcpy(&number, &wide, sizeof(number));
  return number;
}

inline __nv_bfloat16 __float2bfloat16_rn(float number) {
  if (number != number) return {0x7fff};
  uint32_t wide;
  std::memcpy(&wide, &number, sizeof(number));
  return {uint16_t((wide + 0x7fff + ((wide >> 16) & 1)) >> 16)};
}
