// Eight double lanes (Double): one AVX-512 register, two AVX2, or an array. Every operation rounds alike everywhere, and
// none is fused, so that processors without fused multiply-adds need no emulation of them.
#pragma once
#include "simd.h"

namespace deepwell {
namespace DEEPWELL_ISA {

#if defined(DEEPWELL_USE_AVX512)

struct Double { __m512d v; };
DW_INLINE Double fill_double(double x) { return {_mm512_set1_pd(x)}; }
DW_INLINE Double load_double(const double* p) { return {_mm512_loadu_pd(p)}; }
DW_INLINE Double widen(const float* p) { return {_mm512_cvtps_pd(_mm256_loadu_ps(p))}; }
DW_INLINE void store(double* p, Double a) { _mm512_storeu_pd(p, a.v); }
DW_INLINE Double operator+(Double a, Double b) { return {_mm512_add_pd(a.v, b.v)}; }
DW_INLINE Double operator-(Double a, Double b) { return {_mm512_sub_pd(a.v, b.v)}; }
DW_INLINE Double operator*(Double a, Double b) { return {_mm512_mul_pd(a.v, b.v)}; }
DW_INLINE Double operator/(Double a, Double b) { return {_mm512_div_pd(a.v, b.v)}; }
DW_INLINE Double max(Double a, Double b) { return {_mm512_max_pd(a.v, b.v)}; }
// Lanes whose bit is set, `other` elsewhere.
DW_INLINE Double keep(Double a, unsigned bits, double other) {
  return {_mm512_mask_blend_pd((__mmask8)bits, _mm512_set1_pd(other), a.v)};
}
// A bit for each lane that is not below `limit`.
DW_INLINE unsigned at_least(Double a, Double limit) { return _mm512_cmp_pd_mask(a.v, limit.v, _CMP_GE_OQ); }
// Lanes that are not below `limit`, 0 elsewhere.
DW_INLINE Double from(Double a, Double limit) {
  return {_mm512_maskz_mov_pd(_mm512_cmp_pd_mask(a.v, limit.v, _CMP_GE_OQ), a.v)};
}
// 2^k of k + 1.5 * 2^52, for k within -1022..1023.
DW_INLINE Double power_of_two(Double shifted) {
  const __m512i k = _mm512_add_epi64(_mm512_castpd_si512(shifted.v), _mm512_set1_epi64(1023));
  return {_mm512_castsi512_pd(_mm512_slli_epi64(k, 52))};
}

#elif defined(DEEPWELL_USE_AVX2)

struct Double { __m256d a, b; };
DW_INLINE Double fill_double(double x) { return {_mm256_set1_pd(x), _mm256_set1_pd(x)}; }
DW_INLINE Double load_double(const double* p) { return {_mm256_loadu_pd(p), _mm256_loadu_pd(p + 4)}; }
DW_INLINE Double widen(const float* p) {
  return {_mm256_cvtps_pd(_mm_loadu_ps(p)), _mm256_cvtps_pd(_mm_loadu_ps(p + 4))};
}
DW_INLINE void store(double* p, Double x) { _mm256_storeu_pd(p, x.a); _mm256_storeu_pd(p + 4, x.b); }
DW_INLINE Double operator+(Double x, Double y) { return {_mm256_add_pd(x.a, y.a), _mm256_add_pd(x.b, y.b)}; }
DW_INLINE Double operator-(Double x, Double y) { return {_mm256_sub_pd(x.a, y.a), _mm256_sub_pd(x.b, y.b)}; }
DW_INLINE Double operator*(Double x, Double y) { return {_mm256_mul_pd(x.a, y.a), _mm256_mul_pd(x.b, y.b)}; }
DW_INLINE Double operator/(Double x, Double y) { return {_mm256_div_pd(x.a, y.a), _mm256_div_pd(x.b, y.b)}; }
DW_INLINE Double max(Double x, Double y) { return {_mm256_max_pd(x.a, y.a), _mm256_max_pd(x.b, y.b)}; }
DW_INLINE __m256d lanes_of(unsigned bits) {
  const __m256i lane = _mm256_setr_epi64x(1, 2, 4, 8);
  return _mm256_castsi256_pd(_mm256_cmpeq_epi64(_mm256_and_si256(_mm256_set1_epi64x(bits), lane), lane));
}
DW_INLINE Double keep(Double x, unsigned bits, double other) {
  const __m256d o = _mm256_set1_pd(other);
  return {_mm256_blendv_pd(o, x.a, lanes_of(bits)), _mm256_blendv_pd(o, x.b, lanes_of(bits >> 4))};
}
DW_INLINE unsigned at_least(Double x, Double limit) {
  const int low = _mm256_movemask_pd(_mm256_cmp_pd(x.a, limit.a, _CMP_GE_OQ));
  const int high = _mm256_movemask_pd(_mm256_cmp_pd(x.b, limit.b, _CMP_GE_OQ));
  return (unsigned)(low | high << 4);
}
DW_INLINE Double from(Double x, Double limit) {
  return {_mm256_and_pd(x.a, _mm256_cmp_pd(x.a, limit.a, _CMP_GE_OQ)),
          _mm256_and_pd(x.b, _mm256_cmp_pd(x.b, limit.b, _CMP_GE_OQ))};
}
DW_INLINE __m256d power_of_two(__m256d shifted) {
  const __m256i k = _mm256_add_epi64(_mm256_castpd_si256(shifted), _mm256_set1_epi64x(1023));
  return _mm256_castsi256_pd(_mm256_slli_epi64(k, 52));
}
DW_INLINE Double power_of_two(Double shifted) { return {power_of_two(shifted.a), power_of_two(shifted.b)}; }

#else

struct Double { double v[8]; };
#define DW_EACH(expression) Double r; for (int i = 0; i < 8; ++i) r.v[i] = (expression); return r
DW_INLINE Double fill_double(double x) { DW_EACH(x); }
DW_INLINE Double load_double(const double* p) { DW_EACH(p[i]); }
DW_INLINE Double widen(const float* p) { DW_EACH((double)p[i]); }
DW_INLINE void store(double* p, Double a) { for (int i = 0; i < 8; ++i) p[i] = a.v[i]; }
DW_INLINE Double operator+(Double a, Double b) { DW_EACH(a.v[i] + b.v[i]); }
DW_INLINE Double operator-(Double a, Double b) { DW_EACH(a.v[i] - b.v[i]); }
DW_INLINE Double operator*(Double a, Double b) { DW_EACH(a.v[i] * b.v[i]); }
DW_INLINE Double operator/(Double a, Double b) { DW_EACH(a.v[i] / b.v[i]); }
DW_INLINE Double max(Double a, Double b) { DW_EACH(a.v[i] > b.v[i] ? a.v[i] : b.v[i]); }
DW_INLINE Double keep(Double a, unsigned bits, double other) { DW_EACH(bits >> i & 1 ? a.v[i] : other); }
DW_INLINE unsigned at_least(Double a, Double limit) {
  unsigned bits = 0;
  for (int i = 0; i < 8; ++i) bits |= (unsigned)(a.v[i] >= limit.v[i]) << i;
  return bits;
}
DW_INLINE Double from(Double a, Double limit) { DW_EACH(a.v[i] >= limit.v[i] ? a.v[i] : 0.0); }
DW_INLINE double power_of_two(double shifted) {
  uint64_t u;
  __builtin_memcpy(&u, &shifted, 8);
  u = (u + 1023) << 52;
  __builtin_memcpy(&shifted, &u, 8);
  return shifted;
}
DW_INLINE Double power_of_two(Double shifted) { DW_EACH(power_of_two(shifted.v[i])); }
#undef DW_EACH

#endif

// Halves, quarters and eighths, as sum() of sixteen floats does.
DW_INLINE double sum(Double a) {
  double t[8];
  store(t, a);
  return ((t[0] + t[4]) + (t[2] + t[6])) + ((t[1] + t[5]) + (t[3] + t[7]));
}
DW_INLINE double largest(Double a) {
  double t[8];
  store(t, a);
  double most = t[0];
  for (int i = 1; i < 8; ++i) most = t[i] > most ? t[i] : most;
  return most;
}

}  // namespace DEEPWELL_ISA
}  // namespace deepwell
