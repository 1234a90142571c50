// float16 as scales are kept, and rounding, in plain code.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

namespace deepwell {

inline uint32_t float_bits(float x) {
  uint32_t u;
  std::memcpy(&u, &x, 4);
  return u;
}

inline float bits_float(uint32_t u) {
  float x;
  std::memcpy(&x, &u, 4);
  return x;
}

// To nearest, ties to even. Adding a power of two whose last place is the half's lets the hardware do the rounding.
inline uint16_t to_float16(float x) {
  const uint16_t sign = float_bits(x) >> 16 & 0x8000;
  const float a = std::fabs(x);
  if (a >= 65520.0f) return sign | 0x7c00;
  if (a < 0x1p-14f) return static_cast<uint16_t>(sign | (float_bits(a + 0.5f) - float_bits(0.5f)));
  const uint32_t u = float_bits(a);
  return static_cast<uint16_t>(sign | (((u + 0xfff + (u >> 13 & 1)) >> 13) - (112 << 10)));
}

inline float from_float16(uint16_t h) {
  const uint32_t rest = h & 0x7fff;
  const float a = rest >= 0x7c00 ? INFINITY : bits_float(rest << 13) * 0x1p112f;
  return h & 0x8000 ? -a : a;
}

// To nearest, ties to even, for |x| < 2^22: adding 1.5 * 2^23 leaves no place for a fraction.
inline float round_even(float x) { return (x + 12582912.0f) - 12582912.0f; }

}  // namespace deepwell
