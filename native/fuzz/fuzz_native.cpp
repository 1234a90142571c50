// Fuzzes the C++ API under libFuzzer with AddressSanitizer and UndefinedBehaviorSanitizer: random matrices and their
// rows, random plans, random batches. Whatever is asked, the answer is a result or std::invalid_argument.
//
// Sizes are mostly small and mostly fit each other, so that plans get far; now and then one is anything at all.
#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

#include "isa.h"
#include "pool.h"
#include "program.h"

namespace {

using namespace deepwell;

constexpr size_t kMatrixValues = 1 << 16;  // larger ones only cost time

// The fuzzer's bytes, taken piece by piece; zeros once they are used up.
class Bytes {
 public:
  Bytes(const uint8_t* data, size_t size) : data_(data), size_(size) {}
  bool empty() const { return at_ >= size_; }
  uint8_t byte() { return empty() ? 0 : data_[at_++]; }
  template <class T>
  T raw() {
    T value{};
    for (size_t i = 0; i < sizeof(T); ++i) reinterpret_cast<uint8_t*>(&value)[i] = byte();
    return value;
  }
  // In [0, limit), or once in 64 any int.
  int number(int limit) {
    const uint8_t b = byte();
    return b >= 252 ? raw<int32_t>() : b % limit;
  }
  // Mostly modest, else any bits: infinities, NaNs and denormals included.
  float value() {
    const uint8_t b = byte();
    return b >= 253 ? raw<float>() : (static_cast<int>(b) - 126) / 32.0f;
  }
  template <class T>
  const T& of(const std::vector<T>& all) {
    return all[byte() % all.size()];
  }

 private:
  const uint8_t* data_;
  size_t size_, at_ = 0;
};

// What runs must not throw anything but invalid_argument; anything else ends the process, which the fuzzer reports.
template <class F>
bool allowed(F&& f) {
  try {
    f();
    return true;
  } catch (const std::invalid_argument& e) {
    if (!*e.what()) std::abort();  // a refusal without a reason
    return false;
  }
}

Storage storage(Bytes& in) { return static_cast<Storage>(in.byte() % kStorages); }

bool small(int count, int rows, int cols) {
  return count <= 0 || rows <= 0 || cols <= 0 ||
         static_cast<double>(count) * (rows + 16.0) * (cols + 64.0) <= kMatrixValues;
}

template <class T>
std::vector<T> some(Bytes& in, size_t n) {
  std::vector<T> all(n);
  for (size_t i = 0; i < n && !in.empty(); ++i) all[i] = in.raw<T>();
  return all;
}

// Packs some rows, in one of the three ways; whatever the bytes, nothing but finite scales is taken.
void fill(Bytes& in, Matrix& m) {
  const int index = in.number(m.count()), start = in.number(m.rows()), n = in.byte() % (m.rows() + 2);
  const size_t values = static_cast<size_t>(n) * m.cols();
  switch (in.byte() % 4) {
    case 0: {
      const size_t scales = n * ceil_div(m.cols(), kGroup);
      const auto q = some<int8_t>(in, values);
      const auto d = some<uint16_t>(in, scales);
      allowed([&] { m.fill_coded(index, start, n, q.data(), d.data()); });
      break;
    }
    case 1: {
      std::vector<float> w(values);
      for (size_t i = 0; i < values && !in.empty(); ++i) w[i] = in.value();
      allowed([&] { m.fill(index, start, n, w.data()); });
      break;
    }
    default: {
      size_t bytes = 0;
      if (!allowed([&] { bytes = m.row_bytes(); })) return;
      const auto blocks = some<uint8_t>(in, n * bytes);
      allowed([&] { m.fill_blocks(index, start, n, blocks.data()); });
    }
  }
}

// A matrix of this shape, some of its rows filled; what does not fit was refused with a reason.
MatrixPtr matrix(Bytes& in, int count, int rows, int cols) {
  if (!small(count, rows, cols)) return nullptr;
  std::shared_ptr<Matrix> made;
  const bool pairs = in.byte() % 2 == 1;
  if (!allowed([&] { made = std::make_shared<Matrix>(count, rows, cols, storage(in), pairs); })) return nullptr;
  for (int fills = in.byte() % 4; fills > 0; --fills) fill(in, *made);
  std::vector<float> row(cols);
  made->read_row(in.byte() % count, in.byte() % rows, row.data());
  for (float x : row)
    if (quantised(made->storage()) && !std::isfinite(x)) std::abort();
  return made;
}

VectorPtr vector(Bytes& in, int size) {
  auto made = std::make_shared<Vector>();
  for (int i = 0; i < size && i < 4096; ++i) made->values.push_back(in.value());
  return made;
}

Rotation rotation(Bytes& in) {
  Rotation r{{}, in.byte() % 2 == 1, in.value(), in.byte() % 2 == 1};
  for (int pairs = in.byte() % 5; pairs > 0; --pairs) r.inv_freq.push_back(in.value());
  return r;
}

Routing routing(Bytes& in) {
  static const std::vector<std::string> names{"greedy", "group_limited_greedy", "noaux_tc"};
  const bool softmax = in.byte() % 2 == 1;
  const int groups = 1 + in.byte() % 3, experts = groups * (1 + in.byte() % 3);
  return {in.byte() < 250 ? experts : in.number(9), in.number(5), softmax, parse_method(in.of(names)),
          in.byte() < 250 ? groups : in.number(9), in.number(4), in.byte() % 2 == 1, in.value()};
}

// x, made `width` columns wide by a linear.
View sized(Bytes& in, Program& p, View x, int width) {
  return x.width == width ? x : p.linear(x, matrix(in, 1, width, x.width), in.byte() % 2 ? vector(in, width) : nullptr);
}

// Records an operation over earlier results. `widths` are the cache's; attention notes the width that it needs.
View operation(Bytes& in, Program& p, const std::vector<View>& views, int layer, std::vector<int>& widths) {
  const View x = in.of(views), y = in.of(views);
  switch (in.byte() % 14) {
    case 0: return p.embed(matrix(in, 1, in.number(40), in.number(40)));
    case 1: {
      const int heads = in.byte() % 2 ? 1 : in.number(8), width = heads > 0 ? x.width / heads : 1;
      return p.rms_norm(x, vector(in, in.byte() < 250 ? width : in.byte()), in.value(), heads);
    }
    case 2: return p.linear(x, matrix(in, 1, in.byte() % 16 ? in.number(80) : 256, x.width), nullptr);
    case 3: {
      const int first = in.number(8);
      return in.of(p.split(x, {first, static_cast<int>(int64_t{x.width} - first)}));
    }
    case 4: return p.concat({x, y});
    case 5: return p.add(x, sized(in, p, y, x.width));
    case 6: return p.rope(x, in.number(5), rotation(in));
    case 7: {
      const GqaShape s{in.number(5), in.number(4), in.number(20), in.value()};
      if (in.byte() >= 250) return p.gqa(x, y, y, layer, s);
      const int wide = s.heads % 8 * (s.head_dim % 32), narrow = s.kv_heads % 8 * (s.head_dim % 32);
      const View k = sized(in, p, y, narrow);
      widths[layer] = 2 * narrow;
      return p.gqa(sized(in, p, x, wide), k, sized(in, p, x, narrow), layer, s);
    }
    case 8: {
      const MlaShape s{in.number(4), in.number(20), in.number(10), in.number(20), in.number(40), in.value()};
      if (!small(s.heads, s.latent, s.nope) || !small(s.heads, s.value, s.latent) || !small(s.heads, 1, s.rope))
        return p.mla(x, y, y, nullptr, nullptr, layer, s);
      const MatrixPtr k_b = matrix(in, s.heads, s.latent, s.nope), v_b = matrix(in, s.heads, s.value, s.latent);
      const View latent = sized(in, p, y, s.latent);
      widths[layer] = static_cast<int>(std::min<int64_t>(int64_t{s.latent} + s.rope, 4096));
      return p.mla(sized(in, p, x, static_cast<int>(s.heads * (int64_t{s.nope} + s.rope))), latent, sized(in, p, x, s.rope), k_b, v_b, layer, s);
    }
    case 9: {
      const int rows = in.byte() % 4 ? 32 * (1 + in.byte() % 3) : in.number(80);
      return p.gated(x, matrix(in, 1, rows, x.width), in.byte() % 2 ? vector(in, rows) : nullptr);
    }
    case 10: {
      const Routing r = routing(in);
      const int f = in.byte() % 2 ? 16 * (1 + in.byte() % 3) : 1 + in.byte() % 20, out = 1 + in.byte() % 20;
      const int fs = in.byte() % 2 ? f : 1 + in.byte() % 40;
      const MatrixPtr router = matrix(in, 1, r.experts, x.width);
      const VectorPtr bias = in.byte() % 2 ? vector(in, r.experts) : nullptr;
      const MatrixPtr gate_up = matrix(in, r.experts, 2 * f, x.width), down = matrix(in, r.experts, out, f);
      const bool shared = in.byte() % 2 == 1;
      const MatrixPtr shared_up = shared ? matrix(in, 1, 2 * fs, x.width) : nullptr;
      return p.moe(x, router, bias, gate_up, down, shared_up, shared ? matrix(in, 1, out, fs) : nullptr, r);
    }
    case 11: {
      const VectorPtr weight = vector(in, in.byte() < 250 ? x.width : in.byte());
      return p.layer_norm(x, weight, in.byte() % 8 ? weight : vector(in, in.byte()), in.value());
    }
    case 12: {
      const IndexShape s{in.number(4), in.number(20), in.number(90), in.value()};
      if (in.byte() >= 250) return p.index(x, y, y, layer, s);
      const int width = s.head_dim % 32, heads = s.heads % 8;
      widths[layer] = width;
      const View q = sized(in, p, x, heads * width), k = sized(in, p, y, width), weights = sized(in, p, y, heads);
      const View chosen = p.index(q, k, weights, layer, {heads, width, s.top_k, s.scale});
      if (in.byte() % 4 == 0) return chosen;
      const MlaShape m{1 + in.byte() % 3, 4, 2, 3, 1 + in.byte() % 40, in.value()};
      const MatrixPtr k_b = matrix(in, m.heads, m.latent, m.nope), v_b = matrix(in, m.heads, m.value, m.latent);
      const int next = (layer + 1) % static_cast<int>(widths.size());
      widths[next] = m.latent + m.rope;
      const View of_x = in.byte() % 16 ? chosen : x;
      return p.mla(sized(in, p, x, m.heads * (m.nope + m.rope)), sized(in, p, y, m.latent), sized(in, p, x, m.rope), k_b,
                   v_b, next, m, &of_x);
    }
    default: return p.select(x);
  }
}

void steps(Bytes& in, Program& p, const std::vector<int>& widths) {
  std::unique_ptr<Cache> cache;
  if (!allowed([&] { cache = std::make_unique<Cache>(widths, 1 + in.byte() % 6, in.byte() % 2 == 1); })) return;
  for (int n = 1 + in.byte() % 3; n > 0; --n) {
    const int rows = in.byte() % 20, sequences = 1 + in.byte() % 3, pages = 1 + in.byte() % 3;
    std::vector<int32_t> tokens, positions, sequence, table, selected;
    for (int t = 0, s = 0, at = in.number(150); t < rows; ++t, at += at < INT32_MAX) {
      if (in.byte() % 8 == 0) at = in.number(150), ++s;
      tokens.push_back(in.number(16)), positions.push_back(at), sequence.push_back(s);
    }
    for (int i = 0; i < sequences * pages; ++i) table.push_back(in.byte() < 200 ? i : in.number(8));
    for (int i = in.byte() % 4; i > 0; --i) selected.push_back(in.number(rows ? rows : 1));
    const Batch batch{tokens.data(), positions.data(), sequence.data(), table.data(), selected.data(),
                      rows, sequences, pages, static_cast<int>(selected.size())};
    std::vector<float> logits(selected.size() * p.logits_width());
    allowed([&] { p.run(batch, *cache, logits.data()); });
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  Bytes in(data, size);
  static const std::vector<std::string> isas = available_isas();
  set_threads(1 + in.byte() % 2);
  set_isa(in.of(isas));
  Program p;
  std::vector<View> views;
  // widths of whole blocks now and then, so that formats of 32 and 256 columns take part
  const int first = in.byte() % 2 ? 1 + in.byte() % 40 : 32 << in.byte() % 4;
  if (!allowed([&] { views.push_back(p.embed(matrix(in, 1, 16, first))); })) return 0;
  std::vector<int> widths(8, 1);
  for (int i = in.byte() % 24; i > 0; --i) allowed([&] { views.push_back(operation(in, p, views, i % 8, widths)); });
  if (in.byte() >= 250) widths[0] = in.byte();
  const View last = views.back();
  const bool finished = allowed([&] { p.finish(sized(in, p, last.selected ? last : p.select(last), last.width + 1)); });
  if (finished) steps(in, p, widths);
  return 0;
}
