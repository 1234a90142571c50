// y = W x for one to many rows of x at once, W in a float storage. Each output is one chain of fused multiply-adds over
// the columns, in order, whatever the number of rows.
#pragma once
#include "kernels.h"
#include "simd.h"

namespace deepwell {
namespace DEEPWELL_ISA {

constexpr int kCols = 32;  // columns of a group

// What a storage is: columns in a 64-byte vector of words, and how column I of a word becomes a float.
struct Float32 {
  static constexpr int per_word = 1, group_bytes = 2048;
  template <int I> static DW_INLINE Vec unpack(Word w) { return as_float(w); }
};
struct Bfloat16 {
  static constexpr int per_word = 2, group_bytes = 1024;
  template <int I> static DW_INLINE Vec unpack(Word w) {
    if constexpr (I == 0) return as_float(shift_left<16>(w));
    else return as_float(high_half(w));
  }
};
struct Float16 {
  static constexpr int per_word = 2, group_bytes = 1024;
  template <int I> static DW_INLINE Vec unpack(Word w) {
    if constexpr (I == 0) return low_halves(w);
    else return high_halves(w);
  }
};

// acc[m][n] += the group's columns of tile n times those of row m.
template <class S, int M, int N>
DW_INLINE void add_group(const uint8_t* w, size_t tile_bytes, const float* const (&x)[M], Vec (&acc)[M][N]) {
  constexpr int step = S::per_word < 4 ? 4 : S::per_word;  // columns per turn of the loop
  for (int k = 0; k < kCols; k += step, w += step / S::per_word * 64) {
    unroll<step / S::per_word>([&](auto j) DW_LAMBDA {
      Word words[N];
      unroll<N>([&](auto n) DW_LAMBDA { words[n] = load_word(w + n * tile_bytes + j * 64); });
      unroll<S::per_word>([&](auto i) DW_LAMBDA {
        Vec v[N];
        unroll<N>([&](auto n) DW_LAMBDA { v[n] = S::template unpack<i.value>(words[n]); });
        unroll<M>([&](auto m) DW_LAMBDA {
          const Vec b = fill(x[m][k + j * S::per_word + i]);
          unroll<N>([&](auto n) DW_LAMBDA { acc[m][n] = fma(v[n], b, acc[m][n]); });
        });
      });
    });
  }
}

// N tiles from `first` on, M rows. `tail` holds each row's last, incomplete group, filled up with zeros.
template <class S, int M, int N>
void tile_block(const Tiles& w, int first, const float* const* rows, const float (*tail)[kCols], float* const* y,
                const float* bias) {
  const uint8_t* tile = w.data + (size_t)first * w.tile_bytes;
  Vec total[M][N];
  unroll<M>([&](auto m) DW_LAMBDA { unroll<N>([&](auto n) DW_LAMBDA { total[m][n] = zero(); }); });
  const float* x[M];
  unroll<M>([&](auto m) DW_LAMBDA { x[m] = rows[m]; });
  const int groups = w.cols / kCols;
  for (int g = 0; g < groups; ++g) {
    add_group<S, M, N>(tile + (size_t)g * S::group_bytes, w.tile_bytes, x, total);
    unroll<M>([&](auto m) DW_LAMBDA { x[m] += kCols; });
  }
  if (w.cols % kCols) {
    unroll<M>([&](auto m) DW_LAMBDA { x[m] = tail[m]; });
    add_group<S, M, N>(tile + (size_t)groups * S::group_bytes, w.tile_bytes, x, total);
  }
  unroll<N>([&](auto n) DW_LAMBDA {
    const int row = (first + n) * 16, left = w.rows - row < 16 ? w.rows - row : 16;
    const Vec b = bias ? load_first(bias + row, left) : zero();
    unroll<M>([&](auto m) DW_LAMBDA {
      const Vec r = bias ? total[m][n] + b : total[m][n];
      if (left == 16) store(y[m] + row, r);
      else store_first(y[m] + row, r, left);
    });
  });
}

template <class S, int M, int N>
void tile_range(const Tiles& w, int first, int last, const float* const* x, float* const* y, const float* bias) {
  float tail[M][kCols];
  const int whole = w.cols / kCols * kCols;
  if (whole < w.cols)
    for (int m = 0; m < M; ++m)
      for (int k = 0; k < kCols; ++k) tail[m][k] = whole + k < w.cols ? x[m][whole + k] : 0.0f;
  for (; first + N <= last; first += N) tile_block<S, M, N>(w, first, x, tail, y, bias);
  for (; first < last; ++first) tile_block<S, M, 1>(w, first, x, tail, y, bias);
}

// Rows at once and tiles at once: as many accumulators as the registers hold beside the operands.
#if defined(DEEPWELL_USE_AVX512)
constexpr int kMaxRows = 8;
constexpr int tiles_at_once(int rows) { return rows == 1 ? 8 : rows <= 4 ? 4 : 2; }
#elif defined(DEEPWELL_USE_AVX2)
constexpr int kMaxRows = 6;
constexpr int tiles_at_once(int rows) { return rows == 1 ? 4 : rows <= 3 ? 2 : 1; }
#elif defined(DEEPWELL_USE_NEON)
constexpr int kMaxRows = 6;
constexpr int tiles_at_once(int rows) { return rows == 1 ? 4 : rows <= 3 ? 2 : 1; }
#else
constexpr int kMaxRows = 1;
constexpr int tiles_at_once(int) { return 1; }
#endif

template <class S, int M>
void some_rows(int m, const Tiles& w, int first, int last, const float* const* x, float* const* y, const float* bias) {
  if (m == M) tile_range<S, M, tiles_at_once(M)>(w, first, last, x, y, bias);
  else if constexpr (M > 1) some_rows<S, M - 1>(m, w, first, last, x, y, bias);
}

template <class S>
void all_rows(const Tiles& w, int first, int last, const float* const* x, float* const* y, int rows,
              const float* bias) {
  for (int m = 0; m < rows; m += kMaxRows) {
    const int n = rows - m < kMaxRows ? rows - m : kMaxRows;
    some_rows<S, kMaxRows>(n, w, first, last, x + m, y + m, bias);
  }
}

inline void linear(const Tiles& w, int first, int last, const float* const* x, float* const* y, int rows,
                   const float* bias) {
  switch (w.storage) {
    case Storage::kFloat32: return all_rows<Float32>(w, first, last, x, y, rows, bias);
    case Storage::kBfloat16: return all_rows<Bfloat16>(w, first, last, x, y, rows, bias);
    default: return all_rows<Float16>(w, first, last, x, y, rows, bias);
  }
}

}  // namespace DEEPWELL_ISA
}  // namespace deepwell
