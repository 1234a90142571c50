// Mixture of experts: tokens are grouped by expert, so that each expert touched is read once per step; the results are
// added up per token in the order of its choices, so that the grouping leaves no trace.
#include "instructions.h"
#include "isa.h"

namespace deepwell {

namespace {

struct Routed {
  std::vector<int32_t> chosen;  // [row][slot] expert
  std::vector<float> weights;   // [row][slot]
  std::vector<int> start;       // [expert + 1] first place of its rows
  std::vector<int> place;       // [row][slot] place among all, sorted by expert, then row
  std::vector<int> owner;       // [place] row
};

void group(Routed& r, int experts, int top_k) {
  r.start.assign(experts + 1, 0);
  for (int e : r.chosen) ++r.start[e + 1];
  for (int e = 0; e < experts; ++e) r.start[e + 1] += r.start[e];
  std::vector<int> next(r.start.begin(), r.start.end() - 1);
  r.place.resize(r.chosen.size());
  r.owner.resize(r.chosen.size());
  for (size_t i = 0; i < r.chosen.size(); ++i) {
    r.place[i] = next[r.chosen[i]]++;
    r.owner[r.place[i]] = static_cast<int>(i / top_k);
  }
}

// One job per expert that has rows.
std::vector<LinearJob> expert_jobs(const Matrix& weights, const Routed& r, const float* const* x, float* const* y) {
  std::vector<LinearJob> jobs;
  for (int e = 0; e < weights.count(); ++e) {
    const int first = r.start[e], n = r.start[e + 1] - first;
    if (n > 0) jobs.push_back({weights.tiles(e), x + first, y + first, n, nullptr});
  }
  return jobs;
}

}  // namespace

void Moe::run(Step& step) const {
  const Rows in = step.rows(x), scores = step.rows(logits), y = step.rows(out);
  const int rows = in.count, k = routing.top_k, n = rows * k, f = down->cols(), d = down->rows();
  std::vector<const float*> from(std::max(n, rows));
  std::vector<float*> to(std::max(n, rows));

  for (int t = 0; t < rows; ++t) {
    from[t] = in[t];
    to[t] = scores[t];
  }
  run_jobs({{router->tiles(0), from.data(), to.data(), rows, nullptr}});

  Routed r;
  r.chosen.resize(n);
  r.weights.resize(n);
  each_row(rows, 8 * routing.experts, [&](int t) {
    route(routing, scores[t], bias ? bias->values.data() : nullptr, &r.chosen[t * k], &r.weights[t * k]);
  });
  group(r, routing.experts, k);

  float* h = step.rows(hidden).base;
  for (int i = 0; i < n; ++i) {
    from[i] = in[r.owner[i]];
    to[i] = h + static_cast<size_t>(i) * 2 * f;
  }
  run_jobs(expert_jobs(*gate_up, r, from.data(), to.data()));

  float* a = step.rows(active).base;
  const auto swiglu = kernels().swiglu;
  each_row(n, 4 * f, [&](int i) { swiglu(to[i], to[i] + f, a + static_cast<size_t>(i) * f, f); });

  float* z = step.rows(results).base;
  for (int i = 0; i < n; ++i) {
    from[i] = a + static_cast<size_t>(i) * f;
    to[i] = z + static_cast<size_t>(i) * d;
  }
  run_jobs(expert_jobs(*down, r, from.data(), to.data()));

  const auto combine = kernels().combine;
  for (int i = 0; i < n; ++i) from[i] = z + static_cast<size_t>(r.place[i]) * d;
  each_row(rows, k * d, [&](int t) { combine(&from[t * k], &r.weights[t * k], k, y[t], d); });
}

}  // namespace deepwell
