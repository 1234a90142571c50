// How a matrix is kept: the storages, and for the quantised ones where codes and scales lie in a tile.
//
// A quantised tile (16 output rows, row r in 32-bit lane r) is a sequence of blocks of 64 or 256 columns: a header of
// scales, then the codes in groups of 32 columns. Codes are unsigned and split into planes of bits, 64 bytes a vector:
//
//   8 bits   8 vectors; byte b of a lane of vector j = code[4j + b]
//   plane 4  4 vectors; byte b of vector v = code[8v + b] | code[8v + 4 + b] << 4
//   plane 2  2 vectors; byte b of vector v = sum over i < 4 of code[16v + 4i + b] << 2i
//   plane 1  1 vector;  byte b            = sum over j < 8 of code[4j + b] << j
//
// 2 bits = plane 2; 3 = plane 2, then plane 1 (worth 4); 4 = plane 4; 5 = plane 4, then plane 1 (worth 16); 6 = plane 4,
// then plane 2 (worth 16). The value of a code c is scale * (level(c) - zero) - minimum, with level(c) = c or a table's.
//
//   scales     block  header
//   kHalf      64     float16 d[16] of the even group, of the odd one
//   kHalfMin   64     the same for d, then for the minimum m, which is added
//   kExponent  64     byte e[16] of the even group, of the odd one, 32 bytes unused; scale 2^(e - 128)
//   kSub       256    float16 d[16], 32 bytes unused; int8 s[16] per group; scale d * s
//   kSubMin    256    float16 d[16], float16 dmin[16]; byte s[16] per group, byte m[16] per group; d * s, dmin * m
#pragma once
#include <cstddef>
#include <cstdint>

namespace deepwell {

enum class Storage : int {
  kFloat32, kBfloat16, kFloat16, kInt8, kInt4, kQ4_1, kQ5_0, kQ5_1, kQ2K, kQ3K, kQ4K, kQ5K, kQ6K, kIq4Nl, kIq4Xs, kMxfp4,
};
constexpr int kStorages = 16;

enum class Scales : int { kNone, kHalf, kHalfMin, kExponent, kSub, kSubMin };
enum class Levels : int { kLinear, kIq4, kFp4 };

struct Codes {
  int bits;     // of a code
  int group;    // columns that share a scale
  Scales scales;
  int zero;     // subtracted from the level
  Levels levels;

  constexpr int block() const { return scales == Scales::kSub || scales == Scales::kSubMin ? 256 : 64; }
  constexpr bool has_min() const { return scales == Scales::kHalfMin || scales == Scales::kSubMin; }
  constexpr size_t group_bytes() const { return 64 * static_cast<size_t>(bits); }  // of 32 columns
  constexpr size_t header_bytes() const {
    return scales == Scales::kHalf || scales == Scales::kExponent ? 64
         : scales == Scales::kHalfMin ? 128
         : 64 + (scales == Scales::kSubMin ? 2 : 1) * 16 * static_cast<size_t>(256 / group);
  }
  constexpr size_t block_bytes() const { return header_bytes() + block() / 32 * group_bytes(); }
  constexpr size_t tile_bytes(size_t cols) const { return (cols + block() - 1) / block() * block_bytes(); }
};

// The codes of each storage; float storages have none.
constexpr Codes codes_of(Storage s) {
  switch (s) {
    case Storage::kInt8: return {8, 32, Scales::kHalf, 128, Levels::kLinear};
    case Storage::kInt4: return {4, 32, Scales::kHalf, 8, Levels::kLinear};
    case Storage::kQ4_1: return {4, 32, Scales::kHalfMin, 0, Levels::kLinear};
    case Storage::kQ5_0: return {5, 32, Scales::kHalf, 16, Levels::kLinear};
    case Storage::kQ5_1: return {5, 32, Scales::kHalfMin, 0, Levels::kLinear};
    case Storage::kQ2K: return {2, 16, Scales::kSubMin, 0, Levels::kLinear};
    case Storage::kQ3K: return {3, 16, Scales::kSub, 4, Levels::kLinear};
    case Storage::kQ4K: return {4, 32, Scales::kSubMin, 0, Levels::kLinear};
    case Storage::kQ5K: return {5, 32, Scales::kSubMin, 0, Levels::kLinear};
    case Storage::kQ6K: return {6, 16, Scales::kSub, 32, Levels::kLinear};
    case Storage::kIq4Nl: return {4, 32, Scales::kHalf, 128, Levels::kIq4};
    case Storage::kIq4Xs: return {4, 32, Scales::kSub, 128, Levels::kIq4};
    case Storage::kMxfp4: return {4, 32, Scales::kExponent, 128, Levels::kFp4};
    default: return {0, 32, Scales::kNone, 0, Levels::kLinear};
  }
}
constexpr bool quantised(Storage s) { return codes_of(s).bits != 0; }

// Levels of the 4-bit tables, plus 128. kIq4: ggml's non-linear quantiser. kFp4: twice the values of E2M1.
constexpr uint8_t kIq4Levels[16] = {1, 24, 45, 63, 79, 93, 106, 118, 129, 141, 153, 166, 181, 197, 217, 241};
constexpr uint8_t kFp4Levels[16] = {128, 129, 130, 131, 132, 134, 136, 140, 128, 127, 126, 125, 124, 122, 120, 116};

// A row of activations in 8 bits: per 128 columns one float32 scale, max|x| / 127. Behind the codes lie the scales and,
// as int32, -8 times the sum of the codes of each 32 and of each 16 columns. Missing columns are zero.
constexpr int kScaledCols = 128;
struct CodedRow {
  size_t scales, sums32, sums16, bytes;  // where each part begins; codes at 0
  constexpr explicit CodedRow(size_t cols) : scales(0), sums32(0), sums16(0), bytes(0) {
    const size_t padded = (cols + kScaledCols - 1) / kScaledCols * kScaledCols;
    scales = padded;
    sums32 = scales + padded / kScaledCols * 4;
    sums16 = sums32 + padded / 32 * 4;
    bytes = (sums16 + padded / 16 * 4 + 63) / 64 * 64;
  }
};

}  // namespace deepwell
