// IEEE half precision, rounded to nearest even.
#pragma once

#include <cmath>
#include <cstdint>

struct __half {
  uint16_t bits;
};

inline float __half2float(__half x) {
  const int exponent = x.bits >> 10 & 31, mantissa = x.bits & 1023;
  float number;
  if (exponent == 31) {
    number = mantissa ? NAN : INFINITY;
  } else {
    number = exponent ? std::ldexp(float(mantissa + 1024), exponent - 25) : std::ldexp(float(mantissa), -24);
  }
  return x.bits >> 15 ? -number : number;
}

inline __half __float2half_rn(float number) {
  const uint16_t sign = std::signbit(number) ? 0x8000 : 0;
  if (number != number) return {0x7fff};
  const float size = std::fabs(number);
  if (size == 0) return {sign};
  if (size >= 65520.0f) return {uint16_t(sign | 0x7c00)};
  int exponent = 0;
  std::frexp(size, &exponent);
  const int scale = exponent < -13 ? 24 : 11 - exponent;  // units of the last place
  const int units = int(std::nearbyint(std::ldexp(size, scale)));
  if (exponent < -13) return {uint16_t(sign | units)};  // subnormal, or the smallest normal after rounding
  return {uint16_t(sign | (((exponent + 13) << 10) + units))};  // 1024 <= units <= 2048 carries into the exponent
}
