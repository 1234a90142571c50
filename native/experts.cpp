// Mixture of experts: tokens are grouped by expert, so that each expert touched is read once per step; the results are
// added up per token in the order of its choices, so that the grouping leaves no trace. The shared expert takes part in
// the same two phases.
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

Routed choose(const Moe& m, const Step& step) {
  const Rows in = step.rows(m.x), scores = step.rows(m.scratch.logits);
  const int k = m.routing.top_k;
  std::vector<const void*> from(in.count);
  std::vector<float*> to(in.count);
  for (int t = 0; t < in.count; ++t) {
    from[t] = in[t];
    to[t] = scores[t];
  }
  run_jobs({{m.router->tiles(0), from.data(), to.data(), in.count, nullptr}});
  Routed r;
  r.chosen.resize(static_cast<size_t>(in.count) * k);
  r.weights.resize(r.chosen.size());
  each_row(in.count, 8 * m.routing.experts, [&](int t) {
    route(m.routing, scores[t], m.bias ? m.bias->values.data() : nullptr, &r.chosen[t * k], &r.weights[t * k]);
  });
  group(r, m.routing.experts, k);
  return r;
}

// The rows of one set of experts on their way through: n of them, in order of the experts.
struct Passage {
  const ExpertWeights& weights;
  std::vector<int> start;         // [expert + 1] first row
  std::vector<const void*> in;    // input of each row
  std::vector<float*> hidden, active, results;
  std::vector<uint8_t*> codes;    // of active; empty if down takes floats

  Passage(const ExpertWeights& w, std::vector<int> s) : weights(w), start(std::move(s)), in(start.back()) {}
  int rows() const { return start.back(); }
  int width() const { return weights.down->cols(); }

  // Takes consecutive pieces of the scratch for each row.
  void place(float*& h, float*& a, uint8_t*& c, float*& z) {
    const Matrix& up = *weights.gate_up;
    const bool coded = quantised(weights.down->storage());
    for (int i = 0; i < rows(); ++i) {
      if (!up.pairs()) hidden.push_back(h), h += up.rows();
      active.push_back(a), a += width();
      if (coded) codes.push_back(c), c += CodedRow(width()).bytes;
      results.push_back(z), z += weights.down->rows();
    }
  }

  template <class Job>
  void each_expert(const Matrix& m, Job&& job) const {
    for (int e = 0; e < m.count(); ++e)
      if (start[e + 1] > start[e]) job(m.tiles(e), start[e], start[e + 1] - start[e]);
  }

  void up_jobs(std::vector<LinearJob>& jobs) const {
    const bool gated = weights.gate_up->pairs();
    float* const* to = gated ? active.data() : hidden.data();
    each_expert(*weights.gate_up, [&](const Tiles& w, int first, int n) {
      jobs.push_back({w, in.data() + first, to + first, n, nullptr, gated,
                      gated && !codes.empty() ? codes.data() + first : nullptr});
    });
  }

  // What a gated job does at once, for matrices that are no pairs.
  void activate() const {
    if (weights.gate_up->pairs()) return;
    const Kernels& k = kernels();
    const int f = width();
    each_row(rows(), 4 * f, [&](int i) {
      k.swiglu(hidden[i], hidden[i] + f, active[i], f);
      if (!codes.empty()) k.encode(active[i], f, 0, f, codes[i]);
    });
  }

  void down_jobs(std::vector<LinearJob>& jobs) const {
    const auto from = codes.empty() ? reinterpret_cast<const void* const*>(active.data())
                                    : reinterpret_cast<const void* const*>(codes.data());
    each_expert(*weights.down, [&](const Tiles& w, int first, int n) {
      jobs.push_back({w, from + first, results.data() + first, n, nullptr});
    });
  }
};

}  // namespace

void Moe::run(Step& step) const {
  const Rows plain = step.rows(x), codes = step.rows(coded), y = step.rows(out);
  const int rows = plain.count, k = routing.top_k, d = experts.down->rows();
  const Routed r = choose(*this, step);
  const auto input = [&](const ExpertWeights& w, int row) -> const void* {
    return quantised(w.gate_up->storage()) ? codes[row] : plain[row];
  };

  std::vector<Passage> passages;
  passages.emplace_back(experts, r.start);
  for (int i = 0; i < passages[0].rows(); ++i) passages[0].in[i] = input(experts, r.owner[i]);
  if (shared.down) {
    passages.emplace_back(shared, std::vector<int>{0, rows});
    for (int t = 0; t < rows; ++t) passages[1].in[t] = input(shared, t);
  }
  float *h = step.rows(scratch.hidden).base, *a = step.rows(scratch.active).base;
  float* z = step.rows(scratch.results).base;
  uint8_t* c = step.rows(scratch.codes).codes(0);
  for (Passage& p : passages) p.place(h, a, c, z);

  std::vector<LinearJob> jobs;
  for (const Passage& p : passages) p.up_jobs(jobs);
  run_jobs(jobs);
  for (const Passage& p : passages) p.activate();
  jobs.clear();
  for (const Passage& p : passages) p.down_jobs(jobs);
  run_jobs(jobs);

  const auto combine = kernels().combine;
  const auto add = kernels().add;
  each_row(rows, (k + 1) * d, [&](int t) {
    std::vector<const float*> parts(k);
    for (int i = 0; i < k; ++i) parts[i] = passages[0].results[r.place[t * k + i]];
    combine(parts.data(), &r.weights[t * k], k, y[t], d);
    if (shared.down) add(y[t], passages[1].results[t], y[t], d);
  });
}

}  // namespace deepwell
