// Attention over the paged cache: grouped-query, and multi-head latent in absorbed form (DeepSeek-V2 report, 2.1).
#include <cstring>

#include "instructions.h"
#include "isa.h"

namespace deepwell {

namespace {

constexpr int kMlaHeads = 4;  // heads of a unit of work

// Units of work per row, in one phase; small steps stay on the calling thread.
template <class F>
void each_piece(const Batch& batch, int pieces, size_t cost_per_token, F&& f) {
  size_t work = 0;
  for (int t = 0; t < batch.rows; ++t) work += (batch.positions[t] + size_t{1}) * cost_per_token;
  if (work < 131072) {
    for (int t = 0; t < batch.rows; ++t)
      for (int p = 0; p < pieces; ++p) f(t, p);
    return;
  }
  parallel(batch.rows * pieces, [&](int unit) { f(unit / pieces, unit % pieces); });
}

float* page_of(const Step& step, int layer, int row) {
  const int page = step.batch.table(row)[step.batch.positions[row] / kBlockTokens];
  return step.cache.layer(layer) + page * step.cache.page_floats(layer);
}

}  // namespace

void Gqa::store(const Step& step) const {
  const Rows keys = step.rows(k), values = step.rows(v);
  const int width = shape.kv_heads * shape.head_dim;
  each_row(keys.count, 4 * width, [&](int t) {
    const int slot = step.batch.positions[t] % kBlockTokens;
    float* page = page_of(step, layer, t);
    for (int i = 0; i < width; ++i) page[static_cast<size_t>(i) * kBlockTokens + slot] = keys[t][i];
    page += static_cast<size_t>(width) * kBlockTokens;
    for (int h = 0; h < shape.kv_heads; ++h)
      std::memcpy(page + (static_cast<size_t>(h) * kBlockTokens + slot) * shape.head_dim,
                  values[t] + h * shape.head_dim, sizeof(float) * shape.head_dim);
  });
}

void Gqa::run(Step& step) const {
  store(step);
  const Rows queries = step.rows(q), y = step.rows(out);
  const int group = shape.heads / shape.kv_heads;
  const size_t head_floats = static_cast<size_t>(kBlockTokens) * shape.head_dim;
  const auto attend = kernels().gqa;
  each_piece(step.batch, shape.kv_heads, 2 * shape.heads * shape.head_dim, [&](int t, int h) {
    const int first = h * group * shape.head_dim;
    attend({queries[t] + first, y[t] + first, step.cache.layer(layer), step.batch.table(t),
            step.cache.page_floats(layer), h * head_floats, (shape.kv_heads + h) * head_floats,
            step.batch.positions[t] + 1, group, shape.head_dim, shape.scale});
  });
}

void Mla::store(const Step& step) const {
  const Rows queries = step.rows(q), c = step.rows(latent), r = step.rows(k_rope), to = step.rows(absorbed);
  const int width = shape.latent + shape.rope, head = shape.nope + shape.rope;
  each_row(c.count, width + shape.heads * shape.rope, [&](int t) {
    float* slot = page_of(step, layer, t) + static_cast<size_t>(step.batch.positions[t] % kBlockTokens) * width;
    std::memcpy(slot, c[t], sizeof(float) * shape.latent);
    std::memcpy(slot + shape.latent, r[t], sizeof(float) * shape.rope);
    for (int h = 0; h < shape.heads; ++h)
      std::memcpy(to[t] + h * width + shape.latent, queries[t] + h * head + shape.nope, sizeof(float) * shape.rope);
  });
}

namespace {

// Each head has its own matrix, applied to its columns of every row.
void per_head(const Matrix& weights, const Rows& x, int x_width, const Rows& y, int y_width) {
  const int heads = weights.count(), rows = x.count;
  std::vector<const float*> from(static_cast<size_t>(heads) * rows);
  std::vector<float*> to(from.size());
  std::vector<LinearJob> jobs;
  for (int h = 0; h < heads; ++h) {
    const size_t first = static_cast<size_t>(h) * rows;
    for (int t = 0; t < rows; ++t) {
      from[first + t] = x[t] + static_cast<size_t>(h) * x_width;
      to[first + t] = y[t] + static_cast<size_t>(h) * y_width;
    }
    jobs.push_back({weights.tiles(h), from.data() + first, to.data() + first, rows, nullptr});
  }
  run_jobs(jobs);
}

}  // namespace

void Mla::absorb(const Step& step) const {
  per_head(*k_b, step.rows(q), shape.nope + shape.rope, step.rows(absorbed), shape.latent + shape.rope);
}

void Mla::attend(const Step& step) const {
  const Rows queries = step.rows(absorbed), y = step.rows(weighted);
  const int width = shape.latent + shape.rope;
  const int pieces = static_cast<int>(ceil_div(shape.heads, kMlaHeads));
  const auto attend = kernels().mla;
  each_piece(step.batch, pieces, 2 * shape.heads * width, [&](int t, int piece) {
    const int h = piece * kMlaHeads;
    attend({queries[t] + h * width, y[t] + h * shape.latent, step.cache.layer(layer), step.batch.table(t),
            step.cache.page_floats(layer), step.batch.positions[t] + 1, std::min(kMlaHeads, shape.heads - h),
            shape.latent, shape.rope, shape.scale});
  });
}

void Mla::expand(const Step& step) const {
  per_head(*v_b, step.rows(weighted), shape.latent, step.rows(out), shape.value);
}

void Mla::run(Step& step) const {
  store(step);
  absorb(step);
  attend(step);
  expand(step);
}

}  // namespace deepwell
