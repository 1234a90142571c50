// The searching quantisers: the same codes on every machine, whatever the compiler made of them.
#include "../search.h"

#include <cstdio>

#include "checks.h"

namespace deepwell {
namespace {

// FNV-1a.
template <class T>
uint64_t hashed(uint64_t h, const std::vector<T>& values) {
  const auto* bytes = reinterpret_cast<const uint8_t*>(values.data());
  for (size_t i = 0; i < values.size() * sizeof(T); ++i) h = (h ^ bytes[i]) * 0x100000001b3;
  return h;
}

uint64_t all_codes(const std::vector<float>& x, size_t rows, size_t cols, const float* importance) {
  uint64_t h = 0xcbf29ce484222325;
  for (int bits : {4, 5}) {
    std::vector<int8_t> q(rows * cols);
    std::vector<uint16_t> d(rows * (cols / 32));
    search_scales(x.data(), rows, cols, bits, importance, q.data(), d.data());
    h = hashed(hashed(h, q), d);
  }
  const size_t blocks = rows * cols / 256;
  std::vector<uint8_t> q4(rows * cols), scales(8 * blocks), minimums(8 * blocks);
  std::vector<uint16_t> d(blocks), dmin(blocks);
  search_q4_k(x.data(), rows, cols, importance, q4.data(), scales.data(), minimums.data(), d.data(), dmin.data());
  h = hashed(hashed(hashed(hashed(hashed(h, q4), scales), minimums), d), dmin);
  std::vector<int8_t> q6(rows * cols), s6(16 * blocks);
  search_q6_k(x.data(), rows, cols, importance, q6.data(), s6.data(), d.data());
  return hashed(hashed(hashed(h, q6), s6), d);
}

}  // namespace

void check_search(Checks& checks) {
  constexpr size_t kRows = 7, kCols = 512;
  Random random(11);
  auto x = random.floats(kRows * kCols, -0.1f, 0.1f);
  for (size_t i = 0; i < x.size(); i += 37) x[i] *= 9;
  for (size_t i = kCols; i < kCols + 300; ++i) x[i] = 0;
  const auto importance = random.floats(kCols, 0, 4);
  checks.equal("codes searched", all_codes(x, kRows, kCols, nullptr), 0x5349f83b40dcae9e);
  checks.equal("codes searched by importance", all_codes(x, kRows, kCols, importance.data()), 0x03cb83b13a747e5d);
}

}  // namespace deepwell
