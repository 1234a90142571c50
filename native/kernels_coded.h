// Products of quantised weights with activations in 8 bits (CodedRow). Sums of codes are exact integers, so every
// instruction set and every blocking gives the same bits; what is rounded is, for each output,
//
//   total = 0, then for each 32 columns:
//     part  = sum * scale [, fma(minimum, -sum x, part)], and where two groups share the columns, the same for the
//             second: fma(sum, scale, part) [, fma(minimum, -sum x, part)]
//     total = fma(part, scale of x, total)
//
// Codes are unpacked in registers, for up to five rows at once. Where there are many rows, and sooner where unpacking
// costs more, a pair of tiles is expanded to bytes once, and all rows run over them.
#pragma once
#include "kernels_rows.h"

namespace deepwell {
namespace DEEPWELL_ISA {

// ---- activations

struct Group {
  Vec v[2];
};

// Columns [k, k + 32) of x; zero from `last` on.
DW_INLINE Group group_at(const float* x, int k, int last) {
  Group g;
  for (int i = 0; i < 2; ++i) {
    const int from = k + 16 * i, n = last - from;
    g.v[i] = n >= 16 ? load(x + from) : n > 0 ? load_first(x + from, n) : zero();
  }
  return g;
}

// The codes of columns [k, k + 32). A value that is not finite makes the scale NaN. Gives the scale.
DW_INLINE float encode_group(const Group& g, const CodedRow& at, int k, uint8_t* row) {
  Vec peak = zero(), poison = zero();
  for (const Vec& v : g.v) peak = max(peak, absolute(v)), poison = fma(v, zero(), poison);
  const float top = largest(peak), scale = top / 127.0f + sum(poison);
  const Vec inverse = fill(top > 0 ? 127.0f / top : 0.0f);
  int32_t sums[2];
  for (int i = 0; i < 2; ++i) {
    const Word q = round(g.v[i] * inverse);
    store_bytes(row + k + 16 * i, q);
    sums[i] = -8 * sum_int(q);
  }
  const int32_t both = sums[0] + sums[1];
  __builtin_memcpy(row + at.scales + k / 32 * 4, &scale, 4);
  __builtin_memcpy(row + at.sums32 + k / 32 * 4, &both, 4);
  __builtin_memcpy(row + at.sums16 + k / 16 * 4, sums, 8);
  return scale;
}

// Encodes columns [first, last) of x; `first` is a multiple of 32.
inline void encode(const float* x, int cols, int first, int last, uint8_t* row) {
  const CodedRow at(cols);
  for (int k = first; k < last; k += kScaledCols) encode_group(group_at(x, k, last), at, k, row);
}

// All columns, and behind them what rounding left of each: x - code * scale.
inline void encode_fine(const float* x, int cols, uint8_t* rows) {
  const CodedRow at(cols);
  for (int k = 0; k < cols; k += kScaledCols) {
    Group g = group_at(x, k, cols);
    const Vec scale = fill(-encode_group(g, at, k, rows));
    for (int i = 0; i < 2; ++i) g.v[i] = fma(to_float(from_signed_bytes(rows + k + 16 * i)), scale, g.v[i]);
    encode_group(g, at, k, rows + at.bytes);
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

DW_INLINE Vec float_at(const uint8_t* p) {
  float f;
  __builtin_memcpy(&f, p, 4);
  return fill(f);
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

// ---- unpacking in registers

constexpr int kDirectTiles = 4;    // tiles taken at a time
constexpr int kDirectGroups = 32;  // groups of 32 columns taken at a time, so that coded rows stay close
constexpr size_t kDirectStride = kDirectTiles * 16;  // floats between the totals of two rows

// total[r] of R rows with a tile, for groups [first, last); `first` is a multiple of 4. Meanwhile fetches as much from
// `ahead`, if that is given: what comes next in another order than the memory's, which no hardware foresees.
template <Storage S, int R>
void direct(const uint8_t* tile, int cols, int first, int last, const uint8_t* const* rows, float* totals,
            const uint8_t* ahead) {
  constexpr Codes c = codes_of(S);
  constexpr int parts = 32 / c.group;
  constexpr size_t bytes = c.block_bytes() / (c.block() / 32);  // of a group, its share of the header included
  const CodedRow at(cols);
  const Word table = c.levels == Levels::kIq4 ? table_word(kIq4Levels) : table_word(kFp4Levels);
  const uint8_t* x[R];
  Vec total[R];
  unroll<R>([&](auto r) DW_LAMBDA {
    x[r] = rows[r];
    total[r] = first ? load(totals + r * kDirectStride) : zero();
  });
  for (int g = first; g < last; ++g) {
    if (ahead && g % 4 == 0)
      for (size_t i = 0; i < 4 * bytes; i += 64) __builtin_prefetch(ahead + (g - first) * bytes + i, 0, 2);
    Vec part[R];
    const size_t sums = (parts == 1 ? at.sums32 : at.sums16) + (size_t)g * parts * 4;
    unroll<parts>([&](auto h) DW_LAMBDA {
      Word acc[R];
      unroll<R>([&](auto r) DW_LAMBDA { acc[r] = start<c.zero>(x[r] + sums + h * 4); });
      unroll<8 / parts>([&](auto i) DW_LAMBDA {
        constexpr int J = h.value * (8 / parts) + i.value;
        const Word w = code<S, J>(codes_at<S>(tile, g), table);
        unroll<R>([&](auto r) DW_LAMBDA {
          acc[r] = dot<kWide<S>>(acc[r], w, word_at(x[r] + (size_t)g * 32 + 4 * J));
        });
      });
      const Vec scale = scale_at<S, h.value>(tile, g);
      unroll<R>([&](auto r) DW_LAMBDA {
        const Vec sum = to_float(acc[r]);
        if constexpr (h.value == 0) part[r] = sum * scale;
        else part[r] = fma(sum, scale, part[r]);
      });
      if constexpr (c.has_min()) {
        const Vec minimum = minimum_at<S, h.value>(tile, g);
        unroll<R>([&](auto r) DW_LAMBDA {
          part[r] = fma(minimum, to_float(word_at(x[r] + sums + h * 4)), part[r]);
        });
      }
    });
    unroll<R>([&](auto r) DW_LAMBDA { total[r] = fma(part[r], float_at(x[r] + at.scales + (size_t)g * 4), total[r]); });
  }
  unroll<R>([&](auto r) DW_LAMBDA { store(totals + r * kDirectStride, total[r]); });
}

#if defined(DEEPWELL_USE_AVX512)
constexpr int kMostRows = 5;  // rows that share each unpacked code
#elif defined(DEEPWELL_USE_AVX2) || defined(DEEPWELL_USE_NEON)
constexpr int kMostRows = 4;  // eight or sixteen registers of sums, half of all there are
#else
constexpr int kMostRows = 1;
#endif

// The storages met most have a kernel for each number of rows; the others, to compile faster, for some.
constexpr bool common(Storage s) {
  return s == Storage::kInt4 || s == Storage::kInt8 || s == Storage::kQ4K || s == Storage::kIq4Nl;
}
// Rows up to which codes are unpacked directly; beyond, expanding them first is faster.
constexpr int direct_rows(Storage s) { return common(s) ? 4 * kMostRows : kMostRows; }
constexpr int fewer_rows(Storage s, int rows) { return common(s) ? rows - 1 : rows > 2 ? 2 : 1; }

// The first of `left` rows, as many as there is a kernel for; gives their number.
template <Storage S, int R>
DW_INLINE int direct_some(int left, const uint8_t* tile, int cols, int first, int last, const uint8_t* const* x,
                          float* totals, const uint8_t* ahead) {
  if constexpr (R > 1)
    if (left < R) return direct_some<S, fewer_rows(S, R)>(left, tile, cols, first, last, x, totals, ahead);
  direct<S, R>(tile, cols, first, last, x, totals, ahead);
  return R;
}

// totals[row][kDirectTiles][16] of rows with up to kDirectTiles tiles. One or two rows take the tiles as they lie in
// memory; more of them take a part of each tile's columns at a time.
template <Storage S>
void direct_rows_of(const uint8_t* tile, size_t tile_bytes, int tiles, int cols, const uint8_t* const* x, int rows,
                    float* totals) {
  const int groups = (cols + 31) / 32, step = rows > 2 ? kDirectGroups : groups;
  for (int g = 0; g < groups; g += step) {
    const int end = g + step < groups ? g + step : groups;
    for (int t = 0; t < tiles; ++t) {
      const uint8_t* next = t + 1 < tiles ? block_of<S>(tile + (t + 1) * tile_bytes, g)
                            : end < groups ? block_of<S>(tile, end) : tile + tiles * tile_bytes;
      for (int r = 0; r < rows;) {
        const int pieces = (rows - r + kMostRows - 1) / kMostRows, about = (rows - r + pieces - 1) / pieces;
        r += direct_some<S, kMostRows>(about, tile + t * tile_bytes, cols, g, end, x + r,
                                       totals + r * kDirectStride + t * 16, rows > 2 && r == 0 ? next : nullptr);
      }
    }
  }
}

// ---- expanding first

constexpr int kDepth = 256;   // columns expanded at a time
constexpr int kManyRows = 128;  // rows whose totals are kept at hand

#if defined(DEEPWELL_USE_AVX512)
constexpr int kTilesTogether = 2, kRowsTogether = 4;
#elif defined(DEEPWELL_USE_AVX2) || defined(DEEPWELL_USE_NEON)
constexpr int kTilesTogether = 1, kRowsTogether = 4;
#else
constexpr int kTilesTogether = 1, kRowsTogether = 1;
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
  Vec total[R][T];
  unroll<R>([&](auto r) DW_LAMBDA {
    unroll<T>([&](auto t) DW_LAMBDA { total[r][t] = load(totals + r * 32 + (t0 + t) * 16); });
  });
  for (int g = 0; g < groups; ++g) {
    Vec part[R][T];
    unroll<parts>([&](auto h) DW_LAMBDA {
      const int i = g * parts + h;
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
        unroll<R>([&](auto r) DW_LAMBDA {
          const Vec sum = to_float(acc[r][t]);
          if constexpr (h.value == 0) part[r][t] = sum * scale;
          else part[r][t] = fma(sum, scale, part[r][t]);
        });
        if constexpr (Min) {
          const Vec minimum = load(e.minima[i][t0 + t]);
          unroll<R>([&](auto r) DW_LAMBDA { part[r][t] = fma(minimum, to_float(word_at(x[r] + sums)), part[r][t]); });
        }
      });
    });
    unroll<R>([&](auto r) DW_LAMBDA {
      const Vec s = float_at(x[r] + at.scales + (size_t)(first + g) * 4);
      unroll<T>([&](auto t) DW_LAMBDA { total[r][t] = fma(part[r][t], s, total[r][t]); });
    });
  }
  unroll<R>([&](auto r) DW_LAMBDA {
    unroll<T>([&](auto t) DW_LAMBDA { store(totals + r * 32 + (t0 + t) * 16, total[r][t]); });
  });
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

// ---- what becomes of the totals

// How rows meet tiles of a storage: directly up to `direct_rows`, by expansion beyond.
struct Product {
  using Rows = void (*)(const uint8_t* tile, size_t tile_bytes, int tiles, int cols, const uint8_t* const* x, int rows,
                        float* totals);
  int direct_rows;
  Rows direct, expanded;
};
template <Storage S>
constexpr Product product() {
  return {direct_rows(S), direct_rows_of<S>, many_rows<S>};
}

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
  const bool direct = rows <= p.direct_rows;
  const int step = direct ? kDirectTiles : 2;
  alignas(64) float totals[kManyRows * kDirectStride];
  static_assert((kManyRows + kRowsTogether) * 32 <= kManyRows * kDirectStride, "totals of both ways fit");
  for (int r = 0; r < rows; r += kManyRows) {
    const int n = rows - r < kManyRows ? rows - r : kManyRows;
    for (int t = first; t < last; t += step) {
      const int tiles = last - t < step ? last - t : step;
      (direct ? p.direct : p.expanded)(w.data + (size_t)t * w.tile_bytes, w.tile_bytes, tiles, w.cols, x + r, n, totals);
      for (int i = 0; i < n; ++i) done(r + i, t, totals + (size_t)i * step * 16, tiles);
    }
  }
}

inline void linear_coded(const Tiles& w, int first, int last, const uint8_t* const* x, float* const* y, int rows,
                         const float* bias, bool fine) {
  each_total(w, first, last, x, rows, [&](int r, int tile, const float* totals, int tiles) {
    for (int t = 0; t < tiles; ++t) {
      const int row = (tile + t) * 16, left = w.rows - row < 16 ? w.rows - row : 16;
      Vec v = load(totals + t * 16);
      if (bias) v = v + load_some(bias + row, left);
      if (fine && r % 2) v = load_some(y[r] + row, left) + v;
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
