// Instructions that work row by row: embed, norm, linear, concat, add, rope, swiglu, select.
#include <cstring>

#include "instructions.h"
#include "isa.h"

namespace deepwell {

namespace {

constexpr int kRowBlock = 64;          // rows a unit of work takes at once
constexpr double kInlineWork = 131072;  // multiply-adds below which waking threads costs more than it gives

struct Unit {
  int job, first_tile, last_tile, row;
};

std::vector<Unit> cut(const std::vector<LinearJob>& jobs) {
  size_t total = 0;
  for (const auto& j : jobs) total += ceil_div(j.weight.rows, kLanes) * ceil_div(j.rows, kRowBlock);
  const int chunk = static_cast<int>(std::min<size_t>(64, std::max<size_t>(8, total / (8 * threads()) / 8 * 8)));
  std::vector<Unit> units;
  for (int j = 0; j < static_cast<int>(jobs.size()); ++j) {
    const int tiles = static_cast<int>(ceil_div(jobs[j].weight.rows, kLanes));
    for (int t = 0; t < tiles; t += chunk)
      for (int row = 0; row < jobs[j].rows; row += kRowBlock)
        units.push_back({j, t, std::min(t + chunk, tiles), row});
  }
  return units;
}

}  // namespace

void run_jobs(const std::vector<LinearJob>& jobs) {
  double work = 0;
  for (const auto& j : jobs) work += static_cast<double>(j.rows) * j.weight.rows * j.weight.cols;
  const auto linear = kernels().linear;
  if (work < kInlineWork) {
    for (const auto& j : jobs)
      linear(j.weight, 0, static_cast<int>(ceil_div(j.weight.rows, kLanes)), j.x, j.y, j.rows, j.bias);
    return;
  }
  const std::vector<Unit> units = cut(jobs);
  parallel(static_cast<int>(units.size()), [&](int i) {
    const Unit& u = units[i];
    const LinearJob& j = jobs[u.job];
    linear(j.weight, u.first_tile, u.last_tile, j.x + u.row, j.y + u.row, std::min(kRowBlock, j.rows - u.row), j.bias);
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

void Linear::run(Step& step) const {
  const Rows in = step.rows(x), y = step.rows(out);
  std::vector<const float*> from(in.count);
  std::vector<float*> to(in.count);
  for (int t = 0; t < in.count; ++t) {
    from[t] = in[t];
    to[t] = y[t];
  }
  run_jobs({{weight->tiles(0), from.data(), to.data(), in.count, bias ? bias->values.data() : nullptr}});
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
  const int apart = interleaved ? 1 : pairs, next = interleaved ? 2 : 1;
  each_row(y.count, x.width, [&](int t) {
    const float* c = angles.cosine.data() + static_cast<size_t>(t) * pairs;
    const float* s = angles.sine.data() + static_cast<size_t>(t) * pairs;
    for (int h = 0; h < heads; ++h) {
      const float* from = in[t] + h * head;
      float* to = y[t] + h * head;
      std::memcpy(to, from, sizeof(float) * plain);
      for (int i = 0; i < pairs; ++i) {
        const float a = from[plain + i * next], b = from[plain + i * next + apart];
        to[plain + i * next] = a * c[i] - b * s[i];
        to[plain + i * next + apart] = b * c[i] + a * s[i];
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
