#include "matrix.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>

#include "blocks.h"
#include "halves.h"
#include "pool.h"

namespace deepwell {

namespace {

uint16_t to_bfloat16(float x) {
  const uint32_t u = float_bits(x);
  if ((u & 0x7fffffff) > 0x7f800000) return static_cast<uint16_t>(u >> 16 | 0x40);
  return static_cast<uint16_t>((u + 0x7fff + (u >> 16 & 1)) >> 16);
}

// The group's scale and integers; false if the values are not finite or too large for a float16 scale.
bool quantise(const float* w, int n, Storage storage, uint16_t* scale, int8_t* q) {
  float peak = 0;
  for (int i = 0; i < n; ++i) {
    if (!std::isfinite(w[i])) return false;
    if (std::fabs(w[i]) > std::fabs(peak)) peak = w[i];
  }
  const bool int8 = storage == Storage::kInt8;
  *scale = to_float16(int8 ? std::fabs(peak) / 127.0f : peak / -8.0f);
  const float d = from_float16(*scale), low = int8 ? -127.0f : -8.0f, high = int8 ? 127.0f : 7.0f;
  if (!std::isfinite(d)) return false;
  for (int i = 0; i < n; ++i) {
    const float r = d != 0 ? round_even(w[i] / d) : 0.0f;
    q[i] = static_cast<int8_t>(r < low ? low : r > high ? high : r);
  }
  return true;
}

// Where the value at column k sits in a tile of a float storage.
uint8_t* place(uint8_t* tile, Storage s, int r, int k) {
  if (s == Storage::kFloat32) return tile + (static_cast<size_t>(k) * kLanes + r) * 4;
  return tile + (static_cast<size_t>(k / 2) * kLanes + r) * 4 + 2 * (k % 2);
}

// Writes the scale and codes q (n of them) of group g.
void put_group(uint8_t* tile, const Codes& c, size_t g, int r, uint16_t scale, const int8_t* q, int n) {
  uint8_t* block = tile + g / 2 * c.block_bytes();
  std::memcpy(block + g % 2 * 32 + 2 * r, &scale, 2);
  uint8_t codes[kGroup];
  for (int k = 0; k < kGroup; ++k) codes[k] = static_cast<uint8_t>((k < n ? q[k] : 0) + c.zero);
  uint32_t words[8];
  std::memcpy(words, codes, sizeof words);
  put_codes(c.bits, words, block + c.header_bytes() + g % 2 * c.group_bytes(), r);
}

// False if a value is not finite, or too large for the storage.
bool pack_row(uint8_t* tile, int r, const float* w, int cols, Storage storage) {
  const Codes c = codes_of(storage);
  if (!quantised(storage)) {
    bool finite = true;
    for (int k = 0; k < cols; ++k) {
      const bool brain = storage == Storage::kBfloat16;
      const uint16_t h = brain ? to_bfloat16(w[k]) : to_float16(w[k]);
      if (storage == Storage::kFloat32) std::memcpy(place(tile, storage, r, k), w + k, 4);
      else std::memcpy(place(tile, storage, r, k), &h, 2);
      const int infinite = storage == Storage::kFloat32 ? 0 : brain ? 0x7f80 : 0x7c00;
      finite = finite && std::isfinite(w[k]) && (infinite == 0 || (h & infinite) != infinite);
    }
    return finite;
  }
  for (int k = 0; k < cols; k += kGroup) {
    const int n = std::min(kGroup, cols - k);
    uint16_t scale;
    int8_t q[kGroup];
    if (!quantise(w + k, n, storage, &scale, q)) return false;
    put_group(tile, c, k / kGroup, r, scale, q, n);
  }
  return true;
}

int code_at(const uint8_t* group, int bits, int r, int k) {
  const uint8_t* p = group + 4 * r + k % 4;
  const int j = k / 4;
  if (bits == 8) return p[64 * j];
  int code = 0;
  if (bits >= 4) {
    code = p[64 * (j / 2)] >> (j % 2 * 4) & 15;
    p += 256;
  }
  if (bits == 6 || bits < 4) {
    code |= (p[64 * (j / 4)] >> (j % 4 * 2) & 3) << (bits == 6 ? 4 : 0);
    p += 128;
  }
  if (bits == 5 || bits == 3) code |= (*p >> j & 1) << (bits - 1);
  return code;
}

float half_at(const uint8_t* p) {
  uint16_t h;
  std::memcpy(&h, p, 2);
  return from_float16(h);
}

float value_at(const uint8_t* tile, int r, int k, Storage storage) {
  const Codes c = codes_of(storage);
  const uint8_t* b = tile + k / c.block() * c.block_bytes();
  const int g = k % c.block() / 32, part = k % c.block() / c.group;
  const int code = code_at(b + c.header_bytes() + g * c.group_bytes(), c.bits, r, k % 32);
  const int level = c.levels == Levels::kIq4 ? kIq4Levels[code] : c.levels == Levels::kFp4 ? kFp4Levels[code] : code;
  const float q = static_cast<float>(level - c.zero);
  switch (c.scales) {
    case Scales::kExponent: return q * std::ldexp(1.0f, b[g * 16 + r] - 128);
    case Scales::kSub: return q * (half_at(b + 2 * r) * static_cast<int8_t>(b[64 + part * 16 + r]));
    case Scales::kSubMin:
      return q * (half_at(b + 2 * r) * b[64 + part * 16 + r]) -
             half_at(b + 32 + 2 * r) * b[64 + 16 * (256 / c.group) + part * 16 + r];
    case Scales::kHalfMin: return q * half_at(b + g * 32 + 2 * r) + half_at(b + 64 + g * 32 + 2 * r);
    default: return q * half_at(b + g * 32 + 2 * r);
  }
}

float unpack(const uint8_t* tile, int r, int k, Storage storage) {
  if (quantised(storage)) return value_at(tile, r, k, storage);
  const uint8_t* p = place(const_cast<uint8_t*>(tile), storage, r, k);
  if (storage == Storage::kFloat16) return half_at(p);
  uint32_t u = 0;
  std::memcpy(&u, p, storage == Storage::kFloat32 ? 4 : 2);
  return bits_float(storage == Storage::kFloat32 ? u : u << 16);
}

size_t tile_bytes_of(Storage s, int cols) {
  if (quantised(s)) return codes_of(s).tile_bytes(cols);
  return round_up(cols, kGroup) * kLanes * (s == Storage::kFloat32 ? 4 : 2);
}

}  // namespace

Storage parse_storage(const std::string& name) {
  std::string names;
  for (int i = 0; i < kStorages; ++i) {
    if (name == kStorageTable[i].name) return static_cast<Storage>(i);
    names += (i ? ", " : "") + std::string(kStorageTable[i].name);
  }
  fail("storage '" + name + "' is unknown; allowed: " + names);
}

const char* storage_name(Storage storage) { return kStorageTable[static_cast<int>(storage)].name; }

size_t Matrix::packed_bytes(int count, int rows, int cols, Storage storage, bool pairs) {
  require(count > 0 && rows > 0 && cols > 0, "a matrix needs a count, rows and columns of at least 1");
  require(rows < 1 << 28 && cols < 1 << 24, "a matrix of this size is not supported");
  require(!pairs || (quantised(storage) && rows % (2 * kLanes) == 0),
          "pairs need a quantised storage and a multiple of 32 rows, not " + std::to_string(rows));
  const size_t each = tile_bytes_of(storage, cols) * ceil_div(rows, kLanes);
  require(each <= (size_t{1} << 48) / count, "matrices of this size are not supported");
  return each * count;
}

Matrix::Matrix(int count, int rows, int cols, Storage storage, bool pairs)
    : Matrix(count, rows, cols, storage, pairs, Buffer(packed_bytes(count, rows, cols, storage, pairs), true)) {}

Matrix::Matrix(int count, int rows, int cols, Storage storage, bool pairs, std::shared_ptr<const MappedFile> file,
               size_t offset)
    : Matrix(count, rows, cols, storage, pairs,
             Buffer(std::move(file), offset, packed_bytes(count, rows, cols, storage, pairs))) {}

Matrix::Matrix(int count, int rows, int cols, Storage storage, bool pairs, Buffer data)
    : count_(count), rows_(rows), cols_(cols), storage_(storage), pairs_(pairs),
      tile_bytes_(tile_bytes_of(storage, cols)), matrix_bytes_(data.size() / count), data_(std::move(data)) {}

namespace {

constexpr uint64_t kSum = 0x9e3779b97f4a7c15;
constexpr size_t kSummed = size_t{1} << 20;

uint64_t joined(uint64_t h, uint64_t word) {
  h = (h ^ word) * kSum;
  return h << 31 | h >> 33;
}

uint64_t sum_of(const uint8_t* p, size_t size) {
  uint64_t lanes[8] = {1, 2, 3, 4, 5, 6, 7, 8};
  size_t at = 0;
  for (; at + 64 <= size; at += 64) {
    uint64_t words[8];
    std::memcpy(words, p + at, 64);
    for (int i = 0; i < 8; ++i) lanes[i] = joined(lanes[i], words[i]);
  }
  uint64_t rest[8] = {};
  std::memcpy(rest, p + at, size - at);
  uint64_t h = size;
  for (int i = 0; i < 8; ++i) h = joined(h, joined(lanes[i], rest[i]));
  return h;
}

}  // namespace

uint64_t checksum(const uint8_t* bytes, size_t size) {
  std::vector<uint64_t> sums(ceil_div(size, kSummed));
  parallel(static_cast<int>(sums.size()), [&](int i) {
    const size_t from = i * kSummed;
    sums[i] = sum_of(bytes + from, std::min(kSummed, size - from));
  });
  uint64_t h = size;
  for (uint64_t sum : sums) h = joined(h, sum);
  return h;
}

void Matrix::check_rows(int index, int row_start, int n) const {
  require(!data_.read_only(), "a matrix in a mapped file cannot be filled");
  require(index >= 0 && index < count_,
          "matrix index " + std::to_string(index) + " is outside 0.." + std::to_string(count_ - 1));
  require(row_start >= 0 && n <= rows_ - row_start, "rows " + std::to_string(row_start) + ".." +
          std::to_string(int64_t{row_start} + n) + " do not fit in a matrix of " + std::to_string(rows_) + " rows");
}

uint8_t* Matrix::tile_of(int index, int row) const {
  size_t tile = row / kLanes;
  if (pairs_) {
    const int half = rows_ / 2;
    tile = row < half ? 2 * (row / kLanes) : 2 * ((row - half) / kLanes) + 1;
  }
  return data_.bytes() + index * matrix_bytes_ + tile * tile_bytes_;
}

// Calls f(row of the matrix, row of the input) in parallel, whole tiles by one thread.
template <class F>
static void each_row_of_tiles(int row_start, int n, F&& f) {
  const int first = row_start / kLanes, last = static_cast<int>(ceil_div(row_start + n, kLanes));
  parallel(last - first, [&](int i) {
    const int from = std::max(row_start, (first + i) * kLanes), to = std::min(row_start + n, (first + i + 1) * kLanes);
    for (int row = from; row < to; ++row) f(row, row - row_start);
  });
}

void Matrix::fill(int index, int row_start, int n, const float* values) {
  check_rows(index, row_start, n);
  require(codes_of(storage_).bits == 0 || storage_ == Storage::kInt8 || storage_ == Storage::kInt4,
          std::string("a matrix in ") + storage_name(storage_) + " is filled with blocks, not with values");
  std::atomic<int> bad{-1};
  each_row_of_tiles(row_start, n, [&](int row, int i) {
    if (!pack_row(tile_of(index, row), row % kLanes, values + static_cast<size_t>(i) * cols_, cols_, storage_))
      bad = row;
  });
  require(bad < 0, "row " + std::to_string(bad) + " has a value that is not finite or too large for " +
          storage_name(storage_));
}

void Matrix::fill_coded(int index, int row_start, int n, const int8_t* q, const uint16_t* d) {
  check_rows(index, row_start, n);
  require(storage_ == Storage::kInt8 || storage_ == Storage::kInt4,
          std::string("codes fill int8 and int4, not ") + storage_name(storage_));
  const int low = storage_ == Storage::kInt8 ? -128 : -8, high = storage_ == Storage::kInt8 ? 127 : 7;
  const size_t groups = ceil_div(cols_, kGroup);
  for (size_t i = 0; i < static_cast<size_t>(n) * cols_; ++i)
    require(q[i] >= low && q[i] <= high, "code " + std::to_string(q[i]) + " is outside " + std::to_string(low) + ".." +
            std::to_string(high));
  for (size_t i = 0; i < n * groups; ++i) require(std::isfinite(from_float16(d[i])), "a scale is not finite");
  each_row_of_tiles(row_start, n, [&](int row, int i) {
    for (size_t g = 0; g < groups; ++g)
      put_group(tile_of(index, row), codes_of(storage_), g, row % kLanes, d[i * groups + g],
                q + static_cast<size_t>(i) * cols_ + g * kGroup, std::min<int>(kGroup, cols_ - g * kGroup));
  });
}

size_t Matrix::row_bytes() const {
  const BlockSize b = block_size(storage_);
  require(b.cols > 0, std::string("a matrix in ") + storage_name(storage_) + " is filled with values, not with blocks");
  require(cols_ % b.cols == 0, "rows of " + std::to_string(cols_) + " columns are no whole blocks of " +
          std::to_string(b.cols));
  return cols_ / b.cols * b.bytes;
}

void Matrix::fill_blocks(int index, int row_start, int n, const uint8_t* blocks) {
  check_rows(index, row_start, n);
  const size_t bytes = row_bytes();
  const Codes c = codes_of(storage_);
  const BlockSize b = block_size(storage_);
  const int at_once = c.block() / b.cols, per_row = cols_ / b.cols;
  std::atomic<int> bad{-1};
  each_row_of_tiles(row_start, n, [&](int row, int i) {
    uint8_t* block = tile_of(index, row);
    const uint8_t* from = blocks + i * bytes;
    for (int k = 0; k < per_row; ++k)
      if (!finite_scales(storage_, from + k * b.bytes)) {
        bad = row;
        return;
      }
    for (int k = 0; k < per_row; k += at_once, from += at_once * b.bytes, block += c.block_bytes())
      put_blocks(storage_, from, std::min(at_once, per_row - k), block, row % kLanes);
  });
  require(bad < 0, "row " + std::to_string(bad) + " has a scale that is not a finite number");
}

void Matrix::read_row(int index, int row, float* out) const {
  const uint8_t* tile = tile_of(index, row);
  for (int k = 0; k < cols_; ++k) out[k] = unpack(tile, row % kLanes, k, storage_);
}

}  // namespace deepwell
