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

// The list of storages, the only one in C++ (src/deepwell/ops/storages.py is Python's): enumerator, name, then its codes
// (float storages have none), then columns and bytes of the ggml block that holds the same values (none for floats).
// A new one needs a line here and, in blocks.cpp, the way its blocks are read.
#define DEEPWELL_STORAGES(S) \
  S(kFloat32,  "float32",  0, 32, kNone,     0,   kLinear, 0,   0)   \
  S(kBfloat16, "bfloat16", 0, 32, kNone,     0,   kLinear, 0,   0)   \
  S(kFloat16,  "float16",  0, 32, kNone,     0,   kLinear, 0,   0)   \
  S(kInt8,     "int8",     8, 32, kHalf,     128, kLinear, 32,  34)  \
  S(kInt4,     "int4",     4, 32, kHalf,     8,   kLinear, 32,  18)  \
  S(kQ4_1,     "q4_1",     4, 32, kHalfMin,  0,   kLinear, 32,  20)  \
  S(kQ5_0,     "q5_0",     5, 32, kHalf,     16,  kLinear, 32,  22)  \
  S(kQ5_1,     "q5_1",     5, 32, kHalfMin,  0,   kLinear, 32,  24)  \
  S(kQ2K,      "q2_k",     2, 16, kSubMin,   0,   kLinear, 256, 84)  \
  S(kQ3K,      "q3_k",     3, 16, kSub,      4,   kLinear, 256, 110) \
  S(kQ4K,      "q4_k",     4, 32, kSubMin,   0,   kLinear, 256, 144) \
  S(kQ5K,      "q5_k",     5, 32, kSubMin,   0,   kLinear, 256, 176) \
  S(kQ6K,      "q6_k",     6, 16, kSub,      32,  kLinear, 256, 210) \
  S(kIq4Nl,    "iq4_nl",   4, 32, kHalf,     128, kIq4,    32,  18)  \
  S(kIq4Xs,    "iq4_xs",   4, 32, kSub,      128, kIq4,    256, 136) \
  S(kMxfp4,    "mxfp4",    4, 32, kExponent, 128, kFp4,    32,  17)

#define DEEPWELL_ENUMERATOR(e, ...) e,
enum class Storage : int { DEEPWELL_STORAGES(DEEPWELL_ENUMERATOR) };
#undef DEEPWELL_ENUMERATOR

// Columns and bytes of a block as ggml stores it; {0, 0} for storages that have none.
struct BlockSize {
  int cols;
  size_t bytes;
};

struct StorageEntry {
  const char* name;
  Codes codes;
  BlockSize ggml;
};
#define DEEPWELL_ENTRY(e, name, bits, group, scales, zero, levels, cols, bytes) \
  {name, {bits, group, Scales::scales, zero, Levels::levels}, {cols, bytes}},
constexpr StorageEntry kStorageTable[] = {DEEPWELL_STORAGES(DEEPWELL_ENTRY)};
#undef DEEPWELL_ENTRY
constexpr int kStorages = sizeof(kStorageTable) / sizeof(kStorageTable[0]);

constexpr Codes codes_of(Storage s) { return kStorageTable[static_cast<int>(s)].codes; }
constexpr BlockSize block_size(Storage s) { return kStorageTable[static_cast<int>(s)].ggml; }
constexpr bool quantised(Storage s) { return codes_of(s).bits != 0; }
// Bits that a weight takes, scales included.
constexpr double bits_per_weight(Storage s) {
  const Codes c = codes_of(s);
  if (!quantised(s)) return s == Storage::kFloat32 ? 32 : 16;
  return 8.0 * static_cast<double>(c.block_bytes()) / (16 * c.block());
}

// Levels of the 4-bit tables, plus 128. kIq4: ggml's non-linear quantiser. kFp4: twice the values of E2M1.
constexpr uint8_t kIq4Levels[16] = {1, 24, 45, 63, 79, 93, 106, 118, 129, 141, 153, 166, 181, 197, 217, 241};
constexpr uint8_t kFp4Levels[16] = {128, 129, 130, 131, 132, 134, 136, 140, 128, 127, 126, 125, 124, 122, 120, 116};

// A row of activations in 8 bits: per 32 columns one float32 scale, max|x| / 127. Behind the codes lie the scales and,
// as int32, -8 times the sum of the codes of each 32 and of each 16 columns. Missing columns are zero.
// A fine row is two of them: the row's own codes, then those of what their rounding left over.
constexpr int kScaledCols = 32;
struct CodedRow {
  size_t scales, sums32, sums16, bytes;  // where each part begins; codes at 0
  constexpr explicit CodedRow(size_t cols) : scales(0), sums32(0), sums16(0), bytes(0) {
    const size_t groups = (cols + kScaledCols - 1) / kScaledCols;
    scales = groups * kScaledCols;
    sums32 = scales + groups * 4;
    sums16 = sums32 + groups * 4;
    bytes = (sums16 + groups * 8 + 63) / 64 * 64;
  }
};

}  // namespace deepwell
