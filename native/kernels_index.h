// Scores of the lightning indexer (DeepSeek-V3.2 report, section 2.1) against pages of keys laid out as grouped-query
// attention lays them out: float32 [width][64], bfloat16 [width / 2][64][2], so that a lane is a position. A score is
// one chain of fused multiply-adds over the heads, of chains over the columns: nothing depends on how pages are cut.
#pragma once
#include "kernels_cached.h"

namespace deepwell {
namespace DEEPWELL_ISA {

#if defined(DEEPWELL_USE_AVX512)
constexpr int kIndexHeads = 4, kIndexVectors = 4;  // accumulators that fit the registers
#else
constexpr int kIndexHeads = 2, kIndexVectors = 2;
#endif

// total += scale * weight_h * max(q_h . k, 0) over R heads, for V vectors of positions.
template <int R, int V>
DW_INLINE void add_heads(const IndexTask& a, int head, const float* keys, Vec (&total)[V]) {
  Vec s[R][V];
  unroll<R>([&](auto r) DW_LAMBDA { unroll<V>([&](auto v) DW_LAMBDA { s[r][v] = zero(); }); });
  for (int d = 0; d < a.width; ++d) {
    Vec k[V];
    unroll<V>([&](auto v) DW_LAMBDA { k[v] = load(keys + (size_t)d * kPage + 16 * v); });
    unroll<R>([&](auto r) DW_LAMBDA {
      const Vec b = fill(a.q[(size_t)(head + r) * a.width + d]);
      unroll<V>([&](auto v) DW_LAMBDA { s[r][v] = fma(k[v], b, s[r][v]); });
    });
  }
  unroll<R>([&](auto r) DW_LAMBDA {
    const Vec w = fill(a.weights[head + r] * a.scale);
    unroll<V>([&](auto v) DW_LAMBDA { total[v] = fma(max(s[r][v], zero()), w, total[v]); });
  });
}

template <int R, int V>
DW_INLINE void add_heads(const IndexCachedTask& a, int head, const uint16_t* keys, Vec (&total)[V]) {
  Vec s[R][V];
  unroll<R>([&](auto r) DW_LAMBDA { unroll<V>([&](auto v) DW_LAMBDA { s[r][v] = zero(); }); });
  for (int d = 0; d < a.width; d += 2) {
    Word k[V];
    unroll<V>([&](auto v) DW_LAMBDA { k[v] = load_word(keys + (size_t)d * kPage + 32 * v); });
    unroll<R>([&](auto r) DW_LAMBDA {
      const Word b = word_at(a.q + (size_t)(head + r) * a.width + d);
      unroll<V>([&](auto v) DW_LAMBDA { s[r][v] = dot_bf16(s[r][v], k[v], b); });
    });
  }
  unroll<R>([&](auto r) DW_LAMBDA {
    const Vec w = fill(a.weights[head + r] * a.scale);
    unroll<V>([&](auto v) DW_LAMBDA { total[v] = fma(max(s[r][v], zero()), w, total[v]); });
  });
}

// Scores of the 64 positions of pages [first, last), written one after the other. `Lane` is how many values lie between
// those of two neighbouring positions.
template <int Lane, class Task>
DW_INLINE void index_pages(const Task& a) {
  for (int p = a.first; p < a.last; ++p) {
    const auto* page = a.pages + (size_t)a.table[p] * a.page_values;
    float* to = a.scores + (size_t)(p - a.first) * kPage;
    for (int at = 0; at < kPage; at += 16 * kIndexVectors) {
      Vec total[kIndexVectors];
      unroll<kIndexVectors>([&](auto v) DW_LAMBDA { total[v] = zero(); });
      int head = 0;
      for (; head + kIndexHeads <= a.heads; head += kIndexHeads)
        add_heads<kIndexHeads, kIndexVectors>(a, head, page + at * Lane, total);
      for (; head < a.heads; ++head) add_heads<1, kIndexVectors>(a, head, page + at * Lane, total);
      unroll<kIndexVectors>([&](auto v) DW_LAMBDA { store(to + at + 16 * v, total[v]); });
    }
  }
}

inline void index_scores(const IndexTask& a) { index_pages<1>(a); }
inline void index_scores_cached(const IndexCachedTask& a) { index_pages<2>(a); }

}  // namespace DEEPWELL_ISA
}  // namespace deepwell
