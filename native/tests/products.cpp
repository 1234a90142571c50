// Products with a matrix, in every storage, and the codes of activations.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "../blocks.h"
#include "../matrix.h"
#include "checks.h"

namespace deepwell {

namespace {

enum class Fill { kRandom, kExtreme };  // extreme: the largest codes everywhere, where narrow sums would overflow

constexpr int kRowCounts[] = {1, 2, 3, 4, 5, 8, 9, 17, 26};
constexpr int kManyRows = 133;  // more than a kernel takes at once

// Float16 and similar scales of random blocks would hide everything else behind infinities: these are tame ones.
void tame(Storage s, uint8_t* block, Random& random) {
  const BlockSize size = block_size(s);
  const auto half = [&](size_t at) {  // within 2^-10..2^-4, either sign
    const uint16_t h = static_cast<uint16_t>((5 + random.bits() % 6) << 10 | (random.bits() & 0x83ff));
    std::memcpy(block + at, &h, 2);
  };
  switch (s) {
    case Storage::kMxfp4: block[0] = static_cast<uint8_t>(120 + random.bits() % 8); break;
    case Storage::kQ2K: half(size.bytes - 4), half(size.bytes - 2); break;
    case Storage::kQ3K:
    case Storage::kQ6K: half(size.bytes - 2); break;
    case Storage::kQ4_1:
    case Storage::kQ5_1:
    case Storage::kQ4K:
    case Storage::kQ5K: half(0), half(2); break;
    default: half(0);
  }
}

Matrix random_matrix(Storage s, int rows, int cols, bool pairs, Fill fill, Random& random) {
  Matrix m(1, rows, cols, s, pairs);
  const BlockSize size = block_size(s);
  if (size.cols == 0 || cols % size.cols != 0) {
    std::vector<float> values = random.floats(static_cast<size_t>(rows) * cols);
    if (fill == Fill::kExtreme) values.assign(values.size(), 1.0f);
    m.fill(0, 0, rows, values.data());
    return m;
  }
  std::vector<uint8_t> blocks = random.bytes(rows * m.row_bytes());
  if (fill == Fill::kExtreme) blocks.assign(blocks.size(), s == Storage::kInt8 ? 0x7f : 0xff);
  for (size_t i = 0; i < blocks.size(); i += size.bytes) tame(s, &blocks[i], random);
  m.fill_blocks(0, 0, rows, blocks.data());
  return m;
}

// Rows of activations and, in 8 bits, what they stand for.
struct Activations {
  std::vector<std::vector<float>> x;
  std::vector<std::vector<uint8_t>> codes;
  std::vector<std::vector<double>> decoded;
};

int8_t code_of(float x, float peak) { return static_cast<int8_t>(std::nearbyint(x * (127.0f / peak))); }

float peak_of(const float* x, int n) {
  float peak = 0;
  for (int i = 0; i < n; ++i) peak = std::fmax(peak, std::fabs(x[i]));
  return peak;
}

std::vector<uint8_t> coded(const std::vector<float>& x) {
  const int cols = static_cast<int>(x.size());
  const CodedRow at(cols);
  std::vector<uint8_t> row(at.bytes, 0xa5);
  std::vector<int32_t> sums16(at.scales / 16, 0), sums32(at.scales / 32, 0);
  std::memset(row.data(), 0, at.scales);
  for (int k = 0; k < cols; k += kScaledCols) {
    const int n = std::min(kScaledCols, cols - k);
    const float peak = peak_of(&x[k], n), scale = peak / 127.0f;
    std::memcpy(&row[at.scales + k / kScaledCols * 4], &scale, 4);
    for (int i = k; i < k + n; ++i) {
      const int8_t q = peak > 0 ? code_of(x[i], peak) : 0;
      row[i] = static_cast<uint8_t>(q);
      sums16[i / 16] -= 8 * q;
      sums32[i / 32] -= 8 * q;
    }
  }
  std::memcpy(&row[at.sums32], sums32.data(), sums32.size() * 4);
  std::memcpy(&row[at.sums16], sums16.data(), sums16.size() * 4);
  return row;
}

std::vector<double> decoded(const std::vector<uint8_t>& row, int cols) {
  const CodedRow at(cols);
  std::vector<double> x(cols);
  for (int k = 0; k < cols; ++k) {
    float scale;
    std::memcpy(&scale, &row[at.scales + k / kScaledCols * 4], 4);
    x[k] = static_cast<int8_t>(row[k]) * static_cast<double>(scale);
  }
  return x;
}

// The codes of x and, behind them, of what they leave over.
std::vector<uint8_t> fine(const std::vector<float>& x) {
  const CodedRow at(x.size());
  std::vector<uint8_t> row = coded(x);
  std::vector<float> left(x.size());
  for (size_t k = 0; k < x.size(); ++k) {
    float scale;
    std::memcpy(&scale, &row[at.scales + k / kScaledCols * 4], 4);
    left[k] = std::fma(static_cast<float>(static_cast<int8_t>(row[k])), -scale, x[k]);
  }
  const std::vector<uint8_t> second = coded(left);
  row.insert(row.end(), second.begin(), second.end());
  return row;
}

Activations activations(int rows, int cols, bool in_codes, Fill fill, Random& random) {
  Activations a;
  for (int r = 0; r < rows; ++r) {
    std::vector<float> x = random.floats(cols, -3, 3);
    if (fill == Fill::kExtreme) x.assign(cols, r % 2 ? -2.0f : 2.0f);
    a.codes.push_back(coded(x));
    a.decoded.push_back(in_codes ? decoded(a.codes.back(), cols) : std::vector<double>(x.begin(), x.end()));
    a.x.push_back(std::move(x));
  }
  return a;
}

// y[row][n] and the sum of the magnitudes that went into it, by which rounding is judged.
struct Dots {
  std::vector<double> y, size;
};

Dots dots(const Matrix& w, const Activations& a) {
  Dots d;
  std::vector<std::vector<float>> weights(w.rows(), std::vector<float>(w.cols()));
  for (int n = 0; n < w.rows(); ++n) w.read_row(0, n, weights[n].data());
  for (const auto& x : a.decoded)
    for (const auto& row : weights) {
      double y = 0, size = 0;
      for (int k = 0; k < w.cols(); ++k) {
        y += row[k] * x[k];
        size += std::fabs(row[k] * x[k]);
      }
      d.y.push_back(y);
      d.size.push_back(size);
    }
  return d;
}

template <class T>
std::vector<const T*> pointers(const std::vector<std::vector<T>>& rows) {
  std::vector<const T*> p;
  for (const auto& r : rows) p.push_back(r.data());
  return p;
}

std::string describe(const char* what, const Matrix& w, int rows, bool bias) {
  return std::string(what) + " " + storage_name(w.storage()) + " " + std::to_string(w.rows()) + " x " +
         std::to_string(w.cols()) + ", " + std::to_string(rows) + " rows" + (bias ? ", bias" : "");
}

// The tiles in two runs, as two threads would take them.
template <class F>
void in_two_runs(int tiles, F&& f) {
  const int middle = tiles / 3;
  if (middle) f(0, middle);
  f(middle, tiles);
}

void check_linear(Checks& checks, const Matrix& w, int rows, const std::vector<float>& bias, Fill fill,
                  Random& random) {
  const bool in_codes = quantised(w.storage());
  const Activations a = activations(rows, w.cols(), in_codes, fill, random);
  Dots d = dots(w, a);
  for (size_t i = 0; i < d.y.size(); ++i) {
    if (!bias.empty()) d.y[i] += bias[i % w.rows()];
    d.size[i] = 1e-6 + 1e-5 * d.size[i];
  }
  const auto run = [&](const Kernels& k, float* out) {
    std::vector<float*> y;
    for (int r = 0; r < rows; ++r) y.push_back(out + static_cast<size_t>(r) * w.rows());
    const float* b = bias.empty() ? nullptr : bias.data();
    const auto x = pointers(a.x);
    const auto codes = pointers(a.codes);
    in_two_runs(static_cast<int>(ceil_div(w.rows(), kLanes)), [&](int first, int last) {
      if (in_codes) k.linear_coded(w.tiles(0), first, last, codes.data(), y.data(), rows, b, false);
      else k.linear(w.tiles(0), first, last, x.data(), y.data(), rows, b);
    });
  };
  checks.check({describe("linear", w, rows, !bias.empty()), d.y.size(), run, d.y, d.size});
}

// Both halves of fine rows come to what the floats themselves give, but for a 60,000th.
void check_fine(Checks& checks, const Matrix& w, int rows, Random& random) {
  const Activations a = activations(rows, w.cols(), false, Fill::kRandom, random);
  std::vector<std::vector<uint8_t>> codes;
  for (const auto& x : a.x) codes.push_back(fine(x));
  Dots d = dots(w, a);
  for (double& size : d.size) size = 1e-6 + 1e-4 * size;
  const auto run = [&](const Kernels& k, float* out) {
    std::vector<float*> y;
    std::vector<const uint8_t*> x;
    for (int r = 0; r < 2 * rows; ++r) {
      y.push_back(out + static_cast<size_t>(r / 2) * w.rows());
      x.push_back(codes[r / 2].data() + r % 2 * CodedRow(w.cols()).bytes);
    }
    in_two_runs(static_cast<int>(ceil_div(w.rows(), kLanes)), [&](int first, int last) {
      k.linear_coded(w.tiles(0), first, last, x.data(), y.data(), 2 * rows, nullptr, true);
    });
  };
  checks.check({describe("fine linear", w, rows, false), d.y.size(), run, d.y, d.size});
}

void check_gated(Checks& checks, const Matrix& w, int rows, const std::vector<float>& bias, Random& random) {
  const Activations a = activations(rows, w.cols(), true, Fill::kRandom, random);
  const Dots d = dots(w, a);
  const int half = w.rows() / 2;
  std::vector<double> expected, bound;
  for (int r = 0; r < rows; ++r)
    for (int n = 0; n < half; ++n) {
      const size_t g = static_cast<size_t>(r) * w.rows() + n, u = g + half;
      const double gate = d.y[g] + (bias.empty() ? 0 : bias[n]), up = d.y[u] + (bias.empty() ? 0 : bias[half + n]);
      const double silu = gate / (1 + std::exp(-gate));
      expected.push_back(silu * up);
      bound.push_back(1e-5 + 1e-5 * (1.2 * d.size[g] * std::fabs(up) + d.size[u] * std::fabs(silu)));
    }
  const auto run = [&](const Kernels& k, float* out) {
    std::vector<float*> y;
    for (int r = 0; r < rows; ++r) y.push_back(out + static_cast<size_t>(r) * half);
    const auto codes = pointers(a.codes);
    in_two_runs(half / kLanes, [&](int first, int last) {
      k.gated_coded(w.tiles(0), first, last, codes.data(), y.data(), rows, bias.empty() ? nullptr : bias.data());
    });
  };
  checks.check({describe("gated", w, rows, !bias.empty()), expected.size(), run, expected, bound});
}

struct Shape {
  int rows, cols;
};

// Odd ones; storages that are filled with blocks only need whole blocks.
std::vector<Shape> shapes(Storage s) {
  if (s == Storage::kInt8 || s == Storage::kInt4 || !quantised(s)) return {{1, 1}, {17, 33}, {81, 160}, {40, 300}};
  const int b = block_size(s).cols;
  return b == 32 ? std::vector<Shape>{{1, 32}, {17, 96}, {81, 160}, {40, 288}}
                 : std::vector<Shape>{{17, 256}, {81, 512}};
}

void check_storage(Checks& checks, Storage s) {
  Random random(100 + static_cast<int>(s));
  for (const Shape& shape : shapes(s)) {
    const Matrix w = random_matrix(s, shape.rows, shape.cols, false, Fill::kRandom, random);
    for (int rows : kRowCounts) {
      const auto bias = rows % 2 ? random.floats(shape.rows) : std::vector<float>();
      check_linear(checks, w, rows, bias, Fill::kRandom, random);
    }
  }
  const Matrix extreme = random_matrix(s, 33, 512, false, Fill::kExtreme, random);
  for (int rows : {1, 4, 9}) check_linear(checks, extreme, rows, {}, Fill::kExtreme, random);
  const Matrix small = random_matrix(s, 17, 256, false, Fill::kRandom, random);
  check_linear(checks, small, kManyRows, {}, Fill::kRandom, random);
  if (!quantised(s)) return;
  for (int rows : {1, 2, 9}) check_fine(checks, small, rows, random);
  const Matrix pairs = random_matrix(s, 96, 256, true, Fill::kRandom, random);
  for (int rows : kRowCounts) check_gated(checks, pairs, rows, rows % 2 ? random.floats(96) : std::vector<float>(), random);
}

void check_encode(Checks& checks) {
  Random random(7);
  for (int cols : {1, 15, 16, 31, 32, 33, 100, 128, 300, 512}) {
    std::vector<float> x = random.floats(cols, -5, 5);
    if (cols == 512) std::fill(x.begin() + 128, x.begin() + 160, 0.0f);  // a group of zeros has the scale zero
    const CodedRow at(cols);
    const auto run = [&](const Kernels& k, uint8_t* row) {
      std::memset(row, 0xa5, at.bytes);
      k.encode(x.data(), cols, 0, std::min(cols, 32), row);
      if (cols > 32) k.encode(x.data(), cols, 32, cols, row);
    };
    checks.check_bytes("encode " + std::to_string(cols), coded(x), run);
    checks.check_bytes("encode fine " + std::to_string(cols), fine(x),
                       [&](const Kernels& k, uint8_t* row) { k.encode_fine(x.data(), cols, row); });
  }
}

}  // namespace

void check_products(Checks& checks) {
  check_encode(checks);
  for (int s = 0; s < kStorages; ++s) check_storage(checks, static_cast<Storage>(s));
}

}  // namespace deepwell
