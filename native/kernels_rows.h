// Operations on one row: norm, addition, activation, softmax, weighted sums.
#pragma once
#include "kernels.h"
#include "simd.h"

namespace deepwell {
namespace DEEPWELL_ISA {

// e^x with a relative error below 2e-7 for x in [-87.3, 88.3]; 0 below, e^88.3 above.
DW_INLINE Vec exp(Vec x) {
  constexpr float low = -87.3f, high = 88.3f, magic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  const Vec c = max(min(x, fill(high)), fill(low));
  const Vec shifted = fma(c, fill(1.44269504f), fill(magic));
  const Vec n = shifted - fill(magic);
  Vec r = fma(n, fill(-0.693359375f), c);
  r = fma(n, fill(2.12194440e-4f), r);
  Vec p = fill(1.9875691500e-4f);
  p = fma(p, r, fill(1.3981999507e-3f));
  p = fma(p, r, fill(8.3334519073e-3f));
  p = fma(p, r, fill(4.1665795894e-2f));
  p = fma(p, r, fill(1.6666665459e-1f));
  p = fma(p, r, fill(5.0000001201e-1f));
  p = fma(p, r * r, r) + fill(1.0f);
  const Vec power = as_float(shift_left<23>(add_int(bits(shifted), 127)));
  return zero_below(p * power, x, low);
}

// Calls f(offset, count) for each vector of a row; the last one may be short.
template <class F>
DW_INLINE void each_vector(int n, F&& f) {
  int i = 0;
  for (; i + 16 <= n; i += 16) f(i, 16);
  if (i < n) f(i, n - i);
}
DW_INLINE Vec load_some(const float* p, int n) { return n == 16 ? load(p) : load_first(p, n); }
DW_INLINE void store_some(float* p, Vec v, int n) { n == 16 ? store(p, v) : store_first(p, v, n); }

inline void rms_norm(const float* x, const float* weight, float* y, int n, float eps) {
  Vec squares = zero();
  each_vector(n, [&](int i, int c) DW_LAMBDA {
    const Vec v = load_some(x + i, c);
    squares = fma(v, v, squares);
  });
  const Vec inverse = fill(1.0f / __builtin_sqrtf(sum(squares) / (float)n + eps));
  each_vector(n, [&](int i, int c) DW_LAMBDA {
    store_some(y + i, load_some(x + i, c) * inverse * load_some(weight + i, c), c);
  });
}

inline void layer_norm(const float* x, const float* weight, const float* bias, float* y, int n, float eps) {
  Vec total = zero(), squares = zero();
  each_vector(n, [&](int i, int c) DW_LAMBDA { total = total + load_some(x + i, c); });
  const Vec mean = fill(sum(total) / (float)n);
  each_vector(n, [&](int i, int c) DW_LAMBDA {
    const Vec v = keep_first(load_some(x + i, c) - mean, c, 0.0f);
    squares = fma(v, v, squares);
  });
  const Vec inverse = fill(1.0f / __builtin_sqrtf(sum(squares) / (float)n + eps));
  each_vector(n, [&](int i, int c) DW_LAMBDA {
    const Vec v = (load_some(x + i, c) - mean) * inverse;
    store_some(y + i, fma(v, load_some(weight + i, c), load_some(bias + i, c)), c);
  });
}

inline void add(const float* x, const float* y, float* out, int n) {
  each_vector(n, [&](int i, int c) DW_LAMBDA { store_some(out + i, load_some(x + i, c) + load_some(y + i, c), c); });
}

DW_INLINE Vec silu(Vec x) { return x / (fill(1.0f) + exp(zero() - x)); }

inline void swiglu(const float* gate, const float* up, float* out, int n) {
  each_vector(n, [&](int i, int c) DW_LAMBDA {
    store_some(out + i, silu(load_some(gate + i, c)) * load_some(up + i, c), c);
  });
}

inline void softmax(const float* x, float* out, int n) {
  float peak = x[0];
  for (int i = 1; i < n; ++i) peak = x[i] > peak ? x[i] : peak;
  Vec total = zero();
  each_vector(n, [&](int i, int c) DW_LAMBDA {
    const Vec e = keep_first(exp(load_some(x + i, c) - fill(peak)), c, 0.0f);
    store_some(out + i, e, c);
    total = total + e;
  });
  const Vec t = fill(sum(total));
  each_vector(n, [&](int i, int c) DW_LAMBDA { store_some(out + i, load_some(out + i, c) / t, c); });
}

inline void sigmoid(const float* x, float* out, int n) {
  each_vector(n, [&](int i, int c) DW_LAMBDA {
    store_some(out + i, fill(1.0f) / (fill(1.0f) + exp(zero() - load_some(x + i, c))), c);
  });
}

inline void exp_row(const float* x, float* out, int n) {
  each_vector(n, [&](int i, int c) DW_LAMBDA { store_some(out + i, exp(load_some(x + i, c)), c); });
}

inline void combine(const float* const* xs, const float* w, int count, float* out, int n) {
  each_vector(n, [&](int i, int c) DW_LAMBDA {
    Vec total = zero();
    for (int j = 0; j < count; ++j) total = fma(fill(w[j]), load_some(xs[j] + i, c), total);
    store_some(out + i, total, c);
  });
}

}  // namespace DEEPWELL_ISA
}  // namespace deepwell
