// Matrices as the kernels stream them, and vectors.
//
// A Matrix holds `count` matrices (the experts of a layer, the heads of an MLA projection) of rows x cols. Each is cut
// into tiles of 16 output rows; a tile is stored along the columns, so that one 64-byte vector holds the 16 rows at one
// column (float32), at two (bfloat16, float16: low half, then high half), or at the columns of some codes (storage.h).
// Row r of the tile owns 32-bit lane r. Missing rows and columns are zero.
//
// Filled with floats, int8 and int4 are quantised in groups of 32 columns:
//   int8   d = float16(max|w| / 127), q = rint(w / d) within [-127, 127], code q + 128
//   int4   d = float16(m / -8), where m is the group's first value of largest magnitude, q = rint(w / d) within
//          [-8, 7], code q + 8
// Scales and quotients are computed in float32, rint rounds ties to even, a zero scale makes zeros; the value is q * d.
// int8 is also what ggml calls Q8_0, int4 its Q4_0. The other storages are filled with ggml's blocks only (blocks.h).
//
// In a matrix of `pairs`, rows are a gate's, then as many of its up projection's; their tiles take turns, so that both
// halves of a gated unit are computed together. Rows are still named as if they followed each other.
#pragma once
#include <memory>
#include <string>
#include <vector>

#include "common.h"
#include "kernels.h"
#include "memory.h"

namespace deepwell {

Storage parse_storage(const std::string& name);
const char* storage_name(Storage storage);

class Matrix {
 public:
  Matrix(int count, int rows, int cols, Storage storage, bool pairs = false);
  // A matrix whose packed bytes lie in a file, from `offset` on; it cannot be filled.
  Matrix(int count, int rows, int cols, Storage storage, bool pairs, std::shared_ptr<const MappedFile> file,
         size_t offset);
  // Bytes that such a matrix is packed into. Raises for sizes that are not supported.
  static size_t packed_bytes(int count, int rows, int cols, Storage storage, bool pairs);

  int count() const { return count_; }
  int rows() const { return rows_; }
  int cols() const { return cols_; }
  Storage storage() const { return storage_; }
  bool pairs() const { return pairs_; }
  size_t nbytes() const { return data_.size(); }
  const uint8_t* bytes() const { return data_.bytes(); }

  // All three refuse values and scales that are not finite as stored, naming a row.
  // Packs rows [row_start, row_start + n) of matrix `index` from `values` (n x cols, row-major).
  void fill(int index, int row_start, int n, const float* values);
  // The same from codes q (n x cols) and float16 scales d (n x ceil(cols / 32)); for int8 and int4.
  void fill_coded(int index, int row_start, int n, const int8_t* q, const uint16_t* d);
  // The same from rows of ggml's blocks, row_bytes() each.
  void fill_blocks(int index, int row_start, int n, const uint8_t* blocks);
  size_t row_bytes() const;
  void read_row(int index, int row, float* out) const;
  Tiles tiles(int index) const {
    return {data_.bytes() + index * matrix_bytes_, tile_bytes_, rows_, cols_, storage_};
  }

 private:
  Matrix(int count, int rows, int cols, Storage storage, bool pairs, Buffer data);
  void check_rows(int index, int row_start, int n) const;
  uint8_t* tile_of(int index, int row) const;

  int count_, rows_, cols_;
  Storage storage_;
  bool pairs_;
  size_t tile_bytes_, matrix_bytes_;
  Buffer data_;
};

// A sum of bytes that finds damage, not forgery. Each MiB is hashed by some thread: eight 64-bit lanes take the little-
// endian words in turn, h = (h ^ word) * kSum and a rotation by 31; the lanes, then the MiBs, are joined in the same way.
uint64_t checksum(const uint8_t* bytes, size_t size);

// A row of float32: a norm's weight, a bias.
struct Vector {
  std::vector<float> values;
  int size() const { return static_cast<int>(values.size()); }
};

}  // namespace deepwell
