// Attention of one token over the pages of its sequence, page after page from position 0, with a running maximum and
// sum (online softmax; Milakov & Gimelshein 2018). Within a page: scores of all its tokens, then one chain of fused
// multiply-adds over its tokens in order. Nothing depends on how many tokens of the step came along.
#pragma once
#include "kernels_rows.h"

namespace deepwell {
namespace DEEPWELL_ISA {

constexpr int kPage = 64;
constexpr int kHeads = 4;  // MLA heads that share each load of a latent row

// Softmax state of one head: largest score so far and the sum of exp(score - largest).
struct Running {
  float peak = -__builtin_inff();
  float total = 0;
};

// The rows of a page, one behind the other.
template <class T>
struct PageRows {
  const T* first;
  size_t stride;
  DW_INLINE const T* operator()(int t) const { return first + t * stride; }
};

// Up to 64 chosen rows, taken as a page; rows are asked for in fours, so the last one fills up.
template <class T>
struct ChosenRows {
  const T* rows[kPage];
  DW_INLINE ChosenRows(const T* pages, const int32_t* table, size_t page, size_t stride, const float* chosen, int n) {
    for (int t = 0; t < (n + 3) / 4 * 4; ++t) {
      const int position = (int)chosen[t < n ? t : n - 1];
      rows[t] = pages + (size_t)table[position / kPage] * page + (size_t)(position % kPage) * stride;
    }
  }
  DW_INLINE const T* operator()(int t) const { return rows[t]; }
};

// Turns the first n scores of a page into weights (the rest to zero), and returns what older sums must be scaled by.
DW_INLINE float weigh(float* scores, int n, Running& state) {
  Vec s[4], top = fill(state.peak);
  unroll<4>([&](auto i) DW_LAMBDA {
    const int left = n - 16 * i < 0 ? 0 : n - 16 * i < 16 ? n - 16 * i : 16;
    s[i] = keep_first(load(scores + 16 * i), left, -__builtin_inff());
    top = max(top, s[i]);
  });
  const float peak = largest(top);
  Vec total = zero();
  unroll<4>([&](auto i) DW_LAMBDA {
    const Vec w = exp(s[i] - fill(peak));
    store(scores + 16 * i, w);
    total = total + w;
  });
  float keep[16];
  store(keep, exp(fill(state.peak - peak)));
  state.total = state.total * keep[0] + sum(total);
  state.peak = peak;
  return keep[0];
}

// out = out * keep + sum over the page's tokens t of w[t] * rows(t), for `heads` heads over the same rows.
template <int H, class R>
DW_INLINE void accumulate(const R& rows, int tokens, const float (*w)[kPage], const float* keep, bool first, float* out,
                          size_t out_stride, int width) {
  constexpr int V = H == 1 ? 4 : 2;  // vectors of a row at once
  int c = 0;
  const auto columns = [&](auto v_count, int count) DW_LAMBDA {
    Vec acc[H][v_count.value];
    unroll<H>([&](auto h) DW_LAMBDA {
      unroll<v_count.value>([&](auto v) DW_LAMBDA {
        acc[h][v] = first ? zero() : load_some(out + h * out_stride + c + 16 * v, count) * fill(keep[h]);
      });
    });
    for (int t = 0; t < tokens; ++t) {
      const float* row = rows(t) + c;
      unroll<v_count.value>([&](auto v) DW_LAMBDA {
        const Vec x = load_some(row + 16 * v, count);
        unroll<H>([&](auto h) DW_LAMBDA { acc[h][v] = fma(fill(w[h][t]), x, acc[h][v]); });
      });
    }
    unroll<H>([&](auto h) DW_LAMBDA {
      unroll<v_count.value>([&](auto v) DW_LAMBDA { store_some(out + h * out_stride + c + 16 * v, acc[h][v], count); });
    });
  };
  for (; c + 16 * V <= width; c += 16 * V) columns(Int<V>{}, 16);
  for (; c + 16 <= width; c += 16) columns(Int<1>{}, 16);
  if (c < width) columns(Int<1>{}, width - c);
}

inline void divide(float* out, int n, float total) {
  const Vec t = fill(total);
  each_vector(n, [&](int i, int c) DW_LAMBDA { store_some(out + i, load_some(out + i, c) / t, c); });
}

// Scores of one query head against a page of keys laid out [head_dim][64].
inline void gqa_scores(const float* q, const float* keys, int head_dim, float scale, float* scores) {
  Vec s[4];
  unroll<4>([&](auto i) DW_LAMBDA { s[i] = zero(); });
  for (int d = 0; d < head_dim; ++d) {
    const Vec b = fill(q[d]);
    unroll<4>([&](auto i) DW_LAMBDA { s[i] = fma(load(keys + (size_t)d * kPage + 16 * i), b, s[i]); });
  }
  unroll<4>([&](auto i) DW_LAMBDA { store(scores + 16 * i, s[i] * fill(scale)); });
}

inline void gqa(const GqaTask& a) {
  for (int h = 0; h < a.heads; ++h) {
    const float* q = a.q + (size_t)h * a.head_dim;
    float* out = a.out + (size_t)h * a.head_dim;
    Running state;
    float w[1][kPage];
    for (int done = 0; done < a.length; done += kPage) {
      const int tokens = a.length - done < kPage ? a.length - done : kPage;
      const float* page = a.pages + (size_t)a.table[done / kPage] * a.page_floats;
      gqa_scores(q, page + a.k_offset, a.head_dim, a.scale, w[0]);
      const float keep = weigh(w[0], tokens, state);
      const PageRows<float> values{page + a.v_offset, (size_t)a.head_dim};
      accumulate<1>(values, tokens, w, &keep, done == 0, out, 0, a.head_dim);
    }
    divide(out, a.head_dim, state.total);
  }
}

// Scores of H absorbed heads against T latent rows from `first` on.
template <int H, int T, class R>
DW_INLINE void mla_scores(const float* q, const R& rows, int first, int width, float scale, float (*scores)[kPage]) {
  const float* row[T];
  unroll<T>([&](auto t) DW_LAMBDA { row[t] = rows(first + t); });
  Vec s[H][T];
  unroll<H>([&](auto h) DW_LAMBDA { unroll<T>([&](auto t) DW_LAMBDA { s[h][t] = zero(); }); });
  each_vector(width, [&](int c, int n) DW_LAMBDA {
    Vec x[T];
    unroll<T>([&](auto t) DW_LAMBDA { x[t] = load_some(row[t] + c, n); });
    unroll<H>([&](auto h) DW_LAMBDA {
      const Vec y = load_some(q + (size_t)h * width + c, n);
      unroll<T>([&](auto t) DW_LAMBDA { s[h][t] = fma(x[t], y, s[h][t]); });
    });
  });
  unroll<H>([&](auto h) DW_LAMBDA { unroll<T>([&](auto t) DW_LAMBDA { scores[h][t] = sum(s[h][t]) * scale; }); });
}

// One page of `tokens` latent rows: what H heads make of them.
template <int H, class R>
DW_INLINE void mla_page(const MlaTask& a, const R& rows, int tokens, const float* q, Running* state, bool first,
                        float* out) {
  const int width = a.latent + a.rope;
  float w[H][kPage], keep[H];
  int t = 0;
  for (; t + 2 <= tokens; t += 2) mla_scores<H, 2>(q, rows, t, width, a.scale, (float(*)[kPage])(&w[0][t]));
  if (t < tokens) mla_scores<H, 1>(q, rows, t, width, a.scale, (float(*)[kPage])(&w[0][t]));
  for (int h = 0; h < H; ++h) keep[h] = weigh(w[h], tokens, state[h]);
  accumulate<H>(rows, tokens, w, keep, first, out, a.latent, a.latent);
}

template <int H>
void mla_heads(const MlaTask& a, int head) {
  const int width = a.latent + a.rope;
  const float* q = a.q + (size_t)head * width;
  float* out = a.out + (size_t)head * a.latent;
  Running state[H];
  for (int done = 0; done < a.length; done += kPage) {
    const int tokens = a.length - done < kPage ? a.length - done : kPage;
    if (a.chosen) {
      const ChosenRows<float> rows(a.pages, a.table, a.page_floats, width, a.chosen + done, tokens);
      mla_page<H>(a, rows, tokens, q, state, done == 0, out);
    } else {
      const PageRows<float> rows{a.pages + (size_t)a.table[done / kPage] * a.page_floats, (size_t)width};
      mla_page<H>(a, rows, tokens, q, state, done == 0, out);
    }
  }
  for (int h = 0; h < H; ++h) divide(out + (size_t)h * a.latent, a.latent, state[h].total);
}

inline void mla(const MlaTask& a) {
  int h = 0;
  for (; h + kHeads <= a.heads; h += kHeads) mla_heads<kHeads>(a, h);
  for (; h < a.heads; ++h) mla_heads<1>(a, h);
}

}  // namespace DEEPWELL_ISA
}  // namespace deepwell
