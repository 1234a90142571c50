// Matrices as the kernels stream them, and vectors.
//
// A Matrix holds `count` matrices (the experts of a layer, the heads of an MLA projection) of rows x cols. Each is cut
// into tiles of 16 output rows; a tile is stored along the columns, so that one 64-byte vector holds the 16 rows at one
// column (float32), at two (bfloat16), four (int8) or eight (int4). Row r of the tile owns 32-bit lane r. Missing rows
// and columns are zero. Columns come in groups of 32; int8 and int4 store two groups as a block: 16 float16 scales of
// the even group, 16 of the odd one, then their vectors.
//
//   float32   lane = w[k]
//   bfloat16  lane = w[2j] low half, w[2j+1] high half; rounded to nearest, ties to even
//   int8      byte b of the lane = q[4j+b]; d = float16(max|w| / 127), q = rint(w / d) within [-127, 127]
//   int4      byte b of the lane = (q[8j+b] + 8) | (q[8j+4+b] + 8) << 4; d = float16(m / -8), where m is the group's
//             first value of largest magnitude, q = rint(w / d) within [-8, 7]
//
// Scales and quotients are computed in float32, rint rounds ties to even, a zero scale makes zeros; the value is q * d.
#pragma once
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
  Matrix(int count, int rows, int cols, Storage storage);

  int count() const { return count_; }
  int rows() const { return rows_; }
  int cols() const { return cols_; }
  Storage storage() const { return storage_; }
  size_t nbytes() const { return data_.size(); }

  // Packs rows [row_start, row_start + n) of matrix `index` from `values` (n x cols, row-major).
  void fill(int index, int row_start, int n, const float* values);
  void read_row(int index, int row, float* out) const;
  Tiles tiles(int index) const {
    return {data_.bytes() + index * matrix_bytes_, tile_bytes_, rows_, cols_, storage_};
  }

 private:
  int count_, rows_, cols_;
  Storage storage_;
  size_t tile_bytes_, matrix_bytes_;
  Buffer data_;
};

// A row of float32: a norm's weight, a bias.
struct Vector {
  std::vector<float> values;
  int size() const { return static_cast<int>(values.size()); }
};

// Bytes of a tile, of a group's vectors, and where group g begins in a tile.
struct TileLayout {
  static constexpr size_t kScaleBytes = 2 * kLanes * 2;
  static size_t group_bytes(Storage s) {
    return s == Storage::kFloat32 ? 2048 : s == Storage::kBfloat16 ? 1024 : s == Storage::kInt8 ? 512 : 256;
  }
  static bool scaled(Storage s) { return s == Storage::kInt8 || s == Storage::kInt4; }
  static size_t tile_bytes(Storage s, int cols) {
    const size_t groups = ceil_div(cols, kGroup);
    if (!scaled(s)) return groups * group_bytes(s);
    return ceil_div(groups, 2) * (kScaleBytes + 2 * group_bytes(s));
  }
  static size_t group_at(Storage s, size_t g) {
    if (!scaled(s)) return g * group_bytes(s);
    return g / 2 * (kScaleBytes + 2 * group_bytes(s)) + kScaleBytes + g % 2 * group_bytes(s);
  }
  static size_t scales_at(Storage s, size_t g) {
    return g / 2 * (kScaleBytes + 2 * group_bytes(s)) + g % 2 * (kLanes * 2);
  }
};

}  // namespace deepwell
