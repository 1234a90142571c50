// The instructions of a plan. Their operands have been checked by Program.
#pragma once
#include <algorithm>

#include "kernels.h"
#include "pool.h"
#include "program.h"

namespace deepwell {

// One matrix times some rows; lists of such jobs run as one parallel phase. Rows x are floats, or coded rows for a
// quantised matrix. A gated job gives silu(gate) * up of a matrix of pairs, and also its codes where `codes` is set. Of a
// fine job, two rows each have one result, their sum: the halves of a fine row, y given twice; it has no bias.
struct LinearJob {
  Tiles weight;
  const void* const* x;
  float* const* y;
  int rows;
  const float* bias;
  bool gated = false;
  uint8_t* const* codes = nullptr;
  bool fine = false;
};
void run_jobs(const std::vector<LinearJob>& jobs);

// Splits rows over the threads unless the work (in rough operations per row) is too small to be worth it.
template <class F>
void each_row(int rows, size_t cost, F&& f) {
  const size_t chunk = std::max<size_t>(1, 65536 / std::max<size_t>(1, cost));
  parallel(static_cast<int>(ceil_div(rows, chunk)), [&](int unit) {
    const int first = static_cast<int>(unit * chunk), last = static_cast<int>(std::min<size_t>(rows, first + chunk));
    for (int t = first; t < last; ++t) f(t);
  });
}

struct Embed : Instruction {
  Embed(MatrixPtr t, View o) : table(std::move(t)), out(o) {}
  void run(Step& step) const override;
  MatrixPtr table;
  View out;
};

struct RmsNorm : Instruction {
  RmsNorm(View i, VectorPtr w, float e, int h, View o) : x(i), weight(std::move(w)), eps(e), heads(h), out(o) {}
  void run(Step& step) const override;
  View x;
  VectorPtr weight;
  float eps;
  int heads;
  View out;
};

struct LayerNorm : Instruction {
  LayerNorm(View i, VectorPtr w, VectorPtr b, float e, View o)
      : x(i), weight(std::move(w)), bias(std::move(b)), eps(e), out(o) {}
  void run(Step& step) const override;
  View x;
  VectorPtr weight, bias;
  float eps;
  View out;
};

// Rows of floats as coded rows, for the quantised matrices that read them; as fine ones, for the head.
struct Encode : Instruction {
  Encode(View i, bool f, View o) : x(i), fine(f), out(o) {}
  void run(Step& step) const override;
  View x;
  bool fine;
  View out;
};

// A quantised matrix times fine rows.
struct FineLinear : Instruction {
  FineLinear(View i, MatrixPtr w, View o) : x(i), weight(std::move(w)), out(o) {}
  void run(Step& step) const override;
  View x;
  MatrixPtr weight;
  View out;
};

// x is coded if the weight is quantised.
// Several matrices that read the same rows run as one phase.
struct Linear : Instruction {
  struct Product {
    MatrixPtr weight;
    VectorPtr bias;
    View out;
  };
  Linear(View i, Product p) : x(i), products{std::move(p)} {}
  void run(Step& step) const override;
  View x;
  std::vector<Product> products;
};

struct Concat : Instruction {
  Concat(std::vector<View> i, View o) : xs(std::move(i)), out(o) {}
  void run(Step& step) const override;
  std::vector<View> xs;
  View out;
};

struct Add : Instruction {
  Add(View a, View b, View o) : x(a), y(b), out(o) {}
  void run(Step& step) const override;
  View x, y, out;
};

struct Rope : Instruction {
  Rope(View i, int h, int r, int w, bool p, bool l, View o)
      : x(i), heads(h), rotation(r), width(w), interleaved(p), leading(l), out(o) {}
  void run(Step& step) const override;
  View x;
  int heads, rotation, width;
  bool interleaved, leading;
  View out;
};

// silu(gate) * up of a quantised matrix of pairs, from coded rows: as floats and coded again.
struct Gated : Instruction {
  Gated(View i, MatrixPtr w, VectorPtr b, View o, View c)
      : x(i), weight(std::move(w)), bias(std::move(b)), out(o), codes(c) {}
  void run(Step& step) const override;
  View x;
  MatrixPtr weight;
  VectorPtr bias;
  View out, codes;
};

struct Swiglu : Instruction {
  Swiglu(View i, View o) : x(i), out(o) {}
  void run(Step& step) const override;
  View x, out;
};

struct Select : Instruction {
  Select(View i, View o) : x(i), out(o) {}
  void run(Step& step) const override;
  View x, out;
};

struct Gqa : Instruction {
  Gqa(View q_, View k_, View v_, int l, GqaShape s, View o) : q(q_), k(k_), v(v_), layer(l), shape(s), out(o) {}
  void run(Step& step) const override;
  View q, k, v;
  int layer;
  GqaShape shape;
  View out;

 private:
  void store(const Step& step) const;
  void attend_floats(const Step& step) const;
  void attend_cached(const Step& step) const;
};

struct Index : Instruction {
  Index(View q_, View k_, View w, int l, IndexShape s, View o)
      : q(q_), k(k_), weights(w), layer(l), shape(s), out(o) {}
  void run(Step& step) const override;
  View q, k, weights;
  int layer;
  IndexShape shape;
  View out;

 private:
  void store(const Step& step) const;
  // Rows [first, last) whose scores are held at once: those of row t begin at starts[t - first].
  struct Group {
    int first, last;
    std::vector<size_t> starts;
    size_t size;
  };
  std::vector<Group> groups_of(const Step& step) const;
  void choose_in(const Step& step, const Group& group, float* scores) const;
  void score(const Step& step, int row, int first, int last, float* scores) const;
};

// `absorbed` holds per head [q_nope through k_b | q_rope]; `weighted` the attention-weighted latents; `codes` each
// head's row for k_b, then for v_b, if these are quantised. If `sparse`, rows with a longer past see `chosen` positions.
struct Mla : Instruction {
  Mla(View q_, View c, View r, MatrixPtr k, MatrixPtr v, int l, MlaShape s, View a, View w, View e, View o,
      const View* z)
      : q(q_), latent(c), k_rope(r), k_b(std::move(k)), v_b(std::move(v)), layer(l), shape(s), absorbed(a),
        weighted(w), codes(e), out(o), sparse(z), chosen(z ? *z : View{}) {}
  void run(Step& step) const override;
  View q, latent, k_rope;
  MatrixPtr k_b, v_b;
  int layer;
  MlaShape shape;
  View absorbed, weighted, codes, out;
  bool sparse;
  View chosen;

 private:
  void store(const Step& step) const;
  void per_head(const Step& step, const Matrix& weights, const View& x, int x_width, const View& y, int y_width) const;
  void absorb(const Step& step) const;
  void attend(const Step& step) const;
  void expand(const Step& step) const;
};

// Gate and up, then down, of routed or shared experts. `x` is coded where gate_up is quantised, plain otherwise.
struct ExpertWeights {
  MatrixPtr gate_up, down;
};

// Scratch per row: logits (experts); for each chosen expert and for the shared one hidden (2F, unless gated at once),
// active (F), codes (of active, if down is quantised) and results (D).
struct Moe : Instruction {
  struct Scratch {
    View logits, hidden, active, codes, results;
  };
  Moe(View i, View c, MatrixPtr r, VectorPtr b, ExpertWeights e, ExpertWeights s, Routing p, Scratch z, View o)
      : x(i), coded(c), router(std::move(r)), bias(std::move(b)), experts(std::move(e)), shared(std::move(s)),
        routing(p), scratch(z), out(o) {}
  void run(Step& step) const override;
  View x, coded;
  MatrixPtr router;
  VectorPtr bias;
  ExpertWeights experts, shared;
  Routing routing;
  Scratch scratch;
  View out;
};

}  // namespace deepwell
