// Attention over a paged cache, in float32 and bfloat16. Slots that no token wrote hold NaN: they must not matter.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "../isa.h"
#include "checks.h"

namespace deepwell {

namespace {

constexpr int kTokens = 64;  // of a page
constexpr int kPages = 5;
const int32_t kTable[] = {3, 0, 4, 1};

// Keys and values of one key head, or latents: what is looked up of token t.
struct Memory {
  Memory(int length, int key_width, int value_width, bool halves, Random& random) {
    for (int t = 0; t < length; ++t) {
      keys.push_back(random.floats(key_width));
      values.push_back(random.floats(value_width));
      if (halves)
        for (auto* v : {&keys.back(), &values.back()})
          for (float& x : *v) x = bfloat16(x);
    }
  }
  std::vector<std::vector<float>> keys, values;
};

// Some positions, in order, and what is kept of them.
std::vector<float> some_of(int length, Random& random) {
  std::vector<float> chosen;
  for (int t = 0; t < length; ++t)
    if (random.bits() % 3 == 0 || t == length - 1) chosen.push_back(static_cast<float>(t));
  return chosen;
}

Memory picked(const Memory& memory, const std::vector<float>& chosen) {
  Memory some = memory;
  for (size_t i = 0; i < chosen.size(); ++i) {
    some.keys[i] = memory.keys[static_cast<size_t>(chosen[i])];
    some.values[i] = memory.values[static_cast<size_t>(chosen[i])];
  }
  return some;
}

uint16_t top_half(float x) {
  uint32_t u;
  __builtin_memcpy(&u, &x, 4);
  return static_cast<uint16_t>(u >> 16);
}

// A query's result in double precision. `rounding` is the relative error allowed of a weight.
void attend(const std::vector<float>& q, const Memory& memory, int length, double scale, double rounding,
            std::vector<double>& expected, std::vector<double>& bound) {
  std::vector<double> scores;
  for (int t = 0; t < length; ++t) {
    double s = 0;
    for (size_t d = 0; d < q.size(); ++d) s += static_cast<double>(q[d]) * memory.keys[t][d];
    scores.push_back(s * scale);
  }
  const double peak = *std::max_element(scores.begin(), scores.end());
  double total = 0;
  for (double& s : scores) total += s = std::exp(s - peak);
  for (size_t i = 0; i < memory.values[0].size(); ++i) {
    double y = 0, size = 0;
    for (int t = 0; t < length; ++t) {
      y += scores[t] / total * memory.values[t][i];
      size += scores[t] / total * std::fabs(memory.values[t][i]);
    }
    expected.push_back(y);
    bound.push_back(1e-6 + rounding * size);
  }
}

const float kUnwritten = std::nanf("");

// ---- float32

void check_gqa(Checks& checks, int heads, int width, int length, Random& random) {
  const Memory memory(length, width, width, false, random);
  const size_t page = static_cast<size_t>(kTokens) * width * 2, half = page / 2;
  std::vector<float> pages(kPages * page, kUnwritten), q = random.floats(static_cast<size_t>(heads) * width, -2, 2);
  for (int t = 0; t < length; ++t)
    for (int d = 0; d < width; ++d) {
      float* p = &pages[kTable[t / kTokens] * page];
      p[d * kTokens + t % kTokens] = memory.keys[t][d];
      p[half + t % kTokens * width + d] = memory.values[t][d];
    }
  std::vector<double> expected, bound;
  for (int h = 0; h < heads; ++h)
    attend({q.begin() + h * width, q.begin() + (h + 1) * width}, memory, length, 0.5, 3e-5, expected, bound);
  const auto run = [&](const Kernels& k, float* out) {
    k.gqa({q.data(), out, pages.data(), kTable, page, 0, half, length, heads, width, 0.5f});
  };
  checks.check({"gqa of " + std::to_string(heads) + " heads of " + std::to_string(width) + ", " +
                std::to_string(length) + " tokens", expected.size(), run, expected, bound});
}

// A latent row is a key, and its first columns are the value.
Memory latents(int length, int latent, int rope, bool halves, Random& random) {
  Memory memory(length, latent + rope, latent, halves, random);
  for (int t = 0; t < length; ++t) std::copy_n(memory.keys[t].begin(), latent, memory.values[t].begin());
  return memory;
}

void check_mla(Checks& checks, int heads, int latent, int rope, int length, Random& random, bool sparse = false) {
  const int width = latent + rope;
  const Memory memory = latents(length, latent, rope, false, random);
  const size_t page = static_cast<size_t>(kTokens) * width;
  std::vector<float> pages(kPages * page, kUnwritten), q = random.floats(static_cast<size_t>(heads) * width, -2, 2);
  for (int t = 0; t < length; ++t)
    std::copy(memory.keys[t].begin(), memory.keys[t].end(),
              pages.begin() + kTable[t / kTokens] * page + static_cast<size_t>(t % kTokens) * width);
  const std::vector<float> chosen = some_of(length, random);
  const Memory seen = sparse ? picked(memory, chosen) : memory;
  const int count = sparse ? static_cast<int>(chosen.size()) : length;
  std::vector<double> expected, bound;
  for (int h = 0; h < heads; ++h)
    attend({q.begin() + h * width, q.begin() + (h + 1) * width}, seen, count, 0.3, 3e-5, expected, bound);
  const auto run = [&](const Kernels& k, float* out) {
    k.mla({q.data(), out, pages.data(), kTable, page, count, heads, latent, rope, 0.3f,
           sparse ? chosen.data() : nullptr});
  };
  checks.check({std::string(sparse ? "sparse " : "") + "mla of " + std::to_string(heads) + " heads of " +
                std::to_string(latent) + " + " +
                std::to_string(rope) + ", " + std::to_string(length) + " tokens", expected.size(), run, expected,
                bound});
}

// ---- bfloat16

// Rows of tokens that see fewer and fewer of the memory, each by one query.
struct Queries {
  Queries(int count, int width, int length, Random& random) {
    for (int r = 0; r < count; ++r) {
      q.push_back(random.floats(width, -2, 2));
      lengths.push_back(std::max(1, length - r));
    }
  }
  std::vector<CachedRow> rows(float* out, int value) const {
    std::vector<CachedRow> rows;
    for (size_t r = 0; r < q.size(); ++r) rows.push_back({q[r].data(), out + r * value, lengths[r]});
    return rows;
  }
  std::vector<std::vector<float>> q;
  std::vector<int> lengths;
};

void check_cached(Checks& checks, const std::string& name, const Memory& memory, const Queries& queries,
                  const CachedTask& task, bool latent) {
  std::vector<double> expected, bound;
  for (size_t r = 0; r < queries.q.size(); ++r) {
    std::vector<float> q = queries.q[r];
    for (float& x : q) x = bfloat16(x);
    attend(q, memory, queries.lengths[r], task.scale, 0x1p-8, expected, bound);
  }
  const auto run = [&](const Kernels& k, float* out) {
    const auto rows = queries.rows(out, task.value);
    CachedTask t = task;
    t.rows = rows.data();
    t.count = static_cast<int>(rows.size());
    latent ? k.mla_cached(t) : k.gqa_cached(t);
  };
  checks.check({name + " over bfloat16, " + std::to_string(queries.q.size()) + " rows, " +
                std::to_string(queries.lengths[0]) + " tokens", expected.size(), run, expected, bound});
}

void check_gqa_cached(Checks& checks, int count, int width, int length, Random& random) {
  const Memory memory(length, width, width, true, random);
  const size_t page = static_cast<size_t>(kTokens) * width * 2, half = page / 2;
  std::vector<uint16_t> pages(kPages * page, top_half(kUnwritten));
  for (int t = 0; t < length; ++t)
    for (int d = 0; d < width; ++d) {
      uint16_t* p = &pages[kTable[t / kTokens] * page];
      const int slot = t % kTokens;
      p[d / 2 * 2 * kTokens + 2 * slot + d % 2] = top_half(memory.keys[t][d]);
      p[half + (slot / 2 * width + d) * 2 + slot % 2] = top_half(memory.values[t][d]);
    }
  const CachedTask task{nullptr, 0, pages.data(), kTable, page, 0, half, width, width, 0, 0.5f, nullptr};
  check_cached(checks, "gqa of " + std::to_string(width), memory, Queries(count, width, length, random), task, false);
}

void check_mla_cached(Checks& checks, int count, int latent, int rope, int length, Random& random,
                      bool sparse = false) {
  const int width = latent + rope, stride = (width + 31) / 32 * 32;
  const Memory memory = latents(length, latent, rope, true, random);
  const size_t page = static_cast<size_t>(kTokens) * stride;
  std::vector<uint16_t> pages(kPages * page, top_half(kUnwritten));
  for (int t = 0; t < length; ++t)
    for (int d = 0; d < stride; ++d)
      pages[kTable[t / kTokens] * page + static_cast<size_t>(t % kTokens) * stride + d] =
          d < width ? top_half(memory.keys[t][d]) : 0;
  const std::vector<float> chosen = some_of(length, random);
  const CachedTask task{nullptr, 0, pages.data(), kTable, page, 0, 0, width, latent, stride, 0.3f,
                        sparse ? chosen.data() : nullptr};
  const std::string name = "mla of " + std::to_string(latent) + " + " + std::to_string(rope);
  if (!sparse) return check_cached(checks, name, memory, Queries(count, width, length, random), task, true);
  Queries queries(count, width, static_cast<int>(chosen.size()), random);
  for (int& seen : queries.lengths) seen = static_cast<int>(chosen.size());
  check_cached(checks, "sparse " + name, picked(memory, chosen), queries, task, true);
}

// A list of all positions gives the bits that no list gives.
void check_whole_list(Checks& checks, int heads, int latent, int rope, int length, Random& random) {
  const int width = latent + rope, stride = (width + 31) / 32 * 32;
  const size_t page = static_cast<size_t>(kTokens) * stride;
  const std::vector<float> q = random.floats(static_cast<size_t>(heads) * width, -2, 2);
  const std::vector<float> pages = random.floats(kPages * page);
  std::vector<uint16_t> halves;
  for (float x : pages) halves.push_back(top_half(x));
  std::vector<float> all;
  for (int t = 0; t < length; ++t) all.push_back(static_cast<float>(t));
  const auto run = [&](const Kernels& k, const float* list, uint8_t* out) {
    std::vector<float> y(2 * static_cast<size_t>(heads) * latent);
    std::vector<CachedRow> rows;
    for (int h = 0; h < heads; ++h) rows.push_back({&q[h * width], &y[(heads + h) * latent], length});
    k.mla({q.data(), y.data(), pages.data(), kTable, static_cast<size_t>(kTokens) * width, length, heads, latent, rope,
           0.3f, list});
    k.mla_cached({rows.data(), heads, halves.data(), kTable, page, 0, 0, width, latent, stride, 0.3f, list});
    std::memcpy(out, y.data(), sizeof(float) * y.size());
  };
  std::vector<uint8_t> expected(2 * sizeof(float) * heads * latent);
  run(kernels(), nullptr, expected.data());
  checks.check_bytes("mla of a list of " + std::to_string(length), expected,
                     [&](const Kernels& k, uint8_t* out) { run(k, all.data(), out); });
}

// ---- the indexer

// Scores of all positions of the pages; those that no token wrote are not compared.
void check_index(Checks& checks, int heads, int width, int length, bool halves, Random& random) {
  const Memory memory(length, width, 1, halves, random);
  const int last = (length + kTokens - 1) / kTokens, first = last > 1 ? 1 : 0;
  const size_t page = static_cast<size_t>(kTokens) * (width + 3);
  std::vector<float> floats(kPages * page, kUnwritten), q = random.floats(static_cast<size_t>(heads) * width, -2, 2);
  std::vector<uint16_t> shorts(kPages * page, top_half(kUnwritten)), rounded;
  const std::vector<float> weights = random.floats(heads);
  if (halves)
    for (float& x : q) x = bfloat16(x);
  for (float x : q) rounded.push_back(top_half(x));
  for (int t = 0; t < length; ++t)
    for (int d = 0; d < width; ++d) {
      const size_t at = kTable[t / kTokens] * page;
      floats[at + d * kTokens + t % kTokens] = memory.keys[t][d];
      shorts[at + d / 2 * 2 * kTokens + t % kTokens * 2 + d % 2] = top_half(memory.keys[t][d]);
    }
  std::vector<double> expected, bound;
  for (int t = first * kTokens; t < length; ++t) {
    double y = 0, size = 0;
    for (int h = 0; h < heads; ++h) {
      double s = 0;
      for (int d = 0; d < width; ++d) s += static_cast<double>(q[h * width + d]) * memory.keys[t][d];
      y += 0.3 * weights[h] * std::max(s, 0.0);
      size += 0.3 * std::fabs(weights[h]) * width;
    }
    expected.push_back(y);
    bound.push_back(1e-6 * size);
  }
  const auto run = [&](const Kernels& k, float* out) {
    std::vector<float> scores(static_cast<size_t>(last - first) * kTokens);
    if (halves) k.index_scores_cached({rounded.data(), weights.data(), shorts.data(), kTable, page, first, last, heads,
                                       width, 0.3f, scores.data()});
    else k.index_scores({q.data(), weights.data(), floats.data(), kTable, page, first, last, heads, width, 0.3f,
                         scores.data()});
    std::copy_n(scores.begin(), expected.size(), out);
  };
  checks.check({"index of " + std::to_string(heads) + " heads of " + std::to_string(width) + ", " +
                std::to_string(length) + " tokens" + (halves ? ", bfloat16" : ""), expected.size(), run, expected,
                bound});
}

}  // namespace

void check_attention(Checks& checks) {
  Random random(11);
  for (int length : {1, 2, 63, 64, 65, 130, 211}) {
    for (int width : {8, 20, 64, 112}) check_gqa(checks, 3, width, length, random);
    for (int heads : {1, 4, 6}) check_mla(checks, heads, 40, 8, length, random);
    check_mla(checks, 5, 64, 16, length, random);
    for (int count : {1, 2, 3, 7}) check_gqa_cached(checks, count, 16 * count + 32, length, random);
    for (int count : {1, 3, 8, 13}) check_mla_cached(checks, count, 40, 8, length, random);
    check_mla_cached(checks, 9, 64, 32, length, random);
    for (int heads : {1, 4, 7}) check_mla(checks, heads, 40, 8, length, random, true);
    for (int count : {1, 3, 8, 13}) check_mla_cached(checks, count, 40, 8, length, random, true);
    for (int heads : {1, 4, 9}) check_whole_list(checks, heads, 40, 8, length, random);
    for (int heads : {1, 2, 5, 8})
      for (int width : {2, 16, 30}) {
        check_index(checks, heads, width, length, false, random);
        check_index(checks, heads, width, length, true, random);
      }
  }
}

}  // namespace deepwell
