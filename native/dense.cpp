// Instructions that work row by row: embed, norm, linear, concat, add, rope, swiglu, select.
#include <cstring>

#include "instructions.h"
#include "isa.h"

namespace deepwell {

namespace {

constexpr double kInlineWork = 131072;  // multiply-adds below which waking threads costs more than it gives

struct Unit {
  int job, first, last, row;  // tiles, or pairs of tiles of a gated job
};

bool coded(const LinearJob& j) { return quantised(j.weight.storage); }

// Rows a unit takes at once: coded products expand weights once for all of them.
int row_block(const LinearJob& j) { return coded(j) ? 128 : 64; }

int tiles_of(const LinearJob& j) { return static_cast<int>(ceil_div(j.weight.rows, kLanes)); }

// Tiles of the next unit, when `left` tiles are to be shared out: large ones first, which keep the memory streaming,
// small ones last, so that all threads end together. Four tiles of a gated job are 32 columns, which are coded together.
int next_tiles(size_t left) {
  const size_t least = 4, share = left / (4 * static_cast<size_t>(threads())) / least * least;
  return static_cast<int>(std::min<size_t>(64, std::max(least, share)));
}

std::vector<Unit> cut(const std::vector<LinearJob>& jobs) {
  size_t left = 0;
  for (const auto& j : jobs) left += tiles_of(j) * ceil_div(j.rows, row_block(j));
  std::vector<Unit> units;
  for (int i = 0; i < static_cast<int>(jobs.size()); ++i) {
    const LinearJob& j = jobs[i];
    const int per_step = j.gated ? 2 : 1, end = tiles_of(j) / per_step;
    for (int t = 0; t < end;) {
      const int next = std::min(end, t + next_tiles(left) / per_step);
      for (int row = 0; row < j.rows; row += row_block(j)) units.push_back({i, t, next, row});
      left -= (next - t) * per_step * ceil_div(j.rows, row_block(j));
      t = next;
    }
  }
  return units;
}

void run_unit(const LinearJob& j, const Unit& u, int rows) {
  const Kernels& k = kernels();
  const auto x = j.x + u.row;
  float* const* y = j.y + u.row;
  if (!coded(j)) return k.linear(j.weight, u.first, u.last, reinterpret_cast<const float* const*>(x), y, rows, j.bias);
  const auto codes = reinterpret_cast<const uint8_t* const*>(x);
  if (!j.gated) return k.linear_coded(j.weight, u.first, u.last, codes, y, rows, j.bias, j.fine);
  k.gated_coded(j.weight, u.first, u.last, codes, y, rows, j.bias);
  if (!j.codes) return;
  const int width = j.weight.rows / 2;
  for (int r = 0; r < rows; ++r)
    k.encode(y[r], width, u.first * kLanes, std::min(u.last * kLanes, width), j.codes[u.row + r]);
}

}  // namespace

void run_jobs(const std::vector<LinearJob>& jobs) {
  double work = 0;
  for (const auto& j : jobs) work += static_cast<double>(j.rows) * j.weight.rows * j.weight.cols;
  if (work < kInlineWork) {
    for (const auto& j : jobs)
      for (int row = 0; row < j.rows; row += row_block(j))
        run_unit(j, {0, 0, j.gated ? tiles_of(j) / 2 : tiles_of(j), row}, std::min(row_block(j), j.rows - row));
    return;
  }
  const std::vector<Unit> units = cut(jobs);
  parallel(static_cast<int>(units.size()), [&](int i) {
    const LinearJob& j = jobs[units[i].job];
    run_unit(j, units[i], std::min(row_block(j), j.rows - units[i].row));
  });
}

void Embed::run(Step& step) const {
  const Rows y = step.rows(out);
  each_row(y.count, 4 * out.width, [&](int t) { table->read_row(0, step.batch.tokens[t], y[t]); });
}

void RmsNorm::run(Step& step) const {
  const Rows in = step.rows(x), y = step.rows(out);
  const auto norm = kernels().rms_norm;
  const int width = out.width / heads;
  each_row(in.count, out.width, [&](int t) {
    for (int at = 0; at < out.width; at += width) norm(in[t] + at, weight->values.data(), y[t] + at, width, eps);
  });
}

void LayerNorm::run(Step& step) const {
  const Rows in = step.rows(x), y = step.rows(out);
  const auto norm = kernels().layer_norm;
  each_row(in.count, out.width, [&](int t) {
    norm(in[t], weight->values.data(), bias->values.data(), y[t], out.width, eps);
  });
}

namespace {

// Pointers to the rows of a view.
struct Pointers {
  explicit Pointers(const Rows& rows) : at(rows.count) {
    for (int t = 0; t < rows.count; ++t) at[t] = rows[t];
  }
  const void* const* in() const { return reinterpret_cast<const void* const*>(at.data()); }
  float* const* out() const { return at.data(); }
  uint8_t* const* codes() const { return reinterpret_cast<uint8_t* const*>(at.data()); }
  std::vector<float*> at;
};

const float* values(const VectorPtr& v) { return v ? v->values.data() : nullptr; }

}  // namespace

void Encode::run(Step& step) const {
  const Rows in = step.rows(x), y = step.rows(out);
  const Kernels& k = kernels();
  each_row(in.count, x.width, [&](int t) {
    if (fine) k.encode_fine(in[t], x.width, y.codes(t));
    else k.encode(in[t], x.width, 0, x.width, y.codes(t));
  });
}

void FineLinear::run(Step& step) const {
  const Rows in = step.rows(x), y = step.rows(out);
  const size_t half = CodedRow(weight->cols()).bytes;
  std::vector<const void*> from(2 * in.count);
  std::vector<float*> to(2 * in.count);
  for (int i = 0; i < 2 * in.count; ++i) from[i] = in.codes(i / 2) + i % 2 * half, to[i] = y[i / 2];
  run_jobs({{weight->tiles(0), from.data(), to.data(), 2 * in.count, nullptr, false, nullptr, true}});
}

void Linear::run(Step& step) const {
  const Rows in = step.rows(x);
  const Pointers from(in);
  std::vector<Pointers> to;
  for (const Product& p : products) to.emplace_back(step.rows(p.out));
  std::vector<LinearJob> jobs;
  for (size_t i = 0; i < products.size(); ++i)
    jobs.push_back({products[i].weight->tiles(0), from.in(), to[i].out(), in.count, values(products[i].bias)});
  run_jobs(jobs);
}

void Gated::run(Step& step) const {
  const Rows in = step.rows(x);
  run_jobs({{weight->tiles(0), Pointers(in).in(), Pointers(step.rows(out)).out(), in.count, values(bias), true,
             Pointers(step.rows(codes)).codes()}});
}

void Concat::run(Step& step) const {
  const Rows y = step.rows(out);
  each_row(y.count, out.width, [&](int t) {
    float* to = y[t];
    for (const View& x : xs) {
      std::memcpy(to, step.rows(x)[t], sizeof(float) * x.width);
      to += x.width;
    }
  });
}

void Add::run(Step& step) const {
  const Rows a = step.rows(x), b = step.rows(y), c = step.rows(out);
  const auto add = kernels().add;
  each_row(c.count, out.width, [&](int t) { add(a[t], b[t], c[t], out.width); });
}

void Rope::run(Step& step) const {
  const Rows in = step.rows(x), y = step.rows(out);
  const Angles& angles = step.angles[rotation];
  const int head = x.width / heads, pairs = width / 2, plain = head - width;
  const int turned = leading ? 0 : plain, kept = leading ? width : 0;
  const int apart = interleaved ? 1 : pairs, next = interleaved ? 2 : 1;
  each_row(y.count, x.width, [&](int t) {
    const float* c = angles.cosine.data() + static_cast<size_t>(t) * pairs;
    const float* s = angles.sine.data() + static_cast<size_t>(t) * pairs;
    for (int h = 0; h < heads; ++h) {
      const float* from = in[t] + h * head;
      float* to = y[t] + h * head;
      std::memcpy(to + kept, from + kept, sizeof(float) * plain);
      for (int i = 0, at = turned; i < pairs; ++i, at += next) {
        const float a = from[at], b = from[at + apart];
        to[at] = a * c[i] - b * s[i];
        to[at + apart] = b * c[i] + a * s[i];
      }
    }
  });
}

void Swiglu::run(Step& step) const {
  const Rows in = step.rows(x), y = step.rows(out);
  const auto swiglu = kernels().swiglu;
  each_row(y.count, 4 * out.width, [&](int t) { swiglu(in[t], in[t] + out.width, y[t], out.width); });
}

void Select::run(Step& step) const {
  const Rows in = step.rows(x), y = step.rows(out);
  for (int i = 0; i < y.count; ++i) std::memcpy(y[i], in[step.batch.selected[i]], sizeof(float) * out.width);
}

}  // namespace deepwell
