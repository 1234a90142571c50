// Sixteen float lanes (Vec) and sixteen 32-bit lanes (Word): one AVX-512 register, two AVX2, four NEON, or scalars.
// Every operation rounds alike on every instruction set, so that kernels written on top give the same bits.
#pragma once
#include <cstddef>
#include <cstdint>

#if defined(DEEPWELL_USE_AVX512) || defined(DEEPWELL_USE_AVX2)
#include <immintrin.h>
#elif defined(DEEPWELL_USE_NEON)
#include <arm_neon.h>
#endif

#if defined(DEEPWELL_USE_AVX512) || defined(DEEPWELL_USE_AVX2) || defined(DEEPWELL_USE_NEON)
#define DW_INLINE inline __attribute__((always_inline))
// On every lambda of a kernel: one inlined late keeps the arrays it captures out of registers.
#define DW_LAMBDA __attribute__((always_inline))
#else
#define DW_INLINE inline  // scalars have no registers to win, and unrolled they would take minutes to compile
#define DW_LAMBDA
#endif

namespace deepwell {
namespace DEEPWELL_ISA {

template <int N>
struct Int {
  static constexpr int value = N;
  constexpr operator int() const { return N; }
};

// Calls f(Int<0>{}) ... f(Int<N-1>{}): a loop that is always unrolled, so that arrays of vectors live in registers.
template <int N, int I = 0, class F>
DW_INLINE void unroll(F&& f) {
  if constexpr (I < N) {
    f(Int<I>{});
    unroll<N, I + 1>(f);
  }
}

#if defined(DEEPWELL_USE_AVX512)

struct Vec { __m512 v; };
struct Word { __m512i v; };
DW_INLINE Vec zero() { return {_mm512_setzero_ps()}; }
DW_INLINE Vec fill(float x) { return {_mm512_set1_ps(x)}; }
DW_INLINE Vec load(const float* p) { return {_mm512_loadu_ps(p)}; }
DW_INLINE void store(float* p, Vec a) { _mm512_storeu_ps(p, a.v); }
DW_INLINE Vec load_first(const float* p, int n) { return {_mm512_maskz_loadu_ps((__mmask16)((1u << n) - 1), p)}; }
DW_INLINE void store_first(float* p, Vec a, int n) { _mm512_mask_storeu_ps(p, (__mmask16)((1u << n) - 1), a.v); }
DW_INLINE Vec keep_first(Vec a, int n, float other) {
  return {_mm512_mask_blend_ps((__mmask16)((1u << n) - 1), _mm512_set1_ps(other), a.v)};
}
DW_INLINE Vec operator+(Vec a, Vec b) { return {_mm512_add_ps(a.v, b.v)}; }
DW_INLINE Vec operator-(Vec a, Vec b) { return {_mm512_sub_ps(a.v, b.v)}; }
DW_INLINE Vec operator*(Vec a, Vec b) { return {_mm512_mul_ps(a.v, b.v)}; }
DW_INLINE Vec operator/(Vec a, Vec b) { return {_mm512_div_ps(a.v, b.v)}; }
DW_INLINE Vec fma(Vec a, Vec b, Vec c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
DW_INLINE Vec min(Vec a, Vec b) { return {_mm512_min_ps(a.v, b.v)}; }
DW_INLINE Vec max(Vec a, Vec b) { return {_mm512_max_ps(a.v, b.v)}; }
DW_INLINE Vec zero_below(Vec a, Vec x, float limit) {
  return {_mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x.v, _mm512_set1_ps(limit), _CMP_NLT_UQ), a.v)};
}
DW_INLINE float sum(Vec a) {
  __m256 b = _mm256_add_ps(_mm512_castps512_ps256(a.v), _mm512_extractf32x8_ps(a.v, 1));
  __m128 c = _mm_add_ps(_mm256_castps256_ps128(b), _mm256_extractf128_ps(b, 1));
  __m128 d = _mm_add_ps(c, _mm_movehl_ps(c, c));
  return _mm_cvtss_f32(_mm_add_ss(d, _mm_shuffle_ps(d, d, 1)));
}
DW_INLINE float largest(Vec a) { return _mm512_reduce_max_ps(a.v); }
DW_INLINE Word load_word(const uint8_t* p) { return {_mm512_load_si512(p)}; }
DW_INLINE Word bits(Vec a) { return {_mm512_castps_si512(a.v)}; }
DW_INLINE Vec as_float(Word a) { return {_mm512_castsi512_ps(a.v)}; }
DW_INLINE Word add_int(Word a, int x) { return {_mm512_add_epi32(a.v, _mm512_set1_epi32(x))}; }
template <int S> DW_INLINE Word shift_left(Word a) { return {_mm512_slli_epi32(a.v, S)}; }
DW_INLINE Word high_half(Word a) { return {_mm512_and_si512(a.v, _mm512_set1_epi32((int)0xffff0000u))}; }
template <int B> DW_INLINE Vec signed_byte(Word a) {
  return {_mm512_cvtepi32_ps(_mm512_srai_epi32(_mm512_slli_epi32(a.v, 24 - 8 * B), 24))};
}
template <int S> DW_INLINE Vec nibble_minus_8(Word a) {
  const __m512 values = _mm512_setr_ps(-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7);
  return {_mm512_permutexvar_ps(_mm512_srli_epi32(a.v, S), values)};
}
DW_INLINE Vec load_half(const uint8_t* p) { return {_mm512_cvtph_ps(_mm256_load_si256((const __m256i*)p))}; }

#elif defined(DEEPWELL_USE_AVX2)

struct Vec { __m256 a, b; };
struct Word { __m256i a, b; };
DW_INLINE Vec zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
DW_INLINE Vec fill(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
DW_INLINE Vec load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
DW_INLINE void store(float* p, Vec x) { _mm256_storeu_ps(p, x.a); _mm256_storeu_ps(p + 8, x.b); }
DW_INLINE __m256i lanes_below(int first, int n) {
  const __m256i lane = _mm256_add_epi32(_mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7), _mm256_set1_epi32(first));
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), lane);
}
DW_INLINE Vec load_first(const float* p, int n) {
  return {_mm256_maskload_ps(p, lanes_below(0, n)), _mm256_maskload_ps(p + 8, lanes_below(8, n))};
}
DW_INLINE void store_first(float* p, Vec x, int n) {
  _mm256_maskstore_ps(p, lanes_below(0, n), x.a);
  _mm256_maskstore_ps(p + 8, lanes_below(8, n), x.b);
}
DW_INLINE Vec keep_first(Vec x, int n, float other) {
  const __m256 o = _mm256_set1_ps(other);
  return {_mm256_blendv_ps(o, x.a, _mm256_castsi256_ps(lanes_below(0, n))),
          _mm256_blendv_ps(o, x.b, _mm256_castsi256_ps(lanes_below(8, n)))};
}
DW_INLINE Vec operator+(Vec x, Vec y) { return {_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)}; }
DW_INLINE Vec operator-(Vec x, Vec y) { return {_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b)}; }
DW_INLINE Vec operator*(Vec x, Vec y) { return {_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)}; }
DW_INLINE Vec operator/(Vec x, Vec y) { return {_mm256_div_ps(x.a, y.a), _mm256_div_ps(x.b, y.b)}; }
DW_INLINE Vec fma(Vec x, Vec y, Vec z) {
  return {_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)};
}
DW_INLINE Vec min(Vec x, Vec y) { return {_mm256_min_ps(x.a, y.a), _mm256_min_ps(x.b, y.b)}; }
DW_INLINE Vec max(Vec x, Vec y) { return {_mm256_max_ps(x.a, y.a), _mm256_max_ps(x.b, y.b)}; }
DW_INLINE Vec zero_below(Vec r, Vec x, float limit) {
  const __m256 l = _mm256_set1_ps(limit);
  return {_mm256_and_ps(r.a, _mm256_cmp_ps(x.a, l, _CMP_NLT_UQ)),
          _mm256_and_ps(r.b, _mm256_cmp_ps(x.b, l, _CMP_NLT_UQ))};
}
DW_INLINE float sum(Vec x) {
  __m256 b = _mm256_add_ps(x.a, x.b);
  __m128 c = _mm_add_ps(_mm256_castps256_ps128(b), _mm256_extractf128_ps(b, 1));
  __m128 d = _mm_add_ps(c, _mm_movehl_ps(c, c));
  return _mm_cvtss_f32(_mm_add_ss(d, _mm_shuffle_ps(d, d, 1)));
}
DW_INLINE float largest(Vec x) {
  __m256 b = _mm256_max_ps(x.a, x.b);
  __m128 c = _mm_max_ps(_mm256_castps256_ps128(b), _mm256_extractf128_ps(b, 1));
  __m128 d = _mm_max_ps(c, _mm_movehl_ps(c, c));
  return _mm_cvtss_f32(_mm_max_ss(d, _mm_shuffle_ps(d, d, 1)));
}
DW_INLINE Word load_word(const uint8_t* p) {
  return {_mm256_load_si256((const __m256i*)p), _mm256_load_si256((const __m256i*)(p + 32))};
}
DW_INLINE Word bits(Vec x) { return {_mm256_castps_si256(x.a), _mm256_castps_si256(x.b)}; }
DW_INLINE Vec as_float(Word x) { return {_mm256_castsi256_ps(x.a), _mm256_castsi256_ps(x.b)}; }
DW_INLINE Word add_int(Word x, int i) {
  return {_mm256_add_epi32(x.a, _mm256_set1_epi32(i)), _mm256_add_epi32(x.b, _mm256_set1_epi32(i))};
}
template <int S> DW_INLINE Word shift_left(Word x) { return {_mm256_slli_epi32(x.a, S), _mm256_slli_epi32(x.b, S)}; }
DW_INLINE Word high_half(Word x) {
  const __m256i m = _mm256_set1_epi32((int)0xffff0000u);
  return {_mm256_and_si256(x.a, m), _mm256_and_si256(x.b, m)};
}
template <int B> DW_INLINE Vec signed_byte(Word x) {
  return {_mm256_cvtepi32_ps(_mm256_srai_epi32(_mm256_slli_epi32(x.a, 24 - 8 * B), 24)),
          _mm256_cvtepi32_ps(_mm256_srai_epi32(_mm256_slli_epi32(x.b, 24 - 8 * B), 24))};
}
template <int S> DW_INLINE Vec nibble_minus_8(Word x) {
  const __m256i m = _mm256_set1_epi32(15);
  const __m256 eight = _mm256_set1_ps(8);
  return {_mm256_sub_ps(_mm256_cvtepi32_ps(_mm256_and_si256(_mm256_srli_epi32(x.a, S), m)), eight),
          _mm256_sub_ps(_mm256_cvtepi32_ps(_mm256_and_si256(_mm256_srli_epi32(x.b, S), m)), eight)};
}
DW_INLINE Vec load_half(const uint8_t* p) {
  return {_mm256_cvtph_ps(_mm_load_si128((const __m128i*)p)),
          _mm256_cvtph_ps(_mm_load_si128((const __m128i*)(p + 16)))};
}

#else

// Four quarters of four lanes: NEON registers, or arrays of scalars.
#if defined(DEEPWELL_USE_NEON)
using Quarter = float32x4_t;
using QuarterInt = uint32x4_t;
DW_INLINE Quarter q_fill(float x) { return vdupq_n_f32(x); }
DW_INLINE Quarter q_load(const float* p) { return vld1q_f32(p); }
DW_INLINE void q_store(float* p, Quarter a) { vst1q_f32(p, a); }
DW_INLINE Quarter q_add(Quarter a, Quarter b) { return vaddq_f32(a, b); }
DW_INLINE Quarter q_sub(Quarter a, Quarter b) { return vsubq_f32(a, b); }
DW_INLINE Quarter q_mul(Quarter a, Quarter b) { return vmulq_f32(a, b); }
DW_INLINE Quarter q_div(Quarter a, Quarter b) { return vdivq_f32(a, b); }
DW_INLINE Quarter q_fma(Quarter a, Quarter b, Quarter c) { return vfmaq_f32(c, a, b); }
DW_INLINE Quarter q_min(Quarter a, Quarter b) { return vminq_f32(a, b); }
DW_INLINE Quarter q_max(Quarter a, Quarter b) { return vmaxq_f32(a, b); }
DW_INLINE QuarterInt q_bits(Quarter a) { return vreinterpretq_u32_f32(a); }
DW_INLINE Quarter q_float(QuarterInt a) { return vreinterpretq_f32_u32(a); }
DW_INLINE Quarter q_from_int(QuarterInt a) { return vcvtq_f32_s32(vreinterpretq_s32_u32(a)); }
DW_INLINE Quarter q_zero_below(Quarter r, Quarter x, float limit) {
  return q_float(vbicq_u32(q_bits(r), vcltq_f32(x, vdupq_n_f32(limit))));
}
DW_INLINE QuarterInt q_load_int(const uint8_t* p) { return vld1q_u32((const uint32_t*)p); }
DW_INLINE QuarterInt q_add_int(QuarterInt a, int x) { return vaddq_u32(a, vdupq_n_u32((uint32_t)x)); }
DW_INLINE QuarterInt q_and(QuarterInt a, uint32_t m) { return vandq_u32(a, vdupq_n_u32(m)); }
template <int S> DW_INLINE QuarterInt q_left(QuarterInt a) { return vshlq_n_u32(a, S); }
template <int S> DW_INLINE QuarterInt q_right(QuarterInt a) {
  if constexpr (S == 0) return a; else return vshrq_n_u32(a, S);
}
template <int B> DW_INLINE Quarter q_signed_byte(QuarterInt a) {
  return vcvtq_f32_s32(vshrq_n_s32(vreinterpretq_s32_u32(vshlq_n_u32(a, 24 - 8 * B)), 24));
}
DW_INLINE Quarter q_load_half(const uint8_t* p) {
  return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16((const uint16_t*)p)));
}
#else
struct Quarter { float v[4]; };
struct QuarterInt { uint32_t v[4]; };
#define DW_EACH(type, expression) type r; for (int i = 0; i < 4; ++i) r.v[i] = (expression); return r
DW_INLINE uint32_t bits_of(float x) { uint32_t u; __builtin_memcpy(&u, &x, 4); return u; }
DW_INLINE float float_of(uint32_t u) { float x; __builtin_memcpy(&x, &u, 4); return x; }
DW_INLINE Quarter q_fill(float x) { DW_EACH(Quarter, x); }
DW_INLINE Quarter q_load(const float* p) { DW_EACH(Quarter, p[i]); }
DW_INLINE void q_store(float* p, Quarter a) { for (int i = 0; i < 4; ++i) p[i] = a.v[i]; }
DW_INLINE Quarter q_add(Quarter a, Quarter b) { DW_EACH(Quarter, a.v[i] + b.v[i]); }
DW_INLINE Quarter q_sub(Quarter a, Quarter b) { DW_EACH(Quarter, a.v[i] - b.v[i]); }
DW_INLINE Quarter q_mul(Quarter a, Quarter b) { DW_EACH(Quarter, a.v[i] * b.v[i]); }
DW_INLINE Quarter q_div(Quarter a, Quarter b) { DW_EACH(Quarter, a.v[i] / b.v[i]); }
DW_INLINE Quarter q_fma(Quarter a, Quarter b, Quarter c) { DW_EACH(Quarter, __builtin_fmaf(a.v[i], b.v[i], c.v[i])); }
DW_INLINE Quarter q_min(Quarter a, Quarter b) { DW_EACH(Quarter, a.v[i] < b.v[i] ? a.v[i] : b.v[i]); }
DW_INLINE Quarter q_max(Quarter a, Quarter b) { DW_EACH(Quarter, a.v[i] > b.v[i] ? a.v[i] : b.v[i]); }
DW_INLINE QuarterInt q_bits(Quarter a) { DW_EACH(QuarterInt, bits_of(a.v[i])); }
DW_INLINE Quarter q_float(QuarterInt a) { DW_EACH(Quarter, float_of(a.v[i])); }
DW_INLINE Quarter q_from_int(QuarterInt a) { DW_EACH(Quarter, (float)(int32_t)a.v[i]); }
DW_INLINE Quarter q_zero_below(Quarter a, Quarter x, float limit) { DW_EACH(Quarter, x.v[i] < limit ? 0.0f : a.v[i]); }
DW_INLINE QuarterInt q_load_int(const uint8_t* p) { QuarterInt r; __builtin_memcpy(&r, p, 16); return r; }
DW_INLINE QuarterInt q_add_int(QuarterInt a, int x) { DW_EACH(QuarterInt, a.v[i] + (uint32_t)x); }
DW_INLINE QuarterInt q_and(QuarterInt a, uint32_t m) { DW_EACH(QuarterInt, a.v[i] & m); }
template <int S> DW_INLINE QuarterInt q_left(QuarterInt a) { DW_EACH(QuarterInt, a.v[i] << S); }
template <int S> DW_INLINE QuarterInt q_right(QuarterInt a) { DW_EACH(QuarterInt, a.v[i] >> S); }
template <int B> DW_INLINE Quarter q_signed_byte(QuarterInt a) { DW_EACH(Quarter, (float)(int8_t)(a.v[i] >> (8 * B))); }
DW_INLINE float half_value(const uint8_t* p) {
  uint16_t h;
  __builtin_memcpy(&h, p, 2);
  const uint32_t sign = (uint32_t)(h & 0x8000) << 16, rest = h & 0x7fff;
  if (rest >= 0x7c00) return float_of(sign | 0x7f800000u | (rest & 0x3ff) << 13);
  return float_of(sign | bits_of(float_of(rest << 13) * 0x1p112f));
}
DW_INLINE Quarter q_load_half(const uint8_t* p) { DW_EACH(Quarter, half_value(p + 2 * i)); }
#undef DW_EACH
#endif

struct Vec { Quarter q[4]; };
struct Word { QuarterInt q[4]; };
#if defined(DEEPWELL_USE_NEON)
#define DW_EACH(type, expression) type r; unroll<4>([&](auto i) DW_LAMBDA { r.q[i] = (expression); }); return r
#else
#define DW_EACH(type, expression) type r; for (int i = 0; i < 4; ++i) r.q[i] = (expression); return r
#endif
DW_INLINE Vec fill(float x) { DW_EACH(Vec, q_fill(x)); }
DW_INLINE Vec zero() { return fill(0.0f); }
DW_INLINE Vec load(const float* p) { DW_EACH(Vec, q_load(p + 4 * i)); }
DW_INLINE void store(float* p, Vec a) { unroll<4>([&](auto i) DW_LAMBDA { q_store(p + 4 * i, a.q[i]); }); }
DW_INLINE Vec load_first(const float* p, int n) {
  float t[16] = {0};
  for (int i = 0; i < n; ++i) t[i] = p[i];
  return load(t);
}
DW_INLINE void store_first(float* p, Vec a, int n) {
  float t[16];
  store(t, a);
  for (int i = 0; i < n; ++i) p[i] = t[i];
}
DW_INLINE Vec keep_first(Vec a, int n, float other) {
  float t[16];
  store(t, a);
  for (int i = n; i < 16; ++i) t[i] = other;
  return load(t);
}
DW_INLINE Vec operator+(Vec a, Vec b) { DW_EACH(Vec, q_add(a.q[i], b.q[i])); }
DW_INLINE Vec operator-(Vec a, Vec b) { DW_EACH(Vec, q_sub(a.q[i], b.q[i])); }
DW_INLINE Vec operator*(Vec a, Vec b) { DW_EACH(Vec, q_mul(a.q[i], b.q[i])); }
DW_INLINE Vec operator/(Vec a, Vec b) { DW_EACH(Vec, q_div(a.q[i], b.q[i])); }
DW_INLINE Vec fma(Vec a, Vec b, Vec c) { DW_EACH(Vec, q_fma(a.q[i], b.q[i], c.q[i])); }
DW_INLINE Vec min(Vec a, Vec b) { DW_EACH(Vec, q_min(a.q[i], b.q[i])); }
DW_INLINE Vec max(Vec a, Vec b) { DW_EACH(Vec, q_max(a.q[i], b.q[i])); }
DW_INLINE Vec zero_below(Vec a, Vec x, float limit) { DW_EACH(Vec, q_zero_below(a.q[i], x.q[i], limit)); }
DW_INLINE float sum(Vec a) {
  float t[4];
  q_store(t, q_add(q_add(a.q[0], a.q[2]), q_add(a.q[1], a.q[3])));
  return (t[0] + t[2]) + (t[1] + t[3]);
}
DW_INLINE float largest(Vec a) {
  float t[4];
  q_store(t, q_max(q_max(a.q[0], a.q[2]), q_max(a.q[1], a.q[3])));
  const float x = t[0] > t[2] ? t[0] : t[2], y = t[1] > t[3] ? t[1] : t[3];
  return x > y ? x : y;
}
DW_INLINE Word load_word(const uint8_t* p) { DW_EACH(Word, q_load_int(p + 16 * i)); }
DW_INLINE Word bits(Vec a) { DW_EACH(Word, q_bits(a.q[i])); }
DW_INLINE Vec as_float(Word a) { DW_EACH(Vec, q_float(a.q[i])); }
DW_INLINE Word add_int(Word a, int x) { DW_EACH(Word, q_add_int(a.q[i], x)); }
template <int S> DW_INLINE Word shift_left(Word a) { DW_EACH(Word, q_left<S>(a.q[i])); }
DW_INLINE Word high_half(Word a) { DW_EACH(Word, q_and(a.q[i], 0xffff0000u)); }
template <int B> DW_INLINE Vec signed_byte(Word a) { DW_EACH(Vec, q_signed_byte<B>(a.q[i])); }
template <int S> DW_INLINE Vec nibble_minus_8(Word a) {
  DW_EACH(Vec, q_sub(q_from_int(q_and(q_right<S>(a.q[i]), 15u)), q_fill(8.0f)));
}
DW_INLINE Vec load_half(const uint8_t* p) { DW_EACH(Vec, q_load_half(p + 8 * i)); }
#undef DW_EACH

#endif

}  // namespace DEEPWELL_ISA
}  // namespace deepwell
