// Operations on one row.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "checks.h"

namespace deepwell {

namespace {

using Floats = std::vector<float>;

std::vector<double> each(const Floats& x, const std::function<double(double)>& f) {
  std::vector<double> y;
  for (float v : x) y.push_back(f(v));
  return y;
}

// Bounds relative to the result, as wide as the polynomial behind exp and a few roundings ask for.
std::vector<double> near(const std::vector<double>& y, double relative = 2e-6) {
  std::vector<double> bound;
  for (double v : y) bound.push_back(1e-37 + relative * std::fabs(v));
  return bound;
}

double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

void check_each(Checks& checks, const std::string& size, const Floats& x) {
  const int n = static_cast<int>(x.size());
  const auto e = each(x, [](double v) { return std::exp(v); });
  checks.check({"exp" + size, x.size(), [&](const Kernels& k, float* out) { k.exp(x.data(), out, n); }, e, near(e)});
  const auto s = each(x, sigmoid);
  checks.check({"sigmoid" + size, x.size(), [&](const Kernels& k, float* out) { k.sigmoid(x.data(), out, n); }, s,
                near(s)});
}

void check_pairs(Checks& checks, const std::string& size, const Floats& x, const Floats& y) {
  const int n = static_cast<int>(x.size());
  std::vector<double> sum, gated;
  for (int i = 0; i < n; ++i) {
    sum.push_back(static_cast<double>(x[i]) + y[i]);
    gated.push_back(x[i] * sigmoid(x[i]) * y[i]);
  }
  checks.check({"add" + size, x.size(), [&](const Kernels& k, float* out) { k.add(x.data(), y.data(), out, n); }, sum,
                near(sum)});
  checks.check({"swiglu" + size, x.size(), [&](const Kernels& k, float* out) { k.swiglu(x.data(), y.data(), out, n); },
                gated, near(gated)});
}

void check_norm(Checks& checks, const std::string& size, const Floats& x, const Floats& weight) {
  const int n = static_cast<int>(x.size());
  double squares = 0;
  for (float v : x) squares += static_cast<double>(v) * v;
  std::vector<double> y;
  for (int i = 0; i < n; ++i) y.push_back(x[i] / std::sqrt(squares / n + 1e-5) * weight[i]);
  checks.check({"rms_norm" + size, x.size(),
                [&](const Kernels& k, float* out) { k.rms_norm(x.data(), weight.data(), out, n, 1e-5f); }, y, near(y)});
}

void check_layer_norm(Checks& checks, const std::string& size, const Floats& x, const Floats& weight) {
  const int n = static_cast<int>(x.size());
  double mean = 0, squares = 0;
  for (float v : x) mean += static_cast<double>(v) / n;
  for (float v : x) squares += (v - mean) * (v - mean);
  std::vector<double> y, bound;
  for (int i = 0; i < n; ++i) {
    y.push_back((x[i] - mean) / std::sqrt(squares / n + 1e-5) * weight[i] + weight[n - 1 - i]);
    bound.push_back(1e-5);
  }
  const Floats bias(weight.rbegin(), weight.rend());
  checks.check({"layer_norm" + size, x.size(), [&](const Kernels& k, float* out) {
                  k.layer_norm(x.data(), weight.data(), bias.data(), out, n, 1e-5f);
                }, y, bound});
}

void check_softmax(Checks& checks, const std::string& size, const Floats& x) {
  const int n = static_cast<int>(x.size());
  const float peak = *std::max_element(x.begin(), x.end());
  double total = 0;
  for (float v : x) total += std::exp(v - static_cast<double>(peak));
  const auto y = each(x, [&](double v) { return v - peak < -87.3f ? 0 : std::exp(v - peak) / total; });
  checks.check({"softmax" + size, x.size(), [&](const Kernels& k, float* out) { k.softmax(x.data(), out, n); }, y,
                near(y, 1e-5)});
}

void check_combine(Checks& checks, const std::string& size, const Floats& x, Random& random) {
  const int n = static_cast<int>(x.size()), count = 5;
  const Floats w = random.floats(count);
  std::vector<Floats> rows(count, x);
  std::vector<const float*> at;
  for (Floats& row : rows) {
    for (float& v : row) v *= random.between(-1, 1);
    at.push_back(row.data());
  }
  std::vector<double> y(n, 0), bound(n, 0);
  for (int i = 0; i < n; ++i)
    for (int j = 0; j < count; ++j) {
      y[i] += static_cast<double>(w[j]) * rows[j][i];
      bound[i] += 1e-37 + 1e-6 * std::fabs(w[j] * rows[j][i]);
    }
  checks.check({"combine" + size, x.size(),
                [&](const Kernels& k, float* out) { k.combine(at.data(), w.data(), count, out, n); }, y, bound});
}

void check_bfloat16(Checks& checks, const std::string& size, Floats x) {
  x[0] = 1.00390625f;  // halfway between two bfloat16: to the even one
  const int n = static_cast<int>(x.size());
  std::vector<uint8_t> expected(2 * x.size());
  for (int i = 0; i < n; ++i) {
    const float rounded = bfloat16(x[i]);
    uint32_t u;
    std::memcpy(&u, &rounded, 4);
    const uint16_t h = static_cast<uint16_t>(u >> 16);
    std::memcpy(&expected[2 * i], &h, 2);
  }
  checks.check_bytes("to_bf16" + size, expected, [&](const Kernels& k, uint8_t* out) {
    std::vector<uint16_t> y(n);
    k.to_bf16(x.data(), y.data(), n);
    std::memcpy(out, y.data(), 2 * x.size());
  });
}

}  // namespace

void check_rows(Checks& checks) {
  for (int n : {1, 3, 16, 17, 31, 64, 100}) {
    Random random(n);
    const std::string size = " of " + std::to_string(n);
    const Floats x = random.floats(n, -20, 20), y = random.floats(n);
    Floats wide = random.floats(n, -100, 100);
    wide[n / 2] = -1e30f;
    check_each(checks, size, x);
    check_softmax(checks, size, wide);
    check_each(checks, size + ", wide", random.floats(n, -86, 86));
    check_pairs(checks, size, x, y);
    check_norm(checks, size, x, y);
    check_layer_norm(checks, size, x, y);
    check_combine(checks, size, x, random);
    check_bfloat16(checks, size, x);
  }
  const Floats ends = {-1e30f, -87.4f, -87.3f, 88.3f, 89.0f, 1e30f, 0.0f};
  const auto e = each(ends, [](double v) { return v < -87.3f ? 0 : std::exp(std::min<double>(v, 88.3f)); });
  checks.check({"exp at its ends", ends.size(),
                [&](const Kernels& k, float* out) { k.exp(ends.data(), out, static_cast<int>(ends.size())); }, e,
                near(e)});
}

}  // namespace deepwell
