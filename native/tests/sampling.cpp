// Sampling's passes over chunks of logits. What must be exact is compared byte for byte, weights in units of the last place.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <utility>

#include "../common.h"
#include "checks.h"

namespace deepwell {

namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

std::vector<double> chunk_of(const std::vector<float>& x) {
  std::vector<double> chunk(kChunk, -static_cast<double>(kInfinity));
  std::copy(x.begin(), x.end(), chunk.begin());
  return chunk;
}

// Bytes of what `run` writes as doubles.
void check_doubles(Checks& checks, const std::string& name, const std::vector<double>& expected,
                   const std::function<void(const Kernels&, double*)>& run) {
  std::vector<uint8_t> bytes(8 * expected.size());
  std::memcpy(bytes.data(), expected.data(), bytes.size());
  checks.check_bytes(name, bytes, [&](const Kernels& k, uint8_t* out) {
    std::vector<double> y(expected.size());
    run(k, y.data());
    std::memcpy(out, y.data(), bytes.size());
  });
}

void check_peaks(Checks& checks, const std::string& size, const std::vector<float>& x) {
  const int n = static_cast<int>(x.size());
  std::vector<float> expected;
  for (int i = 0; i < n; i += kChunk) {
    const auto first = x.begin() + i, last = x.begin() + std::min(n, i + kChunk);
    const bool broken = std::any_of(first, last, [](float v) { return v != v || v == kInfinity; });
    expected.push_back(broken ? std::nanf("") : *std::max_element(first, last));
  }
  std::vector<uint8_t> bytes(4 * expected.size());
  std::memcpy(bytes.data(), expected.data(), bytes.size());
  checks.check_bytes("chunk_peaks" + size, bytes, [&](const Kernels& k, uint8_t* out) {
    std::vector<float> y(expected.size());
    k.chunk_peaks(x.data(), n, y.data());
    std::memcpy(out, y.data(), bytes.size());
  });
}

void check_broken(Checks& checks, std::vector<float> x) {
  const int n = static_cast<int>(x.size());
  const std::string size = " of " + std::to_string(n);
  check_peaks(checks, size, x);
  for (float broken : {std::nanf(""), kInfinity, -kInfinity, -std::nanf("")})
    for (int at : {0, n / 2, n - 1}) {
      const float before = std::exchange(x[at], broken);
      check_peaks(checks, size + ", one " + std::to_string(broken), x);
      x[at] = before;
    }
  check_peaks(checks, size + ", all -infinity", std::vector<float>(n, -kInfinity));
}

void check_widen(Checks& checks, const std::vector<float>& x, Random& random) {
  const int n = static_cast<int>(x.size());
  const std::string size = " of " + std::to_string(n);
  auto expected = chunk_of(x);
  check_doubles(checks, "widen_chunk" + size, expected,
                [&](const Kernels& k, double* out) { k.widen_chunk(x.data(), n, nullptr, out); });
  std::vector<uint32_t> allowed(ceil_div(n, 32));
  for (uint32_t& word : allowed) word = random.bits();
  for (int i = 0; i < n; ++i)
    if (!(allowed[i / 32] >> i % 32 & 1)) expected[i] = -static_cast<double>(kInfinity);
  check_doubles(checks, "widen_chunk masked," + size, expected,
                [&](const Kernels& k, double* out) { k.widen_chunk(x.data(), n, allowed.data(), out); });
  const double peak = *std::max_element(expected.begin(), expected.end());
  check_doubles(checks, "chunk_peak" + size, {peak},
                [&](const Kernels& k, double* out) { out[0] = k.chunk_peak(expected.data()); });
}

void check_at_least(Checks& checks, const std::vector<float>& x, double limit) {
  const auto chunk = chunk_of(x);
  std::vector<uint8_t> expected(kChunk / 8, 0);
  for (int i = 0; i < kChunk; ++i) expected[i / 8] |= static_cast<uint8_t>(chunk[i] >= limit) << i % 8;
  checks.check_bytes("chunk_at_least " + std::to_string(limit), expected, [&](const Kernels& k, uint8_t* out) {
    uint64_t bits[kChunk / 64];
    k.chunk_at_least(chunk.data(), limit, bits);
    for (int i = 0; i < kChunk / 8; ++i) out[i] = static_cast<uint8_t>(bits[i / 8] >> 8 * (i % 8));
  });
}

// Sums of what is not below the limit, of three chunks; whole multiples of a power of two add up without rounding.
void check_sums(Checks& checks, double limit) {
  Random random(5);
  std::vector<double> weights, expected(3, 0.0);
  for (int i = 0; i < 3 * kChunk; ++i) weights.push_back((random.bits() & 255) / 256.0);
  for (int i = 0; i < 3 * kChunk; ++i) expected[i / kChunk] += weights[i] >= limit ? weights[i] : 0;
  check_doubles(checks, "chunk_sums from " + std::to_string(limit), expected,
                [&](const Kernels& k, double* out) { k.chunk_sums(weights.data(), 3, limit, out); });
}

// Weights against the C library's exponential in extended precision, as distances in units of the last place, which are
// floats that a check can hold; then the plain set's bits against those of the others. The last value is the sum.
void check_weights(Checks& checks, const std::vector<float>& x, double temperature) {
  const auto chunk = chunk_of(x);
  const double peak = *std::max_element(chunk.begin(), chunk.end());
  const auto weigh = [&](const Kernels& k, double* out) {
    out[kChunk] = k.chunk_weights(chunk.data(), peak, temperature, out);
  };
  std::vector<double> plain(kChunk + 1), expected;
  weigh(checks.plain(), plain.data());
  const std::string name = "chunk_weights at " + std::to_string(temperature) + " of " + std::to_string(x.size());
  long double total = 0;
  for (double v : chunk) {
    const long double w = std::exp(-static_cast<long double>((peak - v) / temperature));
    expected.push_back(static_cast<double>(w));
    total += w;
  }
  checks.check({name, kChunk + 1, [&](const Kernels& k, float* out) {
                  std::vector<double> y(kChunk + 1);
                  weigh(k, y.data());
                  for (int i = 0; i < kChunk; ++i) {
                    const double unit = std::nextafter(expected[i], 2.0) - expected[i];
                    out[i] = static_cast<float>((y[i] - expected[i]) / unit);
                  }
                  out[kChunk] = static_cast<float>((y[kChunk] - static_cast<double>(total)) / y[kChunk] * 0x1p52);
                }, std::vector<double>(kChunk + 1, 0.0), std::vector<double>(kChunk + 1, 2.0)});
  check_doubles(checks, name + ", bits", plain, weigh);
}

}  // namespace

void check_sampling(Checks& checks) {
  for (int n : {1, 7, 16, 31, 33, 127, 128, 129, 300, 1000}) {
    Random random(n);
    check_broken(checks, random.floats(n, -20, 20));
  }
  for (double limit : {0.0, 0.25, 0.5, 1.0}) check_sums(checks, limit);
  for (int n : {1, 7, 32, 33, 100, 128}) {
    Random random(n);
    const auto x = random.floats(n, -20, 20);
    check_widen(checks, x, random);
    for (float limit : {-30.0f, 0.0f, x[0], 30.0f}) check_at_least(checks, x, limit);
    for (double temperature : {1.0, 0.7, 0.02, 1e-3, 1e-300, 1e300}) check_weights(checks, x, temperature);
    check_weights(checks, random.floats(n, -760, 0), 1.0);
    check_weights(checks, random.floats(n, -1e-6f, 1e-6f), 1.0);
  }
}

}  // namespace deepwell
