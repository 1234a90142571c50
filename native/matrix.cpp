#include "matrix.h"

#include <cmath>
#include <cstring>

#include "pool.h"

namespace deepwell {

namespace {

uint32_t float_bits(float x) {
  uint32_t u;
  std::memcpy(&u, &x, 4);
  return u;
}

float bits_float(uint32_t u) {
  float x;
  std::memcpy(&x, &u, 4);
  return x;
}

uint16_t to_bfloat16(float x) {
  const uint32_t u = float_bits(x);
  if ((u & 0x7fffffff) > 0x7f800000) return static_cast<uint16_t>(u >> 16 | 0x40);
  return static_cast<uint16_t>((u + 0x7fff + (u >> 16 & 1)) >> 16);
}

// To nearest, ties to even. Adding a power of two whose last place is the half's lets the hardware do the rounding.
uint16_t to_float16(float x) {
  const uint16_t sign = float_bits(x) >> 16 & 0x8000;
  const float a = std::fabs(x);
  if (a >= 65520.0f) return sign | 0x7c00;
  if (a < 0x1p-14f) return static_cast<uint16_t>(sign | (float_bits(a + 0.5f) - float_bits(0.5f)));
  const uint32_t u = float_bits(a);
  return static_cast<uint16_t>(sign | (((u + 0xfff + (u >> 13 & 1)) >> 13) - (112 << 10)));
}

float from_float16(uint16_t h) {
  const uint32_t rest = h & 0x7fff;
  const float a = rest >= 0x7c00 ? INFINITY : bits_float(rest << 13) * 0x1p112f;
  return h & 0x8000 ? -a : a;
}

// To nearest, ties to even, for |x| < 2^22: adding 1.5 * 2^23 leaves no place for a fraction.
float round_even(float x) { return (x + 12582912.0f) - 12582912.0f; }

// The group's scale and integers; false if the values are not finite or too large for a float16 scale.
bool quantise(const float* w, int n, Storage storage, uint16_t* scale, int* q) {
  float peak = 0;
  for (int i = 0; i < n; ++i) {
    if (!std::isfinite(w[i])) return false;
    if (std::fabs(w[i]) > std::fabs(peak)) peak = w[i];
  }
  const bool int8 = storage == Storage::kInt8;
  *scale = to_float16(int8 ? std::fabs(peak) / 127.0f : peak / -8.0f);
  const float d = from_float16(*scale), low = int8 ? -127.0f : -8.0f, high = int8 ? 127.0f : 7.0f;
  if (!std::isfinite(d)) return false;
  for (int i = 0; i < kGroup; ++i) {
    const float r = i < n && d != 0 ? round_even(w[i] / d) : 0.0f;
    q[i] = static_cast<int>(r < low ? low : r > high ? high : r);
  }
  return true;
}

// Where the value at column k of a group sits in lane r's 32-bit words.
uint8_t* lane(uint8_t* group, int word, int r) { return group + (word * kLanes + r) * 4; }

void put_int8(uint8_t* group, int r, const int* q) {
  for (int k = 0; k < kGroup; ++k) lane(group, k / 4, r)[k % 4] = static_cast<uint8_t>(static_cast<int8_t>(q[k]));
}

void put_int4(uint8_t* group, int r, const int* q) {
  for (int j = 0; j < kGroup / 8; ++j)
    for (int b = 0; b < 4; ++b) {
      const int low = q[8 * j + b] + 8, high = q[8 * j + 4 + b] + 8;
      lane(group, j, r)[b] = static_cast<uint8_t>(low | high << 4);
    }
}

bool pack_row(uint8_t* tile, int r, const float* w, int cols, Storage storage) {
  for (int k0 = 0, g = 0; k0 < cols; k0 += kGroup, ++g) {
    uint8_t* group = tile + TileLayout::group_at(storage, g);
    const int n = cols - k0 < kGroup ? cols - k0 : kGroup;
    if (storage == Storage::kFloat32) {
      for (int k = 0; k < n; ++k) std::memcpy(lane(group, k, r), w + k0 + k, 4);
    } else if (storage == Storage::kBfloat16) {
      for (int k = 0; k < n; ++k) {
        const uint16_t h = to_bfloat16(w[k0 + k]);
        std::memcpy(lane(group, k / 2, r) + 2 * (k % 2), &h, 2);
      }
    } else {
      uint16_t scale;
      int q[kGroup];
      if (!quantise(w + k0, n, storage, &scale, q)) return false;
      std::memcpy(tile + TileLayout::scales_at(storage, g) + 2 * r, &scale, 2);
      storage == Storage::kInt8 ? put_int8(group, r, q) : put_int4(group, r, q);
    }
  }
  return true;
}

float unpack(const uint8_t* tile, int r, int k, Storage storage) {
  const size_t g = k / kGroup;
  const int i = k % kGroup;
  uint8_t* group = const_cast<uint8_t*>(tile) + TileLayout::group_at(storage, g);
  if (storage == Storage::kFloat32) {
    float x;
    std::memcpy(&x, lane(group, i, r), 4);
    return x;
  }
  uint16_t h;
  if (storage == Storage::kBfloat16) {
    std::memcpy(&h, lane(group, i / 2, r) + 2 * (i % 2), 2);
    return bits_float(static_cast<uint32_t>(h) << 16);
  }
  std::memcpy(&h, tile + TileLayout::scales_at(storage, g) + 2 * r, 2);
  int q;
  if (storage == Storage::kInt8) {
    q = static_cast<int8_t>(lane(group, i / 4, r)[i % 4]);
  } else {
    const uint8_t byte = lane(group, i / 8, r)[i % 4];
    q = (i % 8 < 4 ? byte & 15 : byte >> 4) - 8;
  }
  return static_cast<float>(q) * from_float16(h);
}

const char* const kNames[] = {"float32", "bfloat16", "int8", "int4"};

}  // namespace

Storage parse_storage(const std::string& name) {
  for (int i = 0; i < 4; ++i)
    if (name == kNames[i]) return static_cast<Storage>(i);
  fail("storage '" + name + "' is unknown; allowed: float32, bfloat16, int8, int4");
}

const char* storage_name(Storage storage) { return kNames[static_cast<int>(storage)]; }

Matrix::Matrix(int count, int rows, int cols, Storage storage)
    : count_(count), rows_(rows), cols_(cols), storage_(storage) {
  require(count > 0 && rows > 0 && cols > 0, "a matrix needs a count, rows and columns of at least 1");
  require(rows < 1 << 28 && cols < 1 << 24, "a matrix of this size is not supported");
  tile_bytes_ = TileLayout::tile_bytes(storage, cols);
  matrix_bytes_ = tile_bytes_ * ceil_div(rows, kLanes);
  data_ = Buffer(matrix_bytes_ * count, true);
  std::memset(data_.bytes(), 0, data_.size());
}

void Matrix::fill(int index, int row_start, int n, const float* values) {
  require(index >= 0 && index < count_,
          "matrix index " + std::to_string(index) + " is outside 0.." + std::to_string(count_ - 1));
  require(row_start >= 0 && n <= rows_ - row_start, "rows " + std::to_string(row_start) + ".." +
          std::to_string(row_start + n) + " do not fit in a matrix of " + std::to_string(rows_) + " rows");
  std::atomic<int> bad{-1};
  parallel(n, [&](int i) {
    const int row = row_start + i;
    uint8_t* tile = data_.bytes() + index * matrix_bytes_ + row / kLanes * tile_bytes_;
    if (!pack_row(tile, row % kLanes, values + static_cast<size_t>(i) * cols_, cols_, storage_)) bad = row;
  });
  require(bad < 0, "row " + std::to_string(bad) + " has a value that is not finite or too large for " +
          storage_name(storage_));
}

void Matrix::read_row(int index, int row, float* out) const {
  const uint8_t* tile = data_.bytes() + index * matrix_bytes_ + row / kLanes * tile_bytes_;
  for (int k = 0; k < cols_; ++k) out[k] = unpack(tile, row % kLanes, k, storage_);
}

}  // namespace deepwell
