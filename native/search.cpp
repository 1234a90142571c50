#include "search.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <iterator>
#include <limits>

#include "common.h"
#include "pool.h"
#include "common.h"
#include "halves.h"
#include "pool.h"

namespace deepwell {
namespace {

// The same code for what the machine has, chosen by the loader; without it, for what every such machine has.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && defined(__GLIBC__)
#define DEEPWELL_CLONED __attribute__((target_clones("default", "avx2", "avx512f"), flatten))
#else
#define DEEPWELL_CLONED
#endif

constexpr uint16_t kNan16 = 0x7e00;
constexpr int kWide = 8;
// Eight floats; compilers make of them what the machine has, and the order of sums stays the same.
typedef float Wide __attribute__((vector_size(kWide * sizeof(float))));

float halved(float d) { return from_float16(to_float16(d)); }
// The float16 scale that `most` steps of reach `value`. Below 2^-14 float16 has few places: rounded up, so that it is reached.
uint16_t step_of(float value, float most) {
  const uint16_t d = to_float16(value / most);
  const float one = std::fabs(from_float16(d));
  return one < 0x1p-14f && one * std::fabs(most) < std::fabs(value) ? static_cast<uint16_t>(d + 1) : d;
}

float inverse(float d) { return d == 0 ? 0.0f : 1.0f / d; }
float clamped(float v, float low, float high) { return std::min(std::max(v, low), high); }

// To whole codes in low..high, ties to even; the ends are whole numbers.
inline Wide codes_of(Wide v, float low, float high) {
  const Wide bottom = Wide{} + low, top = Wide{} + high;
  v = v < bottom ? bottom : v;
  v = v > top ? top : v;
  return (v + 12582912.0f) - 12582912.0f;
}

template <int N, class F>
inline float sum(F&& term) {
  Wide s{};
  for (int i = 0; i < N / kWide; ++i) s += term(i);
  return ((s[0] + s[4]) + (s[2] + s[6])) + ((s[1] + s[5]) + (s[3] + s[7]));
}

template <int N>
struct Group {
  static constexpr int kWides = N / kWide;
  Wide x[kWides], w[kWides];
  bool measured;  // whether the weights are importances

  // `given` values of a row; the columns that pad the last group weigh nothing.
  Group(const float* from, const float* importance, int given = N) : measured(importance != nullptr) {
    float xs[N] = {}, ws[N] = {};
    std::copy(from, from + given, xs);
    std::memcpy(x, xs, sizeof x);
    const float mean = importance ? 0.0f : sum<N>([&](int i) { return x[i] * x[i]; }) / N;
    for (int i = 0; i < given; ++i) ws[i] = importance ? importance[i] : std::sqrt(mean + xs[i] * xs[i]);
    std::memcpy(w, ws, sizeof w);
  }

  float at(int i) const { return x[i / kWide][i % kWide]; }

  bool finite() const {
    for (int i = 0; i < N; ++i)
      if (!std::isfinite(at(i))) return false;
    return true;
  }

  // The value of the largest size, with its sign.
  float peak() const {
    float found = 0;
    for (int i = 0; i < N; ++i)
      if (std::fabs(at(i)) > std::fabs(found)) found = at(i);
    return found;
  }

  void codes(float d, int half, Wide* q) const {
    const float inv = inverse(d);
    const float low = static_cast<float>(-half), high = static_cast<float>(half - 1);
    for (int i = 0; i < kWides; ++i) q[i] = codes_of(x[i] * inv, low, high);
  }

  float error(float d, const Wide* q) const {
    return sum<N>([&](int i) { const Wide off = x[i] - q[i] * d; return w[i] * off * off; });
  }

  // The least-squares scale of given codes.
  float fitted(const Wide* q) const {
    const float top = sum<N>([&](int i) { return w[i] * x[i] * q[i]; });
    const float bottom = sum<N>([&](int i) { return w[i] * q[i] * q[i]; });
    return bottom > 0 ? top / bottom : 0.0f;
  }
};

template <int N, class T>
void store(const Wide* q, int given, T* out) {
  for (int i = 0; i < given; ++i) out[i] = static_cast<T>(q[i / kWide][i % kWide]);
}

// Codes that the largest value may become, counted from the end of its side: first plain rounding's. Where importances
// are known more is to be gained, and more are tried.
struct End {
  float off;
  bool same_side;
};
constexpr End kEnds[] = {{0.0f, true}, {0.4f, true}, {-0.6f, true}, {-0.7f, false}, {0.75f, true}, {-0.3f, true},
                         {-1.0f, true}, {-1.0f, false}, {-0.4f, false}, {0.0f, false}};
constexpr int kQuick = 4;

// The best scale of symmetric codes -half..half-1; `keep` rounds a scale to what will be stored.
template <int N, class Keep>
float search(const Group<N>& g, int half, Keep&& keep, Wide* best_q) {
  const float peak = g.peak();
  float best = keep(-peak / half);
  Wide q[N / kWide];
  g.codes(best, half, best_q);
  float least = g.error(best, best_q);
  const auto attempt = [&](float end) {
    g.codes(keep(peak / end), half, q);
    const float d = keep(g.fitted(q));
    g.codes(d, half, q);
    const float error = g.error(d, q);
    if (!(error < least)) return;
    least = error, best = d;
    std::copy(q, q + N / kWide, best_q);
  };
  const int ends = g.measured ? static_cast<int>(std::size(kEnds)) : kQuick;
  for (int i = 0; i < ends; ++i) attempt(kEnds[i].same_side ? -(half + kEnds[i].off) : half + kEnds[i].off);
  return best;
}

}  // namespace

namespace {

DEEPWELL_CLONED void search_row(const float* x, size_t cols, int half, const float* importance, int8_t* q,
                                uint16_t* d) {
  for (size_t at = 0; at < cols; at += kGroup, ++d) {
    const int given = static_cast<int>(std::min<size_t>(kGroup, cols - at));
    const Group<kGroup> group(x + at, importance ? importance + at : nullptr, given);
    *d = to_float16(-group.peak() / half);
    if (!group.finite() || !std::isfinite(from_float16(*d))) {
      *d = kNan16;
      std::fill(q + at, q + at + given, int8_t{0});
      continue;
    }
    Wide best_q[kGroup / kWide];
    *d = to_float16(search(group, half, halved, best_q));
    store<kGroup>(best_q, given, q + at);
  }
}

}  // namespace

void search_scales(const float* x, size_t n, size_t cols, int bits, const float* importance, int8_t* q, uint16_t* d) {
  require(bits == 4 || bits == 5, "codes have 4 or 5 bits, not " + std::to_string(bits));
  parallel(static_cast<int>(n), [&](int row) {
    search_row(x + row * cols, cols, 1 << (bits - 1), importance, q + row * cols, d + row * ceil_div(cols, kGroup));
  });
}

namespace {

constexpr int kSuper = 256;

// A group of q4_k: x is about scale * q - minimum, with q in 0..15 and both at least 0.
struct Range {
  float scale, minimum;
};

using Group32 = Group<32>;

float error_of(const Group32& g, Range r, Wide* q) {
  const float inv = inverse(r.scale);
  for (int i = 0; i < Group32::kWides; ++i) q[i] = codes_of((g.x[i] + r.minimum) * inv, 0.0f, 15.0f);
  return sum<32>([&](int i) { const Wide off = r.scale * q[i] - r.minimum - g.x[i]; return g.w[i] * off * off; });
}

Range search_range(const Group32& g) {
  float low = 0, high = g.at(0);
  for (int i = 0; i < 32; ++i) low = std::min(low, g.at(i)), high = std::max(high, g.at(i));
  Wide q[Group32::kWides];
  Range best{(high - low) / 15.0f, -low};
  float least = error_of(g, best, q);
  const float weight = sum<32>([&](int i) { return g.w[i]; });
  const float mean_x = sum<32>([&](int i) { return g.w[i] * g.x[i]; }) * inverse(weight);
  for (float levels : {15.0f, 14.6f, 14.2f, 13.8f, 15.4f, 15.8f, 16.2f}) {
    Range r{(high - low) / levels, -low};
    for (int round = 0; round < 2; ++round) {
      error_of(g, r, q);
      const float mean_q = sum<32>([&](int i) { return g.w[i] * q[i]; }) * inverse(weight);
      const float top = sum<32>([&](int i) { return g.w[i] * (q[i] - mean_q) * g.x[i]; });
      const float bottom = sum<32>([&](int i) { return g.w[i] * (q[i] - mean_q) * (q[i] - mean_q); });
      r.scale = bottom > 0 ? top / bottom : 0.0f;
      r.minimum = r.scale * mean_q - mean_x;
      if (r.minimum < 0) {  // the best line through zero
        const float along = sum<32>([&](int i) { return g.w[i] * q[i] * q[i]; });
        r.minimum = 0, r.scale = along > 0 ? sum<32>([&](int i) { return g.w[i] * g.x[i] * q[i]; }) / along : 0.0f;
      }
      if (!(r.scale > 0)) break;
      const float error = error_of(g, r, q);
      if (error < least) least = error, best = r;
    }
  }
  return best;
}

DEEPWELL_CLONED void search_super_q4_k(const float* x, const float* importance, uint8_t* q, uint8_t* scales,
                                       uint8_t* minimums, uint16_t* d, uint16_t* dmin) {
  float scale = 0, minimum = 0;
  Range wanted[8];
  bool finite = true;
  for (int g = 0; g < 8; ++g) {
    const Group32 group(x + 32 * g, importance ? importance + 32 * g : nullptr);
    finite = finite && group.finite();
    wanted[g] = search_range(group);
    scale = std::max(scale, wanted[g].scale), minimum = std::max(minimum, wanted[g].minimum);
  }
  *d = finite ? step_of(scale, 63) : kNan16;
  *dmin = step_of(minimum, 63);
  const float one = from_float16(*d), low = from_float16(*dmin);
  if (!std::isfinite(one) || !std::isfinite(low)) return;
  for (int g = 0; g < 8; ++g) {  // neighbours of the whole scales too, for rounding both at once may not be best
    const Group32 group(x + 32 * g, importance ? importance + 32 * g : nullptr);
    const float s = round_even(clamped(wanted[g].scale * inverse(one), 0.0f, 63.0f));
    const float m = round_even(clamped(wanted[g].minimum * inverse(low), 0.0f, 63.0f));
    float least = std::numeric_limits<float>::infinity();
    Wide codes[Group32::kWides];
    for (float ds : {0.0f, -1.0f, 1.0f})
      for (float dm : {0.0f, -1.0f, 1.0f}) {
        const float at = clamped(s + ds, 0.0f, 63.0f), under = clamped(m + dm, 0.0f, 63.0f);
        const float error = error_of(group, {one * at, low * under}, codes);
        if (!(error < least)) continue;
        least = error;
        scales[g] = static_cast<uint8_t>(at), minimums[g] = static_cast<uint8_t>(under);
        store<32>(codes, 32, q + 32 * g);
      }
  }
}

DEEPWELL_CLONED void search_super_q6_k(const float* x, const float* importance, int8_t* q, int8_t* scales,
                                       uint16_t* d) {
  constexpr int kHalf = 32, kGroups = 16;
  float wanted[kGroups], extreme = 0;
  Wide codes[16 / kWide];
  bool finite = true;
  for (int g = 0; g < kGroups; ++g) {
    const Group<16> group(x + 16 * g, importance ? importance + 16 * g : nullptr);
    finite = finite && group.finite();
    wanted[g] = search(group, kHalf, [](float v) { return v; }, codes);
    if (std::fabs(wanted[g]) > std::fabs(extreme)) extreme = wanted[g];
  }
  *d = finite ? step_of(extreme, -128) : kNan16;
  const float one = from_float16(*d);
  if (!std::isfinite(one)) return;
  for (int g = 0; g < kGroups; ++g) {
    const Group<16> group(x + 16 * g, importance ? importance + 16 * g : nullptr);
    const float s = round_even(clamped(wanted[g] * inverse(one), -128.0f, 127.0f));
    float least = std::numeric_limits<float>::infinity();
    for (float ds : {0.0f, -1.0f, 1.0f}) {
      const float at = clamped(s + ds, -128.0f, 127.0f);
      group.codes(one * at, kHalf, codes);
      const float error = group.error(one * at, codes);
      if (!(error < least)) continue;
      least = error;
      scales[g] = static_cast<int8_t>(at);
      store<16>(codes, 16, q + 16 * g);
    }
  }
}

}  // namespace

void search_q4_k(const float* x, size_t n, size_t cols, const float* importance, uint8_t* q, uint8_t* scales,
                 uint8_t* minimums, uint16_t* d, uint16_t* dmin) {
  const size_t across = cols / kSuper;
  parallel(static_cast<int>(n), [&](int row) {
    for (size_t b = 0, at = row * across; b < across; ++b, ++at)
      search_super_q4_k(x + kSuper * at, importance ? importance + kSuper * b : nullptr, q + kSuper * at,
                        scales + 8 * at, minimums + 8 * at, d + at, dmin + at);
  });
}

void search_q6_k(const float* x, size_t n, size_t cols, const float* importance, int8_t* q, int8_t* scales,
                 uint16_t* d) {
  const size_t across = cols / kSuper;
  parallel(static_cast<int>(n), [&](int row) {
    for (size_t b = 0, at = row * across; b < across; ++b, ++at)
      search_super_q6_k(x + kSuper * at, importance ? importance + kSuper * b : nullptr, q + kSuper * at,
                        scales + 16 * at, d + at);
  });
}

}  // namespace deepwell
