// Products of quantised weights with activations in 8 bits (CodedRow). Sums of codes are exact integers, so every
// instruction set and every blocking gives the same bits; what is rounded is, for each output,
//
//   part  = 0, then for each group g of 128 columns: part = fma(sum_g, scale_g, part) [, fma(minimum_g, -sum x, part)]
//   total = 0, then for each 128 columns:            total = fma(part, scale of x, total)
//
// Few rows: codes are unpacked in registers on their way from memory. Many rows: a pair of tiles is expanded to bytes
// once, 256 columns at a time, and all rows run over them.
#pragma once
#include "kernels_rows.h"

namespace deepwell {
namespace DEEPWELL_ISA {

// ---- activations

// Encodes columns [first, last) of x; `first` is a multiple of 128. A value that is not finite makes the scale NaN.
inline void encode(const float* x, int cols, int first, int last, uint8_t* row) {
  const CodedRow at(cols);
  for (int k = first; k < last; k += kScaledCols) {
    const int n = last - k < kScaledCols ? last - k : kScaledCols;
    Vec v[8], peak = zero(), poison = zero();
    for (int i = 0; i < 8; ++i) {
      const int c = n - 16 * i < 0 ? 0 : n - 16 * i < 16 ? n - 16 * i : 16;
      v[i] = c == 16 ? load(x + k + 16 * i) : c > 0 ? load_first(x + k + 16 * i, c) : zero();
      peak = max(peak, absolute(v[i]));
      poison = fma(v[i], zero(), poison);
    }
    const float top = largest(peak);
    const Vec inverse = fill(top > 0 ? 127.0f / top : 0.0f);
    int32_t sums[8];
    for (int i = 0; i < 8; ++i) {
      const Word q = round(v[i] * inverse);
      store_bytes(row + k + 16 * i, q);
      sums[i] = -8 * sum_int(q);
    }
    const float scale = top / 127.0f + sum(poison);
    __builtin_memcpy(row + at.scales + k / kScaledCols * 4, &scale, 4);
    __builtin_memcpy(row + at.sums16 + k / 16 * 4, sums, 32);
    for (int i = 0; i < 4; ++i) sums[i] = sums[2 * i] + sums[2 * i + 1];
    __builtin_memcpy(row + at.sums32 + k / 32 * 4, sums, 16);
  }
}

// ---- codes and scales of one group of 32 columns

template <Storage S>
constexpr bool kWide = codes_of(S).zero == 128;

// Codes of columns 4J..4J+3 of the group whose planes begin at p; levels of a table already looked up.
template <Storage S, int J>
DW_INLINE Word code(const uint8_t* p, Word table) {
  constexpr int bits = codes_of(S).bits;
  if constexpr (bits == 8) return load_word(p + 64 * J);
  Word c;
  if constexpr (bits >= 4) {
    const Word w = load_word(p + 64 * (J / 2));
    if constexpr (J % 2 == 0) c = mask(w, 0x0f0f0f0fu);
    else c = mask(shift_right<4>(w), 0x0f0f0f0fu);
    if constexpr (codes_of(S).levels != Levels::kLinear) c = lookup(table, c);
    p += 256;
  } else {
    c = mask(shift_right<2 * (J % 4)>(load_word(p + 64 * (J / 4))), 0x03030303u);
    p += 128;
  }
  if constexpr (bits == 6) {
    const Word w = load_word(p + 64 * (J / 4));
    if constexpr (J % 4 < 2) c = c | mask(shift_left<4 - 2 * (J % 4)>(w), 0x30303030u);
    else c = c | mask(shift_right<2 * (J % 4) - 4>(w), 0x30303030u);
  }
  if constexpr (bits == 5) {
    const Word w = load_word(p);
    if constexpr (J < 4) c = c | mask(shift_left<4 - J>(w), 0x10101010u);
    else c = c | mask(shift_right<J - 4>(w), 0x10101010u);
  }
  if constexpr (bits == 3) {
    const Word w = load_word(p);
    if constexpr (J < 2) c = c | mask(shift_left<2 - J>(w), 0x04040404u);
    else c = c | mask(shift_right<J - 2>(w), 0x04040404u);
  }
  return c;
}

DW_INLINE Vec power_of_two(Word e) {  // 2^(e - 128) for e in 0..255, by two factors that are both normal
  return as_float(shift_left<23>(add_int(shift_right<1>(e), 64))) *
         as_float(shift_left<23>(add_int(shift_right<1>(add_int(e, 1)), 62)));
}

template <Storage S>
DW_INLINE const uint8_t* block_of(const uint8_t* tile, int g) {
  constexpr Codes c = codes_of(S);
  return tile + (size_t)(g / (c.block() / 32)) * c.block_bytes();
}
template <Storage S>
DW_INLINE const uint8_t* codes_at(const uint8_t* tile, int g) {
  constexpr Codes c = codes_of(S);
  return block_of<S>(tile, g) + c.header_bytes() + (size_t)(g % (c.block() / 32)) * c.group_bytes();
}

// Scale and minimum (times -1/8, to meet sums that are times -8) of part H of group g.
template <Storage S, int H>
DW_INLINE Vec scale_at(const uint8_t* tile, int g) {
  constexpr Codes c = codes_of(S);
  const uint8_t* b = block_of<S>(tile, g);
  if constexpr (c.scales == Scales::kExponent) return power_of_two(from_bytes(b + g % 2 * 16));
  else if constexpr (c.block() == 64) return load_half(b + g % 2 * 32);
  else return load_half(b) * to_float(from_signed_bytes(b + 64 + (g % 8 * (32 / c.group) + H) * 16));
}
template <Storage S, int H>
DW_INLINE Vec minimum_at(const uint8_t* tile, int g) {
  constexpr Codes c = codes_of(S);
  const uint8_t* b = block_of<S>(tile, g);
  if constexpr (c.block() == 64) return load_half(b + 64 + g % 2 * 32) * fill(-0.125f);
  else return load_half(b + 32) * to_float(from_bytes(b + 64 + 16 * (256 / c.group) + (g % 8 * (32 / c.group) + H) * 16))
              * fill(0.125f);
}

// What a sum of codes starts from, so that it ends as the sum of (level - zero) times x.
template <int Zero>
DW_INLINE Word start(const uint8_t* sums) {
  if constexpr (Zero == 0 || (Zero == 128 && kSignedDot)) return fill_word(0);
  else if constexpr (Zero == 4) return halve<1>(word_at(sums));
  else if constexpr (Zero == 8) return word_at(sums);
  else if constexpr (Zero == 16) return shift_left<1>(word_at(sums));
  else if constexpr (Zero == 32) return shift_left<2>(word_at(sums));
  else return shift_left<4>(word_at(sums));
}

// ---- few rows

constexpr int kFewTiles = 4;                // tiles that few rows take at a time
constexpr size_t kFewStride = kFewTiles * 16;  // floats between the totals of two rows

// total[r][t] of R rows with T tiles, unpacking codes in registers.
template <Storage S, int R, int T>
void direct(const uint8_t* const* tiles, int cols, const uint8_t* const* rows, float* out) {
  constexpr Codes c = codes_of(S);
  constexpr int parts = 32 / c.group;
  const CodedRow at(cols);
  const Word table = c.levels == Levels::kIq4 ? table_word(kIq4Levels) : table_word(kFp4Levels);
  const int groups = (cols + 31) / 32;
  const uint8_t *x[R], *tile[T];
  unroll<R>([&](auto r) DW_LAMBDA { x[r] = rows[r]; });
  unroll<T>([&](auto t) DW_LAMBDA { tile[t] = tiles[t]; });
  Vec total[R][T];
  unroll<R>([&](auto r) DW_LAMBDA { unroll<T>([&](auto t) DW_LAMBDA { total[r][t] = zero(); }); });
  for (int g0 = 0; g0 < groups; g0 += 4) {
    const int end = g0 + 4 < groups ? g0 + 4 : groups;
    Vec part[R][T];
    unroll<R>([&](auto r) DW_LAMBDA { unroll<T>([&](auto t) DW_LAMBDA { part[r][t] = zero(); }); });
    for (int g = g0; g < end; ++g) {
      const size_t sums = (parts == 1 ? at.sums32 : at.sums16) + (size_t)g * parts * 4;
      unroll<parts>([&](auto h) DW_LAMBDA {
        Word acc[R][T];
        unroll<R>([&](auto r) DW_LAMBDA {
          const Word s = start<c.zero>(x[r] + sums + h * 4);
          unroll<T>([&](auto t) DW_LAMBDA { acc[r][t] = s; });
        });
        unroll<8 / parts>([&](auto i) DW_LAMBDA {
          constexpr int J = h.value * (8 / parts) + i.value;
          Word w[T];
          unroll<T>([&](auto t) DW_LAMBDA { w[t] = code<S, J>(codes_at<S>(tile[t], g), table); });
          unroll<R>([&](auto r) DW_LAMBDA {
            const Word b = word_at(x[r] + (size_t)g * 32 + 4 * J);
            unroll<T>([&](auto t) DW_LAMBDA { acc[r][t] = dot<kWide<S>>(acc[r][t], w[t], b); });
          });
        });
        unroll<T>([&](auto t) DW_LAMBDA {
          const Vec scale = scale_at<S, h.value>(tile[t], g);
          unroll<R>([&](auto r) DW_LAMBDA { part[r][t] = fma(to_float(acc[r][t]), scale, part[r][t]); });
          if constexpr (c.has_min()) {
            const Vec minimum = minimum_at<S, h.value>(tile[t], g);
            unroll<R>([&](auto r) DW_LAMBDA {
              part[r][t] = fma(minimum, to_float(word_at(x[r] + sums + h * 4)), part[r][t]);
            });
          }
        });
      });
    }
    unroll<R>([&](auto r) DW_LAMBDA {
      float f;
      __builtin_memcpy(&f, x[r] + at.scales + (size_t)g0, 4);
      const Vec s = fill(f);
      unroll<T>([&](auto t) DW_LAMBDA { total[r][t] = fma(part[r][t], s, total[r][t]); });
    });
  }
  unroll<R>([&](auto r) DW_LAMBDA {
    unroll<T>([&](auto t) DW_LAMBDA { store(out + r * kFewStride + t * 16, total[r][t]); });
  });
}

// ---- many rows

constexpr int kDepth = 256;   // columns expanded at a time
constexpr int kManyRows = 128;  // rows whose totals are kept at hand

#if defined(DEEPWELL_USE_AVX512)
constexpr int kTilesTogether = 2, kRowsTogether = 4, kDirectRows = 8;
constexpr int direct_tiles(int rows) { return rows <= 2 ? 4 : rows == 4 ? 2 : 1; }
#elif defined(DEEPWELL_USE_AVX2)  // a Word is two of 16 registers: 8 for sums, 2 for codes, the rest for one product
constexpr int kTilesTogether = 1, kRowsTogether = 4, kDirectRows = 4;
constexpr int direct_tiles(int rows) { return rows == 1 ? 2 : 1; }
#elif defined(DEEPWELL_USE_NEON)  // a Word is four of 32 registers: 16 for sums, 4 for codes, the rest for one product
constexpr int kTilesTogether = 1, kRowsTogether = 4, kDirectRows = 4;
constexpr int direct_tiles(int rows) { return rows <= 2 ? 2 : 1; }
#else
constexpr int kTilesTogether = 1, kRowsTogether = 1, kDirectRows = 1;
constexpr int direct_tiles(int) { return 1; }
#endif

// A pair of tiles as bytes: codes of both tiles side by side, scales and minima as floats.
struct alignas(64) Expanded {
  uint8_t codes[kDepth / 4][2][64];
  float scales[kDepth / 16][2][16];
  float minima[kDepth / 16][2][16];
};

template <Storage S>
DW_INLINE void expand(const uint8_t* tile, int t, int first_group, int groups, Word table, Expanded& e) {
  constexpr Codes c = codes_of(S);
  constexpr int parts = 32 / c.group;
  for (int i = 0; i < groups; ++i) {
    const int g = first_group + i;
    const uint8_t* p = codes_at<S>(tile, g);
    unroll<8>([&](auto j) DW_LAMBDA { store_word(e.codes[8 * i + j][t], code<S, j.value>(p, table)); });
    unroll<parts>([&](auto h) DW_LAMBDA {
      store(e.scales[i * parts + h][t], scale_at<S, h.value>(tile, g));
      if constexpr (c.has_min()) store(e.minima[i * parts + h][t], minimum_at<S, h.value>(tile, g));
    });
  }
}

// total[r][t] += R rows times T tiles of `e`, for `groups` groups of 32 columns from `first` on.
template <int Group, int Zero, bool Min, int R, int T>
void multiply(const Expanded& e, int t0, int cols, const uint8_t* const* rows, int first, int groups, float* totals) {
  constexpr int parts = 32 / Group;
  const CodedRow at(cols);
  const uint8_t* x[R];
  unroll<R>([&](auto r) DW_LAMBDA { x[r] = rows[r]; });
  for (int i0 = 0; i0 < groups; i0 += 4) {
    const int end = i0 + 4 < groups ? i0 + 4 : groups;
    Vec part[R][T];
    unroll<R>([&](auto r) DW_LAMBDA { unroll<T>([&](auto t) DW_LAMBDA { part[r][t] = zero(); }); });
    for (int i = i0 * parts; i < end * parts; ++i) {
      const size_t sums = (parts == 1 ? at.sums32 : at.sums16) + (size_t)(first * parts + i) * 4;
      const size_t k = (size_t)first * 32 + (size_t)i * Group;
      Word acc[R][T];
      unroll<R>([&](auto r) DW_LAMBDA {
        const Word s = start<Zero>(x[r] + sums);
        unroll<T>([&](auto t) DW_LAMBDA { acc[r][t] = s; });
      });
      unroll<Group / 4>([&](auto j) DW_LAMBDA {
        Word w[T];
        unroll<T>([&](auto t) DW_LAMBDA { w[t] = load_word(e.codes[i * (Group / 4) + j][t0 + t]); });
        unroll<R>([&](auto r) DW_LAMBDA {
          const Word b = word_at(x[r] + k + 4 * j);
          unroll<T>([&](auto t) DW_LAMBDA { acc[r][t] = dot<Zero == 128>(acc[r][t], w[t], b); });
        });
      });
      unroll<T>([&](auto t) DW_LAMBDA {
        const Vec scale = load(e.scales[i][t0 + t]);
        unroll<R>([&](auto r) DW_LAMBDA { part[r][t] = fma(to_float(acc[r][t]), scale, part[r][t]); });
        if constexpr (Min) {
          const Vec minimum = load(e.minima[i][t0 + t]);
          unroll<R>([&](auto r) DW_LAMBDA { part[r][t] = fma(minimum, to_float(word_at(x[r] + sums)), part[r][t]); });
        }
      });
    }
    unroll<R>([&](auto r) DW_LAMBDA {
      float f;
      __builtin_memcpy(&f, x[r] + at.scales + (size_t)(first + i0), 4);
      const Vec s = fill(f);
      unroll<T>([&](auto t) DW_LAMBDA {
        float* p = totals + r * 32 + (t0 + t) * 16;
        store(p, fma(part[r][t], s, load(p)));
      });
    });
  }
}

// totals[row][2][16] of up to kManyRows rows with one or two tiles; missing rows and tiles repeat the last one.
template <Storage S>
void many_rows(const uint8_t* tile, size_t tile_bytes, int tiles, int cols, const uint8_t* const* x, int rows,
               float* totals) {
  constexpr Codes c = codes_of(S);
  constexpr int R = kRowsTogether, T = kTilesTogether;
  alignas(64) Expanded e;
  const Word table = c.levels == Levels::kIq4 ? table_word(kIq4Levels) : table_word(kFp4Levels);
  const uint8_t* padded[kManyRows + R];
  for (int r = 0; r < rows + R; ++r) padded[r] = x[r < rows ? r : rows - 1];
  __builtin_memset(totals, 0, sizeof(float) * 32 * (rows + R));
  const int groups = (cols + 31) / 32;
  for (int g = 0; g < groups; g += kDepth / 32) {
    const int n = groups - g < kDepth / 32 ? groups - g : kDepth / 32;
    for (int t = 0; t < 2; ++t) expand<S>(tile + (t < tiles ? t : tiles - 1) * tile_bytes, t, g, n, table, e);
    for (int r = 0; r < rows; r += R)
      for (int t = 0; t < 2; t += T) {
        if (R == 4 && rows - r <= 2)
          multiply<c.group, c.zero, c.has_min(), R == 4 ? 2 : R, T>(e, t, cols, padded + r, g, n, totals + r * 32);
        else
          multiply<c.group, c.zero, c.has_min(), R, T>(e, t, cols, padded + r, g, n, totals + r * 32);
      }
  }
}

template <Storage S, int R>
DW_INLINE void few_rows(const uint8_t* const (&tiles)[kFewTiles], int count, int cols, const uint8_t* const* x,
                        float* totals) {
  constexpr int T = direct_tiles(R);
  for (int t = 0; t < count; t += T) direct<S, R, T>(tiles + t, cols, x, totals + t * 16);
}

// The storages met most have a kernel for each number of rows; the others, to compile faster, for 4 and 1.
constexpr bool common(Storage s) { return s == Storage::kInt4 || s == Storage::kInt8 || s == Storage::kQ4K; }

// totals[row][kFewTiles][16] of up to kDirectRows rows with up to kFewTiles tiles.
template <Storage S>
void few(const uint8_t* tile, size_t tile_bytes, int count, int cols, const uint8_t* const* x, int rows,
         float* totals) {
  const uint8_t* tiles[kFewTiles];  // missing ones repeat the last, and nobody reads their totals
  for (int t = 0; t < kFewTiles; ++t) tiles[t] = tile + (t < count ? t : count - 1) * tile_bytes;
  int r = 0;
  if constexpr (kDirectRows >= 8 && common(S))
    for (; r + 8 <= rows; r += 8) few_rows<S, 8>(tiles, count, cols, x + r, totals + r * kFewStride);
  if constexpr (kDirectRows >= 4)
    for (; r + 4 <= rows; r += 4) few_rows<S, 4>(tiles, count, cols, x + r, totals + r * kFewStride);
  if constexpr (kDirectRows >= 2 && common(S))
    for (; r + 2 <= rows; r += 2) few_rows<S, 2>(tiles, count, cols, x + r, totals + r * kFewStride);
  for (; r < rows; ++r) few_rows<S, 1>(tiles, count, cols, x + r, totals + r * kFewStride);
}

// ---- what becomes of the totals

struct Product {
  void (*few)(const uint8_t*, size_t, int, int, const uint8_t* const*, int, float*);
  void (*many)(const uint8_t*, size_t, int, int, const uint8_t* const*, int, float*);
};
template <Storage S>
constexpr Product product() { return {few<S>, many_rows<S>}; }

inline Product product_of(Storage s) {
  switch (s) {
    case Storage::kInt8: return product<Storage::kInt8>();
    case Storage::kQ4_1: return product<Storage::kQ4_1>();
    case Storage::kQ5_0: return product<Storage::kQ5_0>();
    case Storage::kQ5_1: return product<Storage::kQ5_1>();
    case Storage::kQ2K: return product<Storage::kQ2K>();
    case Storage::kQ3K: return product<Storage::kQ3K>();
    case Storage::kQ4K: return product<Storage::kQ4K>();
    case Storage::kQ5K: return product<Storage::kQ5K>();
    case Storage::kQ6K: return product<Storage::kQ6K>();
    case Storage::kIq4Nl: return product<Storage::kIq4Nl>();
    case Storage::kIq4Xs: return product<Storage::kIq4Xs>();
    case Storage::kMxfp4: return product<Storage::kMxfp4>();
    default: return product<Storage::kInt4>();
  }
}

// Calls done(row, tile, totals of the tiles from `tile` on, their number) for every row and all tiles.
template <class F>
DW_INLINE void each_total(const Tiles& w, int first, int last, const uint8_t* const* x, int rows, F&& done) {
  const Product p = product_of(w.storage);
  const bool small = rows <= kDirectRows;
  const int step = small ? kFewTiles : 2, most = small ? kDirectRows : kManyRows;
  alignas(64) float totals[(kManyRows + kRowsTogether) * 32];
  static_assert(kDirectRows * kFewStride <= kManyRows * 32, "totals of few rows fit too");
  for (int r = 0; r < rows; r += most) {
    const int n = rows - r < most ? rows - r : most;
    for (int t = first; t < last; t += step) {
      const int tiles = last - t < step ? last - t : step;
      (small ? p.few : p.many)(w.data + (size_t)t * w.tile_bytes, w.tile_bytes, tiles, w.cols, x + r, n, totals);
      for (int i = 0; i < n; ++i) done(r + i, t, totals + (size_t)i * step * 16, tiles);
    }
  }
}

inline void linear_coded(const Tiles& w, int first, int last, const uint8_t* const* x, float* const* y, int rows,
                         const float* bias) {
  each_total(w, first, last, x, rows, [&](int r, int tile, const float* totals, int tiles) {
    for (int t = 0; t < tiles; ++t) {
      const int row = (tile + t) * 16, left = w.rows - row < 16 ? w.rows - row : 16;
      Vec v = load(totals + t * 16);
      if (bias) v = v + load_some(bias + row, left);
      store_some(y[r] + row, v, left);
    }
  });
}

// Tiles 2i and 2i + 1 hold rows 16i.. of gate and of up; y[m][16i..] = silu(gate) * up.
inline void gated_coded(const Tiles& w, int first, int last, const uint8_t* const* x, float* const* y, int rows,
                        const float* bias) {
  const int half = w.rows / 2;
  each_total(w, 2 * first, 2 * last, x, rows, [&](int r, int tile, const float* totals, int tiles) {
    for (int t = 0; t < tiles; t += 2) {
      const int row = (tile + t) / 2 * 16;
      Vec gate = load(totals + t * 16), up = load(totals + t * 16 + 16);
      if (bias) gate = gate + load(bias + row), up = up + load(bias + half + row);
      store(y[r] + row, silu(gate) * up);
    }
  });
}

}  // namespace DEEPWELL_ISA
}  // namespace deepwell
