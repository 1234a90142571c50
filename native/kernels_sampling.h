// Sampling's passes over a row of logits, chunk by chunk of kChunk values: peaks in float32, all else in float64. A short
// last chunk is filled up with -infinity, which weighs nothing.
#pragma once
#include "kernels.h"
#include "simd_double.h"

namespace deepwell {
namespace DEEPWELL_ISA {

// e^x for x <= 0, within 1.5 units in the last place, and within one of the smallest subnormal where the result is
// subnormal. The power of two is applied in two halves, so that it rounds once, at the end.
DW_INLINE Double exp(Double x) {
  constexpr double magic = 6755399441055744.0;  // 1.5 * 2^52: adding it rounds to an integer
  const Double m = fill_double(magic);
  x = max(x, fill_double(-746.0));  // e^-746 is 0
  const Double n = (x * fill_double(1.4426950408889634074) + m) - m;
  // ln 2 in two parts; the first has 32 bits, so that its products with n are exact.
  const Double r = (x - n * fill_double(0x1.62e42fee00000p-1)) - n * fill_double(0x1.a39ef35793c76p-33);
  constexpr double taylor[] = {1.0 / 6227020800, 1.0 / 479001600, 1.0 / 39916800, 1.0 / 3628800, 1.0 / 362880, 1.0 / 40320,
                               1.0 / 5040,       1.0 / 720,       1.0 / 120,      1.0 / 24,      1.0 / 6,      0.5};
  Double p = fill_double(taylor[0]);
  unroll<11>([&](auto i) DW_LAMBDA { p = p * r + fill_double(taylor[i + 1]); });
  p = fill_double(1.0) + (r + r * r * p);
  const Double half = n * fill_double(0.5) + m;
  return p * power_of_two(half) * power_of_two((n - (half - m)) + m);
}

// peaks[c] is the largest of chunk c; not a number where one of the chunk is +infinity or not a number.
inline void chunk_peaks(const float* x, int n, float* peaks) {
  const float infinity = __builtin_inff();
  for (int start = 0, c = 0; start < n; start += kChunk, ++c) {
    const int end = n - start < kChunk ? n : start + kChunk;
    Vec most = fill(-infinity), broken = zero();
    int i = start;
    for (; i + 16 <= end; i += 16) {
      const Vec v = load(x + i);
      most = max(v, most);
      broken = max(zero_below(fill(1.0f), v, infinity), broken);
    }
    if (i < end) {
      const Vec v = keep_first(load_first(x + i, end - i), end - i, -infinity);
      most = max(v, most);
      broken = max(zero_below(fill(1.0f), v, infinity), broken);
    }
    peaks[c] = largest(broken) > 0 ? __builtin_nanf("") : largest(most) + 0.0f;  // -0 is 0
  }
}

// A chunk of n values in float64; -infinity where `allowed`, unless it is null, has no bit set.
inline void widen_chunk(const float* x, int n, const uint32_t* allowed, double* out) {
  const double none = -__builtin_inf();
  float last[kChunk];
  uint32_t words[kChunk / 32] = {0};
  if (n < kChunk) {
    for (int i = 0; i < kChunk; ++i) last[i] = i < n ? x[i] : -__builtin_inff();
    x = last;
    if (allowed) {
      for (int i = 0; 32 * i < n; ++i) words[i] = allowed[i];
      allowed = words;
    }
  }
  for (int i = 0; i < kChunk; i += 8) {
    const Double v = widen(x + i);
    store(out + i, allowed ? keep(v, allowed[i / 32] >> i % 32 & 255, none) : v);
  }
}

inline double chunk_peak(const double* x) {
  Double most = load_double(x);
  for (int i = 8; i < kChunk; i += 8) most = max(load_double(x + i), most);
  return largest(most) + 0.0;
}

template <bool Divide>
DW_INLINE double weigh(const double* x, double peak, double temperature, double* weights) {
  Double total = fill_double(0.0);
  for (int i = 0; i < kChunk; i += 8) {
    Double depth = fill_double(peak) - load_double(x + i);
    if constexpr (Divide) depth = depth / fill_double(temperature);
    const Double w = exp(fill_double(0.0) - depth);
    store(weights + i, w);
    total = total + w;
  }
  return sum(total);
}

// weights[i] = e^-((peak - x[i]) / temperature); returns their sum.
inline double chunk_weights(const double* x, double peak, double temperature, double* weights) {
  return temperature == 1.0 ? weigh<false>(x, peak, 1.0, weights) : weigh<true>(x, peak, temperature, weights);
}

// For each chunk the sum of its weights that are not below `limit`.
inline void chunk_sums(const double* weights, int chunks, double limit, double* sums) {
  const Double l = fill_double(limit);
  for (int c = 0; c < chunks; ++c) {
    Double total = fill_double(0.0);
    for (int i = 0; i < kChunk; i += 8) total = total + from(load_double(weights + (size_t)kChunk * c + i), l);
    sums[c] = sum(total);
  }
}

// Sets a bit for each value that is not below `limit`.
inline void chunk_at_least(const double* x, double limit, uint64_t* bits) {
  const Double l = fill_double(limit);
  for (int w = 0; w < kChunk / 64; ++w) {
    bits[w] = 0;
    for (int i = 0; i < 64; i += 8) bits[w] |= (uint64_t)at_least(load_double(x + 64 * w + i), l) << i;
  }
}

}  // namespace DEEPWELL_ISA
}  // namespace deepwell
