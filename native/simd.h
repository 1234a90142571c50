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

// Says that a sum is needed now: gcc puts off additions until the end of a chain, and keeps all their operands till then,
// which are more than there are registers.
#if defined(DEEPWELL_USE_NEON)
#define DW_ADDED(sum) asm("" : "+w"(sum))
#else
#define DW_ADDED(sum) asm("" : "+v"(sum))
#endif

namespace deepwell {
namespace DEEPWELL_ISA {

template <int N>
struct Int {
  static constexpr int value = N;
  constexpr operator int() const { return N; }
};

template <int... I>
struct Ints {};
template <int N, int... I>
struct First : First<N - 1, N - 1, I...> {};
template <int... I>
struct First<0, I...> {
  using type = Ints<I...>;
};

// Calls f(Int<0>{}) ... f(Int<N-1>{}): a loop that is always unrolled, so that arrays of vectors live in registers.
template <class F, int... I>
DW_INLINE void unroll_each(F&& f, Ints<I...>) {
  (f(Int<I>{}), ...);
}
template <int N, class F>
DW_INLINE void unroll(F&& f) {
  unroll_each(f, typename First<N>::type{});
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
DW_INLINE Word load_word(const void* p) { return {_mm512_loadu_si512(p)}; }
DW_INLINE void store_word(void* p, Word a) { _mm512_storeu_si512(p, a.v); }
DW_INLINE Word word_at(const void* p) {
  int x;
  __builtin_memcpy(&x, p, 4);
  return {_mm512_set1_epi32(x)};
}
DW_INLINE Word fill_word(int x) { return {_mm512_set1_epi32(x)}; }
DW_INLINE Word table_word(const uint8_t* p) { return {_mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i*)p))}; }
DW_INLINE Word lookup(Word table, Word index) { return {_mm512_shuffle_epi8(table.v, index.v)}; }
DW_INLINE Word mask(Word a, uint32_t m) { return {_mm512_and_si512(a.v, _mm512_set1_epi32((int)m))}; }
DW_INLINE Word operator|(Word a, Word b) { return {_mm512_or_si512(a.v, b.v)}; }
template <int S> DW_INLINE Word shift_right(Word a) { return {_mm512_srli_epi32(a.v, S)}; }
template <int S> DW_INLINE Word halve(Word a) { return {_mm512_srai_epi32(a.v, S)}; }
DW_INLINE Word operator+(Word a, Word b) { return {_mm512_add_epi32(a.v, b.v)}; }
DW_INLINE Word from_bytes(const uint8_t* p) { return {_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)p))}; }
DW_INLINE Word from_signed_bytes(const uint8_t* p) { return {_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)p))}; }
DW_INLINE void store_bytes(void* p, Word a) { _mm_storeu_si128((__m128i*)p, _mm512_cvtepi32_epi8(a.v)); }
DW_INLINE void store_shorts(void* p, Word a) { _mm256_storeu_si256((__m256i*)p, _mm512_cvtepi32_epi16(a.v)); }
DW_INLINE Vec to_float(Word a) { return {_mm512_cvtepi32_ps(a.v)}; }
DW_INLINE Word round(Vec a) { return {_mm512_cvtps_epi32(a.v)}; }
DW_INLINE int sum_int(Word a) { return _mm512_reduce_add_epi32(a.v); }
DW_INLINE Vec absolute(Vec a) { return {_mm512_abs_ps(a.v)}; }
DW_INLINE Vec low_halves(Word a) { return {_mm512_cvtph_ps(_mm512_cvtepi32_epi16(a.v))}; }
constexpr bool kSignedDot = false;
template <bool Wide> DW_INLINE Word dot(Word acc, Word codes, Word x) {
#if defined(__AVX512VNNI__)
  return {_mm512_dpbusd_epi32(acc.v, codes.v, x.v)};
#else
  const __m512i one = _mm512_set1_epi16(1);
  if constexpr (Wide) {
    const __m512i low = _mm512_set1_epi8(15);
    const __m512i a = _mm512_maddubs_epi16(_mm512_and_si512(codes.v, low), x.v);
    const __m512i b = _mm512_maddubs_epi16(_mm512_and_si512(_mm512_srli_epi16(codes.v, 4), low), x.v);
    acc.v = _mm512_add_epi32(acc.v, _mm512_madd_epi16(b, _mm512_set1_epi16(16)));
    acc.v = _mm512_add_epi32(acc.v, _mm512_madd_epi16(a, one));
  } else {
    acc.v = _mm512_add_epi32(acc.v, _mm512_madd_epi16(_mm512_maddubs_epi16(codes.v, x.v), one));
  }
  DW_ADDED(acc.v);
  return acc;
#endif
}
#if defined(__AVX512BF16__)
DW_INLINE Vec dot_bf16(Vec acc, Word a, Word b) { return {_mm512_dpbf16_ps(acc.v, (__m512bh)a.v, (__m512bh)b.v)}; }
#define DW_HAS_DOT_BF16
#endif
// The 16-bit halves of two rows, paired: a has columns 0..31 of one row, b of the next; `low` gets columns
// 0-3, 8-11, 16-19, 24-27 as pairs, `high` the others. spread_at(i) is the column of lane i of `low`.
DW_INLINE void pair(Word a, Word b, Word& low, Word& high) {
  low.v = _mm512_unpacklo_epi16(a.v, b.v);
  high.v = _mm512_unpackhi_epi16(a.v, b.v);
}
// From such a pair of results back to columns 0..15 and 16..31.
DW_INLINE void unpair(Vec low, Vec high, Vec& first, Vec& second) {
  const __m512i f = _mm512_setr_epi32(0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23);
  const __m512i s = _mm512_setr_epi32(8, 9, 10, 11, 24, 25, 26, 27, 12, 13, 14, 15, 28, 29, 30, 31);
  first.v = _mm512_permutex2var_ps(low.v, f, high.v);
  second.v = _mm512_permutex2var_ps(low.v, s, high.v);
}
DW_INLINE Word bits(Vec a) { return {_mm512_castps_si512(a.v)}; }
DW_INLINE Vec as_float(Word a) { return {_mm512_castsi512_ps(a.v)}; }
DW_INLINE Word add_int(Word a, int x) { return {_mm512_add_epi32(a.v, _mm512_set1_epi32(x))}; }
template <int S> DW_INLINE Word shift_left(Word a) { return {_mm512_slli_epi32(a.v, S)}; }
DW_INLINE Word high_half(Word a) { return {_mm512_and_si512(a.v, _mm512_set1_epi32((int)0xffff0000u))}; }
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
DW_INLINE Word load_word(const void* p) {
  return {_mm256_loadu_si256((const __m256i*)p), _mm256_loadu_si256((const __m256i*)p + 1)};
}
DW_INLINE void store_word(void* p, Word x) {
  _mm256_storeu_si256((__m256i*)p, x.a);
  _mm256_storeu_si256((__m256i*)p + 1, x.b);
}
DW_INLINE Word fill_word(int i) { return {_mm256_set1_epi32(i), _mm256_set1_epi32(i)}; }
DW_INLINE Word word_at(const void* p) {
  int i;
  __builtin_memcpy(&i, p, 4);
  return fill_word(i);
}
DW_INLINE Word table_word(const uint8_t* p) {
  const __m256i t = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i*)p));
  return {t, t};
}
DW_INLINE Word lookup(Word t, Word i) { return {_mm256_shuffle_epi8(t.a, i.a), _mm256_shuffle_epi8(t.b, i.b)}; }
DW_INLINE Word mask(Word x, uint32_t m) {
  const __m256i v = _mm256_set1_epi32((int)m);
  return {_mm256_and_si256(x.a, v), _mm256_and_si256(x.b, v)};
}
DW_INLINE Word operator|(Word x, Word y) { return {_mm256_or_si256(x.a, y.a), _mm256_or_si256(x.b, y.b)}; }
template <int S> DW_INLINE Word shift_right(Word x) { return {_mm256_srli_epi32(x.a, S), _mm256_srli_epi32(x.b, S)}; }
template <int S> DW_INLINE Word halve(Word x) { return {_mm256_srai_epi32(x.a, S), _mm256_srai_epi32(x.b, S)}; }
DW_INLINE Word operator+(Word x, Word y) { return {_mm256_add_epi32(x.a, y.a), _mm256_add_epi32(x.b, y.b)}; }
DW_INLINE Word from_bytes(const uint8_t* p) {
  return {_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)p)),
          _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)(p + 8)))};
}
DW_INLINE Word from_signed_bytes(const uint8_t* p) {
  return {_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)p)),
          _mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)(p + 8)))};
}
// Low 16 bits of each lane, in order; the lanes must fit as signed or, with high halves cleared, unsigned shorts.
DW_INLINE __m256i shorts(Word x) {
  const __m256i m = _mm256_set1_epi32(0xffff);
  const __m256i p = _mm256_packus_epi32(_mm256_and_si256(x.a, m), _mm256_and_si256(x.b, m));
  return _mm256_permute4x64_epi64(p, 0xd8);
}
DW_INLINE void store_shorts(void* p, Word x) { _mm256_storeu_si256((__m256i*)p, shorts(x)); }
DW_INLINE void store_bytes(void* p, Word x) {
  const __m256i s = shorts(x);
  _mm_storeu_si128((__m128i*)p, _mm_packs_epi16(_mm256_castsi256_si128(s), _mm256_extracti128_si256(s, 1)));
}
DW_INLINE Vec to_float(Word x) { return {_mm256_cvtepi32_ps(x.a), _mm256_cvtepi32_ps(x.b)}; }
DW_INLINE Word round(Vec x) { return {_mm256_cvtps_epi32(x.a), _mm256_cvtps_epi32(x.b)}; }
DW_INLINE int sum_int(Word x) {
  const __m256i s = _mm256_add_epi32(x.a, x.b);
  __m128i t = _mm_add_epi32(_mm256_castsi256_si128(s), _mm256_extracti128_si256(s, 1));
  t = _mm_add_epi32(t, _mm_shuffle_epi32(t, 0x4e));
  return _mm_cvtsi128_si32(_mm_add_epi32(t, _mm_shuffle_epi32(t, 0xb1)));
}
DW_INLINE Vec absolute(Vec x) {
  const __m256 sign = _mm256_set1_ps(-0.0f);
  return {_mm256_andnot_ps(sign, x.a), _mm256_andnot_ps(sign, x.b)};
}
DW_INLINE Vec low_halves(Word x) {
  const __m256i s = shorts(x);
  return {_mm256_cvtph_ps(_mm256_castsi256_si128(s)), _mm256_cvtph_ps(_mm256_extracti128_si256(s, 1))};
}
constexpr bool kSignedDot = false;
template <bool Wide> DW_INLINE __m256i dot_half(__m256i acc, __m256i codes, __m256i x) {
#if defined(__AVXVNNI__)
  return _mm256_dpbusd_avx_epi32(acc, codes, x);
#else
  const __m256i one = _mm256_set1_epi16(1);
  if constexpr (Wide) {  // two nibbles apart, since pairs of products with a whole byte would overflow 16 bits
    const __m256i low = _mm256_set1_epi8(15);
    const __m256i a = _mm256_maddubs_epi16(_mm256_and_si256(codes, low), x);
    const __m256i b = _mm256_maddubs_epi16(_mm256_and_si256(_mm256_srli_epi16(codes, 4), low), x);
    acc = _mm256_add_epi32(acc, _mm256_madd_epi16(b, _mm256_set1_epi16(16)));
    acc = _mm256_add_epi32(acc, _mm256_madd_epi16(a, one));
  } else {
    acc = _mm256_add_epi32(acc, _mm256_madd_epi16(_mm256_maddubs_epi16(codes, x), one));
  }
  DW_ADDED(acc);
  return acc;
#endif
}
template <bool Wide> DW_INLINE Word dot(Word acc, Word codes, Word x) {
  return {dot_half<Wide>(acc.a, codes.a, x.a), dot_half<Wide>(acc.b, codes.b, x.b)};
}
DW_INLINE void pair(Word x, Word y, Word& low, Word& high) {
  low = {_mm256_unpacklo_epi16(x.a, y.a), _mm256_unpacklo_epi16(x.b, y.b)};
  high = {_mm256_unpackhi_epi16(x.a, y.a), _mm256_unpackhi_epi16(x.b, y.b)};
}
DW_INLINE void unpair(Vec low, Vec high, Vec& first, Vec& second) {
  first = {_mm256_permute2f128_ps(low.a, high.a, 0x20), _mm256_permute2f128_ps(low.a, high.a, 0x31)};
  second = {_mm256_permute2f128_ps(low.b, high.b, 0x20), _mm256_permute2f128_ps(low.b, high.b, 0x31)};
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
// The second operand where one is no number, as elsewhere; NEON's own minimum would give NaN.
DW_INLINE Quarter q_min(Quarter a, Quarter b) { return vbslq_f32(vcltq_f32(a, b), a, b); }
DW_INLINE Quarter q_max(Quarter a, Quarter b) { return vbslq_f32(vcgtq_f32(a, b), a, b); }
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
DW_INLINE Quarter q_load_half(const uint8_t* p) {
  return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16((const uint16_t*)p)));
}
DW_INLINE Quarter q_low_half(QuarterInt a) { return vcvt_f32_f16(vreinterpret_f16_u16(vmovn_u32(a))); }
DW_INLINE void q_store_int(uint8_t* p, QuarterInt a) { vst1q_u32((uint32_t*)p, a); }
DW_INLINE QuarterInt q_fill_int(int x) { return vdupq_n_u32((uint32_t)x); }
DW_INLINE QuarterInt q_or(QuarterInt a, QuarterInt b) { return vorrq_u32(a, b); }
DW_INLINE QuarterInt q_plus(QuarterInt a, QuarterInt b) { return vaddq_u32(a, b); }
DW_INLINE QuarterInt q_lookup(QuarterInt t, QuarterInt i) {
  return vreinterpretq_u32_u8(vqtbl1q_u8(vreinterpretq_u8_u32(t), vreinterpretq_u8_u32(i)));
}
template <int S> DW_INLINE QuarterInt q_halve(QuarterInt a) {
  return vreinterpretq_u32_s32(vshrq_n_s32(vreinterpretq_s32_u32(a), S));
}
DW_INLINE QuarterInt q_from_bytes(const uint8_t* p) {
  const uint32_t x[4] = {p[0], p[1], p[2], p[3]};
  return vld1q_u32(x);
}
DW_INLINE QuarterInt q_from_signed_bytes(const uint8_t* p) {
  const int32_t x[4] = {(int8_t)p[0], (int8_t)p[1], (int8_t)p[2], (int8_t)p[3]};
  return vreinterpretq_u32_s32(vld1q_s32(x));
}
DW_INLINE QuarterInt q_round(Quarter a) { return vreinterpretq_u32_s32(vcvtnq_s32_f32(a)); }
DW_INLINE Quarter q_absolute(Quarter a) { return vabsq_f32(a); }
constexpr bool kSignedDot = true;
template <bool Wide> DW_INLINE QuarterInt q_dot(QuarterInt acc, QuarterInt codes, QuarterInt x) {
  int8x16_t c = vreinterpretq_s8_u32(codes);
  const int8x16_t a = vreinterpretq_s8_u32(x);
  if constexpr (Wide) c = veorq_s8(c, vdupq_n_s8((int8_t)0x80));
#if defined(__ARM_FEATURE_DOTPROD)
  return vreinterpretq_u32_s32(vdotq_s32(vreinterpretq_s32_u32(acc), c, a));
#else
  const int32x4_t low = vpaddlq_s16(vmull_s8(vget_low_s8(c), vget_low_s8(a)));
  const int32x4_t high = vpaddlq_s16(vmull_high_s8(c, a));
  int32x4_t sum = vaddq_s32(vreinterpretq_s32_u32(acc), vpaddq_s32(low, high));
  DW_ADDED(sum);
  return vreinterpretq_u32_s32(sum);
#endif
}
DW_INLINE void q_pair(QuarterInt a, QuarterInt b, QuarterInt& low, QuarterInt& high) {
  low = vreinterpretq_u32_u16(vzip1q_u16(vreinterpretq_u16_u32(a), vreinterpretq_u16_u32(b)));
  high = vreinterpretq_u32_u16(vzip2q_u16(vreinterpretq_u16_u32(a), vreinterpretq_u16_u32(b)));
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
DW_INLINE float half_value(const uint8_t* p) {
  uint16_t h;
  __builtin_memcpy(&h, p, 2);
  const uint32_t sign = (uint32_t)(h & 0x8000) << 16, rest = h & 0x7fff;
  if (rest >= 0x7c00) return float_of(sign | 0x7f800000u | (rest & 0x3ff) << 13);
  return float_of(sign | bits_of(float_of(rest << 13) * 0x1p112f));
}
DW_INLINE Quarter q_load_half(const uint8_t* p) { DW_EACH(Quarter, half_value(p + 2 * i)); }
DW_INLINE Quarter q_low_half(QuarterInt a) { DW_EACH(Quarter, half_value((const uint8_t*)&a.v[i])); }
DW_INLINE void q_store_int(uint8_t* p, QuarterInt a) { __builtin_memcpy(p, &a, 16); }
DW_INLINE QuarterInt q_fill_int(int x) { DW_EACH(QuarterInt, (uint32_t)x); }
DW_INLINE QuarterInt q_or(QuarterInt a, QuarterInt b) { DW_EACH(QuarterInt, a.v[i] | b.v[i]); }
DW_INLINE QuarterInt q_plus(QuarterInt a, QuarterInt b) { DW_EACH(QuarterInt, a.v[i] + b.v[i]); }
DW_INLINE uint8_t byte_of(uint32_t x, int b) { return (uint8_t)(x >> (8 * b)); }
DW_INLINE QuarterInt q_lookup(QuarterInt t, QuarterInt a) {
  QuarterInt r = {{0, 0, 0, 0}};
  for (int i = 0; i < 16; ++i) {
    const uint8_t at = byte_of(a.v[i / 4], i % 4) & 15;
    r.v[i / 4] |= (uint32_t)byte_of(t.v[at / 4], at % 4) << (8 * (i % 4));
  }
  return r;
}
template <int S> DW_INLINE QuarterInt q_halve(QuarterInt a) { DW_EACH(QuarterInt, (uint32_t)((int32_t)a.v[i] >> S)); }
DW_INLINE QuarterInt q_from_bytes(const uint8_t* p) { DW_EACH(QuarterInt, p[i]); }
DW_INLINE QuarterInt q_from_signed_bytes(const uint8_t* p) { DW_EACH(QuarterInt, (uint32_t)(int8_t)p[i]); }
DW_INLINE QuarterInt q_round(Quarter a) { DW_EACH(QuarterInt, (uint32_t)(int32_t)((a.v[i] + 12582912.0f) - 12582912.0f)); }
DW_INLINE Quarter q_absolute(Quarter a) { DW_EACH(Quarter, __builtin_fabsf(a.v[i])); }
constexpr bool kSignedDot = false;
template <bool Wide> DW_INLINE QuarterInt q_dot(QuarterInt acc, QuarterInt codes, QuarterInt x) {
  for (int i = 0; i < 16; ++i)
    acc.v[i / 4] += (uint32_t)((int)byte_of(codes.v[i / 4], i % 4) * (int8_t)byte_of(x.v[i / 4], i % 4));
  return acc;
}
DW_INLINE void q_pair(QuarterInt a, QuarterInt b, QuarterInt& low, QuarterInt& high) {
  for (int i = 0; i < 4; ++i) {
    const int h = i % 2 * 16;
    const uint32_t x = (a.v[i / 2] >> h & 0xffff) | (b.v[i / 2] >> h) << 16;
    const uint32_t y = (a.v[2 + i / 2] >> h & 0xffff) | (b.v[2 + i / 2] >> h) << 16;
    low.v[i] = x;
    high.v[i] = y;
  }
}
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
DW_INLINE Word load_word(const void* p) { DW_EACH(Word, q_load_int((const uint8_t*)p + 16 * i)); }
DW_INLINE void store_word(void* p, Word a) {
  unroll<4>([&](auto i) DW_LAMBDA { q_store_int((uint8_t*)p + 16 * i, a.q[i]); });
}
DW_INLINE Word fill_word(int x) { DW_EACH(Word, q_fill_int(x)); }
DW_INLINE Word word_at(const void* p) {
  int x;
  __builtin_memcpy(&x, p, 4);
  return fill_word(x);
}
DW_INLINE Word table_word(const uint8_t* p) { DW_EACH(Word, q_load_int(p + 0 * i)); }
DW_INLINE Word lookup(Word t, Word a) { DW_EACH(Word, q_lookup(t.q[i], a.q[i])); }
DW_INLINE Word mask(Word a, uint32_t m) { DW_EACH(Word, q_and(a.q[i], m)); }
DW_INLINE Word operator|(Word a, Word b) { DW_EACH(Word, q_or(a.q[i], b.q[i])); }
DW_INLINE Word operator+(Word a, Word b) { DW_EACH(Word, q_plus(a.q[i], b.q[i])); }
template <int S> DW_INLINE Word shift_right(Word a) { DW_EACH(Word, q_right<S>(a.q[i])); }
template <int S> DW_INLINE Word halve(Word a) { DW_EACH(Word, q_halve<S>(a.q[i])); }
DW_INLINE Word from_bytes(const uint8_t* p) { DW_EACH(Word, q_from_bytes(p + 4 * i)); }
DW_INLINE Word from_signed_bytes(const uint8_t* p) { DW_EACH(Word, q_from_signed_bytes(p + 4 * i)); }
DW_INLINE void store_bytes(void* p, Word a) {
  uint32_t t[16];
  store_word(t, a);
  for (int i = 0; i < 16; ++i) ((uint8_t*)p)[i] = (uint8_t)t[i];
}
DW_INLINE void store_shorts(void* p, Word a) {
  uint32_t t[16];
  uint16_t h[16];
  store_word(t, a);
  for (int i = 0; i < 16; ++i) h[i] = (uint16_t)t[i];
  __builtin_memcpy(p, h, 32);
}
DW_INLINE Vec to_float(Word a) { DW_EACH(Vec, q_from_int(a.q[i])); }
DW_INLINE Word round(Vec a) { DW_EACH(Word, q_round(a.q[i])); }
DW_INLINE int sum_int(Word a) {
  uint32_t t[16], n = 0;
  store_word(t, a);
  for (int i = 0; i < 16; ++i) n += t[i];
  return (int)n;
}
DW_INLINE Vec absolute(Vec a) { DW_EACH(Vec, q_absolute(a.q[i])); }
DW_INLINE Vec low_halves(Word a) { DW_EACH(Vec, q_low_half(a.q[i])); }
template <bool Wide> DW_INLINE Word dot(Word acc, Word codes, Word x) {
  DW_EACH(Word, q_dot<Wide>(acc.q[i], codes.q[i], x.q[i]));
}
DW_INLINE void pair(Word a, Word b, Word& low, Word& high) {
  unroll<4>([&](auto i) DW_LAMBDA { q_pair(a.q[i], b.q[i], low.q[i], high.q[i]); });
}
DW_INLINE void unpair(Vec low, Vec high, Vec& first, Vec& second) {
  first.q[0] = low.q[0], first.q[1] = high.q[0], first.q[2] = low.q[1], first.q[3] = high.q[1];
  second.q[0] = low.q[2], second.q[1] = high.q[2], second.q[2] = low.q[3], second.q[3] = high.q[3];
}
DW_INLINE Word bits(Vec a) { DW_EACH(Word, q_bits(a.q[i])); }
DW_INLINE Vec as_float(Word a) { DW_EACH(Vec, q_float(a.q[i])); }
DW_INLINE Word add_int(Word a, int x) { DW_EACH(Word, q_add_int(a.q[i], x)); }
template <int S> DW_INLINE Word shift_left(Word a) { DW_EACH(Word, q_left<S>(a.q[i])); }
DW_INLINE Word high_half(Word a) { DW_EACH(Word, q_and(a.q[i], 0xffff0000u)); }
DW_INLINE Vec load_half(const uint8_t* p) { DW_EACH(Vec, q_load_half(p + 8 * i)); }
#undef DW_EACH

#endif

// Sixteen sums at once, each added up as by sum().
#if defined(DEEPWELL_USE_AVX512)
DW_INLINE Vec sums_of(const Vec (&v)[16]) {
  __m512 a[8], b[4], c[2];
  unroll<8>([&](auto i) DW_LAMBDA {  // halves: sources 2i, 2i + 1
    const __m512 x = v[2 * i].v, y = v[2 * i + 1].v;
    a[i] = _mm512_add_ps(_mm512_shuffle_f32x4(x, y, 0x44), _mm512_shuffle_f32x4(x, y, 0xee));
  });
  unroll<4>([&](auto i) DW_LAMBDA {  // quarters
    const __m512 x = a[2 * i], y = a[2 * i + 1];
    b[i] = _mm512_add_ps(_mm512_shuffle_f32x4(x, y, 0x88), _mm512_shuffle_f32x4(x, y, 0xdd));
  });
  unroll<2>([&](auto i) DW_LAMBDA {
    const __m512 x = b[2 * i], y = b[2 * i + 1];
    c[i] = _mm512_add_ps(_mm512_shuffle_ps(x, y, 0x44), _mm512_shuffle_ps(x, y, 0xee));
  });
  const __m512 d = _mm512_add_ps(_mm512_shuffle_ps(c[0], c[1], 0x88), _mm512_shuffle_ps(c[0], c[1], 0xdd));
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  return {_mm512_permutexvar_ps(order, d)};
}
#else
DW_INLINE Vec sums_of(const Vec (&v)[16]) {
  float t[16];
  unroll<16>([&](auto i) DW_LAMBDA { t[i] = sum(v[i]); });
  return load(t);
}
#endif

#if !defined(DW_HAS_DOT_BF16)
// acc + a.high * b.high + a.low * b.low of each lane's bfloat16 pairs, fused one after the other: what AVX512-BF16's
// instruction computes, whose results were compared bit for bit.
DW_INLINE Vec dot_bf16(Vec acc, Word a, Word b) {
  acc = fma(as_float(high_half(a)), as_float(high_half(b)), acc);
  return fma(as_float(shift_left<16>(a)), as_float(shift_left<16>(b)), acc);
}
#endif
DW_INLINE Vec high_halves(Word a) { return low_halves(shift_right<16>(a)); }
// Sixteen bfloat16, rounded to nearest, ties to even.
DW_INLINE void store_bf16(uint16_t* p, Vec a) {
  const Word u = bits(a);
  store_shorts(p, shift_right<16>(add_int(u, 0x7fff) + mask(shift_right<16>(u), 1)));
}

}  // namespace DEEPWELL_ISA
}  // namespace deepwell
