// The lightning indexer: which positions a row of sparse latent attention looks at (DeepSeek-V3.2 report, section 2.1).
#include <algorithm>
#include <cstring>
#include <functional>

#include "instructions.h"
#include "isa.h"
#include "paging.h"

namespace deepwell {

namespace {

constexpr int kUnitPages = 8;                     // pages of keys that a unit scores: they stay in the second cache
constexpr size_t kMostScores = size_t{1} << 22;  // after which no further row's scores are kept at once
constexpr size_t kInlineWork = 131072;            // multiply-adds below which waking threads costs more than it gives

// A whole number that orders like the score, without 0 for numbers: 0 is no number at all.
uint32_t order_of(float score) {
  score += 0.0f;  // -0 is 0
  if (score != score) return 0;
  uint32_t u;
  std::memcpy(&u, &score, 4);
  return u & 0x80000000u ? ~u : u | 0x80000000u;
}

// The k best of n > k scores, the lower position of equal ones, in ascending order.
void choose(const float* scores, int n, int k, float* chosen) {
  std::vector<uint32_t> order(n);
  for (int i = 0; i < n; ++i) order[i] = order_of(scores[i]);
  std::vector<uint32_t> sorted = order;
  std::nth_element(sorted.begin(), sorted.begin() + (k - 1), sorted.end(), std::greater<uint32_t>());
  const uint32_t least = sorted[k - 1];
  int equal = k;  // how many of those with the least score are taken
  for (int i = 0; i < k; ++i) equal -= sorted[i] > least;
  for (int i = 0, taken = 0; taken < k; ++i) {
    if (order[i] < least || (order[i] == least && equal-- <= 0)) continue;
    chosen[taken++] = static_cast<float>(i);
  }
}

struct Piece {
  int row, first, last;  // pages
};

}  // namespace

void Index::store(const Step& step) const {
  const Rows keys = step.rows(k);
  const int width = shape.head_dim;
  const size_t page_values = step.cache.page_values(layer);
  const auto to_bf16 = kernels().to_bf16;
  each_row(keys.count, 4 * width, [&](int t) {
    const int slot = slot_of(step, t);
    if (!step.cache.bfloat16()) {
      float* page = step.cache.floats(layer) + page_of(step, t) * page_values;
      for (int d = 0; d < width; ++d) page[static_cast<size_t>(d) * kBlockTokens + slot] = keys[t][d];
      return;
    }
    uint16_t* page = step.cache.halves(layer) + page_of(step, t) * page_values;
    uint16_t row[kMostCachedWidth];
    to_bf16(keys[t], row, width);
    for (int d = 0; d < width; d += 2) std::memcpy(page + d * kBlockTokens + 2 * slot, row + d, 4);
  });
}

void Index::score(const Step& step, int row, int first, int last, float* scores) const {
  const Rows queries = step.rows(q), weight = step.rows(weights);
  const size_t page_values = step.cache.page_values(layer);
  const int32_t* table = step.batch.table(row);
  if (!step.cache.bfloat16())
    return kernels().index_scores({queries[row], weight[row], step.cache.floats(layer), table, page_values, first, last,
                                   shape.heads, shape.head_dim, shape.scale, scores});
  std::vector<uint16_t> rounded(q.width);
  kernels().to_bf16(queries[row], rounded.data(), q.width);
  kernels().index_scores_cached({rounded.data(), weight[row], step.cache.halves(layer), table, page_values, first, last,
                                 shape.heads, shape.head_dim, shape.scale, scores});
}

// Rows whose past is longer than top_k, in groups; the others choose it whole at once.
std::vector<Index::Group> Index::groups_of(const Step& step) const {
  const Rows chosen = step.rows(out);
  std::vector<Group> groups;
  for (int t = 0; t < chosen.count; ++t) {
    const int length = step.batch.positions[t] + 1;
    if (length <= shape.top_k) {
      for (int i = 0; i < shape.top_k; ++i) chosen[t][i] = i < length ? static_cast<float>(i) : -1.0f;
      continue;
    }
    if (groups.empty() || groups.back().last != t || groups.back().size >= kMostScores) groups.push_back({t, t, {}, 0});
    Group& g = groups.back();
    ++g.last;
    g.starts.push_back(g.size);
    g.size += round_up(length, kBlockTokens);
  }
  return groups;
}

void Index::choose_in(const Step& step, const Group& g, float* scores) const {
  const Rows chosen = step.rows(out);
  std::vector<Piece> pieces;
  for (int t = g.first; t < g.last; ++t) {
    const int pages = step.batch.positions[t] / kBlockTokens + 1;
    for (int p = 0; p < pages; p += kUnitPages) pieces.push_back({t, p, std::min(pages, p + kUnitPages)});
  }
  auto one = [&](int i) {
    const Piece& p = pieces[i];
    score(step, p.row, p.first, p.last, scores + g.starts[p.row - g.first] + size_t{kBlockTokens} * p.first);
  };
  auto pick = [&](int i) {
    const int t = g.first + i;
    choose(scores + g.starts[i], step.batch.positions[t] + 1, shape.top_k, chosen[t]);
  };
  if (g.size * q.width >= kInlineWork) {
    parallel(static_cast<int>(pieces.size()), one);
    return parallel(g.last - g.first, pick);
  }
  for (int i = 0; i < static_cast<int>(pieces.size()); ++i) one(i);
  for (int i = 0; i < g.last - g.first; ++i) pick(i);
}

void Index::run(Step& step) const {
  store(step);
  std::vector<float> scores;
  for (const Group& g : groups_of(step)) {
    scores.resize(std::max(scores.size(), g.size));
    choose_in(step, g, scores.data());
  }
}

}  // namespace deepwell
