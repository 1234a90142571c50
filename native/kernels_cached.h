// Attention over a cache in bfloat16: products of bfloat16 pairs added up in float32 (dot_bf16), page after page from
// position 0 with a running maximum and sum, exactly alike for prompts and answers.
//
// A grouped-query page holds, per key head, keys [head_dim / 2][64 positions][2] and values [32][head_dim][2 positions];
// a latent page holds [64][stride], a row being [latent | rope] and zeros up to a multiple of 32. Queries and the
// weights of a page are rounded to bfloat16. Slots beyond a row's length are masked out before they can matter.
#pragma once
#include "kernels_attention.h"

namespace deepwell {
namespace DEEPWELL_ISA {

inline void to_bf16(const float* x, uint16_t* y, int n) {
  each_vector(n, [&](int i, int c) DW_LAMBDA {
    if (c == 16) return store_bf16(y + i, load(x + i));
    uint16_t t[16];
    store_bf16(t, load_first(x + i, c));
    __builtin_memcpy(y + i, t, 2 * c);
  });
}

constexpr int kRows = 4;          // rows that share each load
constexpr int kMostWidth = 1024;  // of a query or a result, for the scratch on the stack

inline int longest(const CachedRow* rows, int n) {
  int most = 0;
  for (int r = 0; r < n; ++r) most = rows[r].length > most ? rows[r].length : most;
  return most;
}

// Scores of a page become weights, also in bfloat16; `keep` is what older sums are scaled by.
template <int R>
DW_INLINE void weigh_rows(const CachedRow* rows, int done, float (*w)[kPage], uint16_t (*coded)[kPage], float* keep,
                          Running* state) {
  for (int r = 0; r < R; ++r) {
    const int left = rows[r].length - done;
    keep[r] = weigh(w[r], left < 0 ? 0 : left < kPage ? left : kPage, state[r]);
    unroll<4>([&](auto i) DW_LAMBDA { store_bf16(coded[r] + 16 * i, load(w[r] + 16 * i)); });
  }
}

// ---- grouped-query

template <int R>
DW_INLINE void gqa_page_scores(const uint16_t (*q)[kMostWidth], const uint16_t* keys, int head_dim, float scale,
                               float (*w)[kPage]) {
  Vec s[R][4];
  unroll<R>([&](auto r) DW_LAMBDA { unroll<4>([&](auto i) DW_LAMBDA { s[r][i] = zero(); }); });
  for (int d = 0; d < head_dim; d += 2) {
    Word k[4];
    unroll<4>([&](auto i) DW_LAMBDA { k[i] = load_word(keys + (size_t)d * kPage + 32 * i); });
    unroll<R>([&](auto r) DW_LAMBDA {
      const Word b = word_at(&q[r][d]);
      unroll<4>([&](auto i) DW_LAMBDA { s[r][i] = dot_bf16(s[r][i], k[i], b); });
    });
  }
  unroll<R>([&](auto r) DW_LAMBDA {
    unroll<4>([&](auto i) DW_LAMBDA { store(w[r] + 16 * i, s[r][i] * fill(scale)); });
  });
}

// Adds V vectors of columns from c on: pairs of positions times pairs of weights.
template <int R, int V>
DW_INLINE void gqa_columns(const uint16_t* values, int head_dim, int tokens, const uint16_t (*w)[kPage],
                           const float* keep, int c, float (*out)[kMostWidth]) {
  Vec acc[R][V];
  unroll<R>([&](auto r) DW_LAMBDA {
    unroll<V>([&](auto v) DW_LAMBDA { acc[r][v] = load(&out[r][c + 16 * v]) * fill(keep[r]); });
  });
  const auto add_pair = [&](int p, auto last) DW_LAMBDA {
    Word x[V];
    unroll<V>([&](auto v) DW_LAMBDA {
      x[v] = load_word(values + ((size_t)p * head_dim + c + 16 * v) * 2);
      if constexpr (last.value) x[v] = mask(x[v], 0xffffu);
    });
    unroll<R>([&](auto r) DW_LAMBDA {
      const Word b = word_at(&w[r][2 * p]);
      unroll<V>([&](auto v) DW_LAMBDA { acc[r][v] = dot_bf16(acc[r][v], x[v], b); });
    });
  };
  for (int p = 0; p < tokens / 2; ++p) add_pair(p, Int<0>{});
  if (tokens % 2) add_pair(tokens / 2, Int<1>{});
  unroll<R>([&](auto r) DW_LAMBDA { unroll<V>([&](auto v) DW_LAMBDA { store(&out[r][c + 16 * v], acc[r][v]); }); });
}

template <int R>
void gqa_rows(const CachedTask& a, const CachedRow* rows) {
  alignas(64) uint16_t q[R][kMostWidth], coded[R][kPage];
  alignas(64) float out[R][kMostWidth], w[R][kPage];
  float keep[R];
  Running state[R];
  for (int r = 0; r < R; ++r) {
    to_bf16(rows[r].q, q[r], a.width);
    __builtin_memset(out[r], 0, sizeof(float) * a.value);
  }
  const int length = longest(rows, R);
  for (int done = 0; done < length; done += kPage) {
    const int tokens = length - done < kPage ? length - done : kPage;
    const uint16_t* page = a.pages + (size_t)a.table[done / kPage] * a.page_shorts;
    gqa_page_scores<R>(q, page + a.k_offset, a.width, a.scale, w);
    weigh_rows<R>(rows, done, w, coded, keep, state);
    int c = 0;
    for (; c + 64 <= a.value; c += 64) gqa_columns<R, 4>(page + a.v_offset, a.value, tokens, coded, keep, c, out);
    for (; c < a.value; c += 16) gqa_columns<R, 1>(page + a.v_offset, a.value, tokens, coded, keep, c, out);
  }
  for (int r = 0; r < R; ++r) {
    divide(out[r], a.value, state[r].total);
    __builtin_memcpy(rows[r].out, out[r], sizeof(float) * a.value);
  }
}

// ---- latent

// Scores of R rows against the latent rows of a page, four at a time.
template <int R, class Page>
DW_INLINE void mla_page_scores(const uint16_t (*q)[kMostWidth], const Page& page, int tokens, int stride, float scale,
                               float (*w)[kPage]) {
  for (int t = 0; t < tokens; t += 4) {
    Vec s[16];
    unroll<16>([&](auto i) DW_LAMBDA { s[i] = zero(); });
    const uint16_t* row[4];
    unroll<4>([&](auto i) DW_LAMBDA { row[i] = page(t + i); });
    for (int d = 0; d < stride; d += 32) {
      Word k[4];
      unroll<4>([&](auto i) DW_LAMBDA { k[i] = load_word(row[i] + d); });
      unroll<R>([&](auto r) DW_LAMBDA {
        const Word b = load_word(&q[r][d]);
        unroll<4>([&](auto i) DW_LAMBDA { s[4 * r + i] = dot_bf16(s[4 * r + i], k[i], b); });
      });
    }
    float sums[16];
    store(sums, sums_of(s) * fill(scale));
    for (int r = 0; r < R; ++r) __builtin_memcpy(&w[r][t], sums + 4 * r, 16);
  }
}

// Adds columns c..c+31 of the page's rows times their weights, for H rows.
template <int H, class Page>
DW_INLINE void mla_columns(const Page& page, int tokens, const uint16_t (*w)[kPage], const float* keep, int c,
                           float (*out)[kMostWidth]) {
  Vec low[H], high[H];  // columns in the order in which pairs of rows interleave; put right at the end
  unroll<H>([&](auto h) DW_LAMBDA {
    low[h] = load(&out[h][c]) * fill(keep[h]);
    high[h] = load(&out[h][c + 16]) * fill(keep[h]);
  });
  const auto add_pair = [&](int p, Word second) DW_LAMBDA {
    Word x, y;
    pair(load_word(page(2 * p) + c), second, x, y);
    unroll<H>([&](auto h) DW_LAMBDA {
      const Word b = word_at(&w[h][2 * p]);
      low[h] = dot_bf16(low[h], x, b);
      high[h] = dot_bf16(high[h], y, b);
    });
  };
  for (int p = 0; p < tokens / 2; ++p) add_pair(p, load_word(page(2 * p + 1) + c));
  if (tokens % 2) add_pair(tokens / 2, fill_word(0));
  unroll<H>([&](auto h) DW_LAMBDA {
    store(&out[h][c], low[h]);
    store(&out[h][c + 16], high[h]);
  });
}

template <int H>
struct MlaState {
  alignas(64) uint16_t q[H][kMostWidth], coded[H][kPage];
  alignas(64) float out[H][kMostWidth], w[H][kPage];
  float keep[H];
  Running running[H];
};

template <int H, class Page>
DW_INLINE void mla_page(const CachedTask& a, const CachedRow* rows, const Page& page, int done, int tokens,
                        MlaState<H>& s) {
  int h = 0;
  for (; h + 4 <= H; h += 4) mla_page_scores<4>(s.q + h, page, tokens, a.stride, a.scale, s.w + h);
  for (; h < H; ++h) mla_page_scores<1>(s.q + h, page, tokens, a.stride, a.scale, s.w + h);
  weigh_rows<H>(rows, done, s.w, s.coded, s.keep, s.running);
  for (int c = 0; c < a.value; c += 32) mla_columns<H>(page, tokens, s.coded, s.keep, c, s.out);
}

template <int H>
void mla_rows(const CachedTask& a, const CachedRow* rows) {
  MlaState<H> s;
  const int value = (a.value + 31) / 32 * 32;
  for (int h = 0; h < H; ++h) {
    to_bf16(rows[h].q, s.q[h], a.width);
    __builtin_memset(s.q[h] + a.width, 0, 2 * (a.stride - a.width));
    __builtin_memset(s.out[h], 0, sizeof(float) * value);
  }
  const int length = longest(rows, H);
  for (int done = 0; done < length; done += kPage) {
    const int tokens = length - done < kPage ? length - done : kPage;
    if (a.chosen) {
      const ChosenRows<uint16_t> page(a.pages, a.table, a.page_shorts, a.stride, a.chosen + done, tokens);
      mla_page<H>(a, rows, page, done, tokens, s);
    } else {
      const PageRows<uint16_t> page{a.pages + (size_t)a.table[done / kPage] * a.page_shorts, (size_t)a.stride};
      mla_page<H>(a, rows, page, done, tokens, s);
    }
  }
  for (int h = 0; h < H; ++h) {
    for (int c = 0; c < value; c += 32) {
      Vec first, second;
      unpair(load(&s.out[h][c]), load(&s.out[h][c + 16]), first, second);
      store(&s.out[h][c], first);
      store(&s.out[h][c + 16], second);
    }
    divide(s.out[h], a.value, s.running[h].total);
    __builtin_memcpy(rows[h].out, s.out[h], sizeof(float) * a.value);
  }
}

template <int R, bool Latent>
void some_cached(const CachedTask& a, int first) {
  if (a.count - first >= R) {
    if constexpr (Latent) mla_rows<R>(a, a.rows + first);
    else gqa_rows<R>(a, a.rows + first);
    first += R;
    if (first < a.count) some_cached<R, Latent>(a, first);
  } else if constexpr (R > 1) {
    some_cached<R / 2, Latent>(a, first);
  }
}

inline void gqa_cached(const CachedTask& a) { some_cached<kRows, false>(a, 0); }
inline void mla_cached(const CachedTask& a) { some_cached<8, true>(a, 0); }

}  // namespace DEEPWELL_ISA
}  // namespace deepwell
