// What every test of the kernels uses: random numbers, and the comparison of all instruction sets with each other and
// with a plain formula.
#pragma once
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "../kernels.h"

namespace deepwell {

// The same numbers on every machine (xorshift; Marsaglia 2003).
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed * 0x9e3779b97f4a7c15u + 1) {}
  uint32_t bits() {
    state_ ^= state_ << 13;
    state_ ^= state_ >> 7;
    state_ ^= state_ << 17;
    return static_cast<uint32_t>(state_ >> 32);
  }
  float between(float low, float high) { return low + (high - low) * (static_cast<float>(bits() >> 8) * 0x1p-24f); }
  std::vector<float> floats(size_t n, float low = -1, float high = 1);
  std::vector<uint8_t> bytes(size_t n);

 private:
  uint64_t state_;
};

float from_half(uint16_t h);
float bfloat16(float x);  // rounded to nearest, ties to even
float from_bfloat16(uint16_t h);

// One result of a kernel and what it should be. `run` fills `size` floats; expected[i] may be missed by bound[i].
struct Case {
  std::string name;
  size_t size;
  std::function<void(const Kernels&, float*)> run;
  std::vector<double> expected, bound;
};

class Checks {
 public:
  explicit Checks(std::vector<const Kernels*> sets) : sets_(std::move(sets)) {}
  // The plain kernels against the formula; then every other instruction set against these, bit for bit. Memory before
  // and behind the result must stay untouched.
  void check(const Case& c);
  // Bytes of every instruction set against the expected ones.
  void check_bytes(const std::string& name, const std::vector<uint8_t>& expected,
                   const std::function<void(const Kernels&, uint8_t*)>& run);
  // One number, which no instruction set changes.
  void equal(const std::string& name, uint64_t found, uint64_t expected);
  const Kernels& plain() const { return *sets_[0]; }
  int failures() const { return failures_; }
  int done() const { return done_; }

 private:
  void fail(const std::string& message);

  std::vector<const Kernels*> sets_;  // the plain one first
  int done_ = 0, failures_ = 0;
};

void check_products(Checks& checks);
void check_rows(Checks& checks);
void check_attention(Checks& checks);
void check_sampling(Checks& checks);
void check_search(Checks& checks);

}  // namespace deepwell
