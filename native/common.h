// Words every file shares: sizes of the layout, rounding up, and how a caller's mistake is reported.
#pragma once
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>

namespace deepwell {

constexpr int kLanes = 16;        // output rows of a tile, floats of a vector
constexpr int kGroup = 32;        // columns that share a scale
constexpr int kBlockTokens = 64;  // tokens of a cache page
constexpr int kMostCachedWidth = 1024;  // values of a head in a bfloat16 cache: bounds the kernels' scratch

inline size_t ceil_div(size_t a, size_t b) { return (a + b - 1) / b; }
inline size_t round_up(size_t a, size_t b) { return ceil_div(a, b) * b; }

// Becomes Python's ValueError.
[[noreturn]] inline void fail(const std::string& message) { throw std::invalid_argument(message); }
inline void require(bool ok, const std::string& message) {
  if (!ok) fail(message);
}

}  // namespace deepwell
