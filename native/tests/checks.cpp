#include "checks.h"

#include <cmath>
#include <cstdio>
#include <cstring>

namespace deepwell {

namespace {

constexpr size_t kFence = 64;  // values before and behind a result
constexpr int kMostReports = 20;

}  // namespace

std::vector<float> Random::floats(size_t n, float low, float high) {
  std::vector<float> v(n);
  for (float& x : v) x = between(low, high);
  return v;
}

std::vector<uint8_t> Random::bytes(size_t n) {
  std::vector<uint8_t> v(n);
  for (uint8_t& x : v) x = static_cast<uint8_t>(bits());
  return v;
}

float from_half(uint16_t h) {
  const int exponent = h >> 10 & 31, fraction = h & 1023;
  const float a = exponent ? std::ldexp(1024.0f + fraction, exponent - 25) : std::ldexp(1.0f * fraction, -24);
  return h & 0x8000 ? -a : a;
}

float from_bfloat16(uint16_t h) {
  const uint32_t u = static_cast<uint32_t>(h) << 16;
  float x;
  std::memcpy(&x, &u, 4);
  return x;
}

float bfloat16(float x) {
  if (x == 0) return x;
  int exponent;
  std::frexp(x, &exponent);
  return std::ldexp(std::nearbyint(std::ldexp(x, 8 - exponent)), exponent - 8);
}

void Checks::equal(const std::string& name, uint64_t found, uint64_t expected) {
  ++done_;
  if (found == expected) return;
  char numbers[64];
  std::snprintf(numbers, sizeof numbers, ": %016llx, expected %016llx", static_cast<unsigned long long>(found),
                static_cast<unsigned long long>(expected));
  fail(name + numbers);
}

void Checks::fail(const std::string& message) {
  if (++failures_ <= kMostReports) std::fprintf(stderr, "FAIL %s\n", message.c_str());
}

void Checks::check(const Case& c) {
  std::vector<float> plain;
  for (const Kernels* set : sets_) {
    const std::string name = std::string(set->name) + " " + c.name;
    std::vector<float> out(c.size + 2 * kFence, -77.0f);
    c.run(*set, out.data() + kFence);
    ++done_;
    for (size_t i = 0; i < kFence; ++i)
      if (out[i] != -77.0f || out[kFence + c.size + i] != -77.0f) return fail(name + " wrote outside its result");
    if (plain.empty()) plain = out;
    for (size_t i = 0; i < c.size; ++i) {
      const float got = out[kFence + i];
      if (!(std::fabs(got - c.expected[i]) <= c.bound[i]))
        return fail(name + ": result " + std::to_string(i) + " is " + std::to_string(got) + ", not " +
                    std::to_string(c.expected[i]) + " within " + std::to_string(c.bound[i]));
      if (std::memcmp(&out[kFence + i], &plain[kFence + i], 4) != 0)
        return fail(name + ": result " + std::to_string(i) + " has other bits than " + sets_[0]->name + "'s");
    }
  }
}

void Checks::check_bytes(const std::string& name, const std::vector<uint8_t>& expected,
                         const std::function<void(const Kernels&, uint8_t*)>& run) {
  for (const Kernels* set : sets_) {
    std::vector<uint8_t> out(expected.size() + 2 * kFence, 0xa5);
    run(*set, out.data() + kFence);
    ++done_;
    for (size_t i = 0; i < out.size(); ++i) {
      const bool inside = i >= kFence && i < kFence + expected.size();
      if (out[i] == (inside ? expected[i - kFence] : 0xa5)) continue;
      fail(std::string(set->name) + " " + name + ": byte " +
           std::to_string(static_cast<long>(i) - static_cast<long>(kFence)) + " is " + std::to_string(out[i]));
      break;
    }
  }
}

}  // namespace deepwell
