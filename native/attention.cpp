// Attention over the paged cache: grouped-query, and multi-head latent in absorbed form (DeepSeek-V2 report, 2.1).
#include <cstring>

#include "instructions.h"
#include "isa.h"
#include "paging.h"

namespace deepwell {

namespace {

constexpr int kFloatHeads = 4;   // heads of a unit over a float32 latent cache
constexpr int kCachedRows = 8;   // heads of a unit over a bfloat16 latent cache
constexpr int kCachedTokens = 4; // tokens of a unit over a bfloat16 grouped-query cache

// Runs f over units [0, n) of known total work; small steps stay on the calling thread.
template <class F>
void each_unit(const Batch& batch, int n, size_t cost_per_token, F&& f) {
  size_t work = 0;
  for (int t = 0; t < batch.rows; ++t) work += (batch.positions[t] + size_t{1}) * cost_per_token;
  if (work < 131072) {
    for (int i = 0; i < n; ++i) f(i);
    return;
  }
  parallel(n, f);
}

// Consecutive rows of one sequence, at most `most`.
struct Run {
  int first, count;
};
std::vector<Run> runs(const Batch& b, int most) {
  std::vector<Run> all;
  for (int t = 0; t < b.rows; ++t) {
    if (t > 0 && b.sequence[t] == b.sequence[t - 1] && all.back().count < most) ++all.back().count;
    else all.push_back({t, 1});
  }
  return all;
}

}  // namespace

void Gqa::store(const Step& step) const {
  const Rows keys = step.rows(k), values = step.rows(v);
  const int dim = shape.head_dim, width = shape.kv_heads * dim;
  const size_t page_values = step.cache.page_values(layer);
  const auto to_bf16 = kernels().to_bf16;
  each_row(keys.count, 4 * width, [&](int t) {
    const int slot = slot_of(step, t);
    if (!step.cache.bfloat16()) {
      float* page = step.cache.floats(layer) + page_of(step, t) * page_values;
      for (int i = 0; i < width; ++i) page[static_cast<size_t>(i) * kBlockTokens + slot] = keys[t][i];
      page += static_cast<size_t>(width) * kBlockTokens;
      for (int h = 0; h < shape.kv_heads; ++h)
        std::memcpy(page + (static_cast<size_t>(h) * kBlockTokens + slot) * dim, values[t] + h * dim,
                    sizeof(float) * dim);
      return;
    }
    uint16_t* page = step.cache.halves(layer) + page_of(step, t) * page_values;
    uint16_t row[kMostCachedWidth];
    for (int h = 0; h < shape.kv_heads; ++h) {
      const size_t head = static_cast<size_t>(h) * dim * kBlockTokens;
      to_bf16(keys[t] + h * dim, row, dim);
      for (int d = 0; d < dim; d += 2) std::memcpy(page + head + d * kBlockTokens + 2 * slot, row + d, 4);
      to_bf16(values[t] + h * dim, row, dim);
      uint16_t* to = page + static_cast<size_t>(width) * kBlockTokens + head + slot / 2 * 2 * dim + slot % 2;
      for (int d = 0; d < dim; ++d) to[2 * d] = row[d];
    }
  });
}

void Gqa::attend_floats(const Step& step) const {
  const Rows queries = step.rows(q), y = step.rows(out);
  const int group = shape.heads / shape.kv_heads;
  const size_t head_floats = static_cast<size_t>(kBlockTokens) * shape.head_dim;
  const auto attend = kernels().gqa;
  each_unit(step.batch, queries.count * shape.kv_heads, 2 * shape.heads * shape.head_dim, [&](int unit) {
    const int t = unit / shape.kv_heads, h = unit % shape.kv_heads, first = h * group * shape.head_dim;
    attend({queries[t] + first, y[t] + first, step.cache.floats(layer), step.batch.table(t),
            step.cache.page_values(layer), h * head_floats, (shape.kv_heads + h) * head_floats,
            step.batch.positions[t] + 1, group, shape.head_dim, shape.scale});
  });
}

void Gqa::attend_cached(const Step& step) const {
  const Rows queries = step.rows(q), y = step.rows(out);
  const int group = shape.heads / shape.kv_heads, dim = shape.head_dim;
  const size_t head = static_cast<size_t>(kBlockTokens) * dim;
  const std::vector<Run> all = runs(step.batch, std::max(1, kCachedTokens / group));
  const auto attend = kernels().gqa_cached;
  each_unit(step.batch, static_cast<int>(all.size()) * shape.kv_heads, 2 * shape.heads * dim, [&](int unit) {
    const Run& run = all[unit / shape.kv_heads];
    const int h = unit % shape.kv_heads;
    std::vector<CachedRow> rows;
    for (int t = run.first; t < run.first + run.count; ++t)
      for (int i = 0; i < group; ++i) {
        const int column = (h * group + i) * dim;
        rows.push_back({queries[t] + column, y[t] + column, step.batch.positions[t] + 1});
      }
    attend({rows.data(), static_cast<int>(rows.size()), step.cache.halves(layer), step.batch.table(run.first),
            step.cache.page_values(layer), h * head, (shape.kv_heads + h) * head, dim, dim, 0, shape.scale, nullptr});
  });
}

void Gqa::run(Step& step) const {
  store(step);
  step.cache.bfloat16() ? attend_cached(step) : attend_floats(step);
}

void Mla::store(const Step& step) const {
  const Rows queries = step.rows(q), c = step.rows(latent), r = step.rows(k_rope), to = step.rows(absorbed);
  const int width = shape.latent + shape.rope, head = shape.nope + shape.rope;
  const size_t page_values = step.cache.page_values(layer), stride = page_values / kBlockTokens;
  const auto to_bf16 = kernels().to_bf16;
  each_row(c.count, width + shape.heads * shape.rope, [&](int t) {
    const size_t at = page_of(step, t) * page_values + slot_of(step, t) * stride;
    if (step.cache.bfloat16()) {
      to_bf16(c[t], step.cache.halves(layer) + at, shape.latent);
      to_bf16(r[t], step.cache.halves(layer) + at + shape.latent, shape.rope);
    } else {
      std::memcpy(step.cache.floats(layer) + at, c[t], sizeof(float) * shape.latent);
      std::memcpy(step.cache.floats(layer) + at + shape.latent, r[t], sizeof(float) * shape.rope);
    }
    for (int h = 0; h < shape.heads; ++h)
      std::memcpy(to[t] + h * width + shape.latent, queries[t] + h * head + shape.nope, sizeof(float) * shape.rope);
  });
}

// Each head has its own matrix, applied to its columns of every row.
void Mla::per_head(const Step& step, const Matrix& weights, const View& x, int x_width, const View& y,
                   int y_width) const {
  const Rows in = step.rows(x), to = step.rows(y), scratch = step.rows(codes);
  const int heads = weights.count(), rows = in.count, cols = weights.cols();
  const bool coded = quantised(weights.storage());
  const size_t bytes = CodedRow(cols).bytes;
  std::vector<const void*> from(static_cast<size_t>(heads) * rows);
  std::vector<float*> results(from.size());
  std::vector<LinearJob> jobs;
  for (int h = 0; h < heads; ++h) {
    const size_t first = static_cast<size_t>(h) * rows;
    for (int t = 0; t < rows; ++t) {
      const float* plain = in[t] + static_cast<size_t>(h) * x_width;
      from[first + t] = coded ? static_cast<const void*>(scratch.codes(t) + h * bytes) : plain;
      results[first + t] = to[t] + static_cast<size_t>(h) * y_width;
    }
    jobs.push_back({weights.tiles(h), from.data() + first, results.data() + first, rows, nullptr});
  }
  const auto encode = kernels().encode;
  if (coded)
    each_row(rows, heads * cols, [&](int t) {
      for (int h = 0; h < heads; ++h)
        encode(in[t] + static_cast<size_t>(h) * x_width, cols, 0, cols, scratch.codes(t) + h * bytes);
    });
  run_jobs(jobs);
}

void Mla::absorb(const Step& step) const {
  per_head(step, *k_b, q, shape.nope + shape.rope, absorbed, shape.latent + shape.rope);
}

void Mla::attend(const Step& step) const {
  const Rows queries = step.rows(absorbed), y = step.rows(weighted);
  const int width = shape.latent + shape.rope;
  const bool cached = step.cache.bfloat16();
  const int most = cached ? kCachedRows : kFloatHeads, pieces = static_cast<int>(ceil_div(shape.heads, most));
  const size_t page_values = step.cache.page_values(layer);
  const Kernels& k = kernels();
  const Rows picked = sparse ? step.rows(chosen) : Rows{};
  each_unit(step.batch, queries.count * pieces, 2 * shape.heads * width, [&](int unit) {
    const int t = unit / pieces, h = unit % pieces * most, heads = std::min(most, shape.heads - h);
    const int32_t* table = step.batch.table(t);
    const bool some = sparse && step.batch.positions[t] >= chosen.width;
    const float* list = some ? picked[t] : nullptr;
    const int length = some ? chosen.width : step.batch.positions[t] + 1;
    const float* from = queries[t] + h * width;
    float* to = y[t] + h * shape.latent;
    if (!cached)
      return k.mla({from, to, step.cache.floats(layer), table, page_values, length, heads, shape.latent, shape.rope,
                    shape.scale, list});
    CachedRow rows[kCachedRows];
    for (int i = 0; i < heads; ++i) rows[i] = {from + i * width, to + i * shape.latent, length};
    k.mla_cached({rows, heads, step.cache.halves(layer), table, page_values, 0, 0, width, shape.latent,
                  static_cast<int>(page_values / kBlockTokens), shape.scale, list});
  });
}

void Mla::expand(const Step& step) const {
  per_head(step, *v_b, weighted, shape.latent, out, shape.value);
}

void Mla::run(Step& step) const {
  store(step);
  absorb(step);
  attend(step);
  expand(step);
}

}  // namespace deepwell
