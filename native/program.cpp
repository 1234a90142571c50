#include "program.h"

#include <atomic>
#include <cmath>
#include <cstring>
#include <limits>

#include "instructions.h"

namespace deepwell {

namespace {

std::atomic<uint64_t> programs{0};

constexpr int kMostPositions = 1 << 24;  // whole numbers that a float holds
constexpr int kMostChosen = 1 << 20;

std::string number(int n) { return std::to_string(n); }

void check_width(const View& v, int64_t width, const std::string& what) {
  require(v.width == width, what + " has " + number(v.width) + " columns, expected " + std::to_string(width));
}

void check_shape(const MatrixPtr& m, int count, int rows, int cols, const std::string& what) {
  require(m != nullptr, what + " is missing");
  const bool ok = m->count() == count && (rows < 0 || m->rows() == rows) && m->cols() == cols;
  require(ok, what + " is " + number(m->count()) + " x " + number(m->rows()) + " x " + number(m->cols()) +
                  ", expected " + number(count) + " x " + (rows < 0 ? "any" : number(rows)) + " x " + number(cols));
}

void check_vector(const VectorPtr& v, int size, const std::string& what) {
  require(v != nullptr, what + " is missing");
  require(v->size() == size, what + " has " + number(v->size()) + " values, expected " + number(size));
}

void copy_in(const float* from, const Rows& to, int width) {
  for (int row = 0; row < to.count; ++row)
    std::memcpy(to[row], from + static_cast<size_t>(row) * width, sizeof(float) * width);
}

void copy_out(const Rows& from, float* to, int width) {
  for (int row = 0; row < from.count; ++row)
    std::memcpy(to + static_cast<size_t>(row) * width, from[row], sizeof(float) * width);
}

Angles angles_of(const Rotation& rotation, const Batch& batch) {
  Angles a;
  const size_t pairs = rotation.inv_freq.size();
  a.cosine.resize(batch.rows * pairs);
  a.sine.resize(batch.rows * pairs);
  each_row(batch.rows, 64 * pairs, [&](int t) {
    for (size_t i = 0; i < pairs; ++i) {
      const float angle = static_cast<float>(batch.positions[t]) * rotation.inv_freq[i];
      a.cosine[t * pairs + i] = static_cast<float>(std::cos(static_cast<double>(angle)) * rotation.magnitude);
      a.sine[t * pairs + i] = static_cast<float>(std::sin(static_cast<double>(angle)) * rotation.magnitude);
    }
  });
  return a;
}

}  // namespace

Program::Program() : id_(++programs) {}

// ---- recording

void Program::check_open() const { require(logits_ < 0, "the plan is finished; record another one"); }

void Program::check_view(const View& v, const char* what) const {
  check_open();
  require(v.program == id_, std::string(what) + " belongs to another plan");
}

View Program::buffer(int width, bool selected) {
  check_open();
  buffers_.push_back({width, selected, round_up(width, kLanes), 0, -1, -1});
  return {id_, static_cast<int>(buffers_.size()) - 1, 0, width, selected};
}

template <class T, class... Args>
void Program::record(std::vector<View> uses, Args&&... args) {
  instructions_.push_back(std::make_unique<T>(std::forward<Args>(args)...));
  use(uses);
}

// Notes that the newest instruction uses these buffers.
void Program::use(const std::vector<View>& views) {
  const int now = static_cast<int>(instructions_.size()) - 1;
  for (const View& v : views) {
    BufferPlan& b = buffers_[v.buffer];
    if (b.first < 0) b.first = now;
    b.last = now;
  }
}

void Program::use_layer(int layer, int width, bool bfloat16) {
  require(layer >= 0, "layer " + number(layer) + " is negative");
  for (const LayerUse& use : layers_) require(use.layer != layer, "layer " + number(layer) + " is used twice");
  layers_.push_back({layer, width, bfloat16});
}

View Program::input(int width) {
  require(width >= 1, "an input needs at least 1 column, not " + number(width));
  const View in = buffer(width, false);
  buffers_[in.buffer].first = buffers_[in.buffer].last = 0;
  inputs_.push_back(in);
  return in;
}

View Program::embed(MatrixPtr table) {
  check_shape(table, 1, -1, table ? table->cols() : 0, "the embedding table");
  vocabulary_ = vocabulary_ ? std::min(vocabulary_, table->rows()) : table->rows();
  const View out = buffer(table->cols(), false);
  record<Embed>({out}, table, out);
  return out;
}

View Program::rms_norm(View x, VectorPtr weight, float eps, int heads) {
  check_view(x, "the input of rms_norm");
  require(heads >= 1 && x.width % heads == 0,
          "rms_norm cannot cut " + number(x.width) + " columns into " + number(heads) + " heads");
  check_vector(weight, x.width / heads, "the weight of rms_norm");
  const View out = buffer(x.width, x.selected);
  record<RmsNorm>({x, out}, x, weight, eps, heads, out);
  return out;
}

View Program::layer_norm(View x, VectorPtr weight, VectorPtr bias, float eps) {
  check_view(x, "the input of layer_norm");
  check_vector(weight, x.width, "the weight of layer_norm");
  check_vector(bias, x.width, "the bias of layer_norm");
  const View out = buffer(x.width, x.selected);
  record<LayerNorm>({x, out}, x, weight, bias, eps, out);
  return out;
}

View Program::linear(View x, MatrixPtr weight, VectorPtr bias) {
  check_view(x, "the input of linear");
  check_shape(weight, 1, -1, x.width, "the weight of linear");
  if (bias) check_vector(bias, weight->rows(), "the bias of linear");
  require(!weight->pairs(), "a matrix of pairs is for gated, not for linear");
  if (quantised(weight->storage())) x = encoded(x);
  const View out = buffer(weight->rows(), x.selected);
  Linear* last = instructions_.empty() ? nullptr : dynamic_cast<Linear*>(instructions_.back().get());
  if (last && last->x.buffer == x.buffer && last->x.offset == x.offset && last->x.width == x.width) {
    last->products.push_back({weight, bias, out});
    use({out});
  } else {
    record<Linear>({x, out}, x, Linear::Product{weight, bias, out});
  }
  return out;
}

View Program::head(View x, MatrixPtr weight) {
  if (!weight || !quantised(weight->storage())) return linear(x, weight, nullptr);
  check_view(x, "the input of head");
  check_shape(weight, 1, -1, x.width, "the weight of head");
  require(!weight->pairs(), "a matrix of pairs is for gated, not for head");
  const View codes = code_buffer(x.width, 2, x.selected), out = buffer(weight->rows(), x.selected);
  record<Encode>({x, codes}, x, true, codes);
  record<FineLinear>({codes, out}, codes, weight, out);
  return out;
}

View Program::encoded(View x) {
  for (const Encoding& e : encodings_)
    if (e.x.buffer == x.buffer && e.x.offset == x.offset && e.x.width == x.width) return e.codes;
  const View codes = code_buffer(x.width, 1, x.selected);
  record<Encode>({x, codes}, x, false, codes);
  encodings_.push_back({x, codes});
  return codes;
}

View Program::code_buffer(int width, int count, bool selected) {
  return buffer(static_cast<int>(CodedRow(width).bytes / sizeof(float)) * count, selected);
}

View Program::gated(View x, MatrixPtr weight, VectorPtr bias) {
  check_view(x, "the input of gated");
  check_shape(weight, 1, -1, x.width, "the weight of gated");
  require(weight->rows() % 2 == 0, "gated needs an even number of rows, not " + number(weight->rows()));
  if (bias) check_vector(bias, weight->rows(), "the bias of gated");
  const int width = weight->rows() / 2;
  if (!weight->pairs()) {
    const View both = linear(x, weight, bias), out = buffer(width, x.selected);
    record<Swiglu>({both, out}, both, out);
    return out;
  }
  x = encoded(x);
  const View out = buffer(width, x.selected), codes = code_buffer(width, 1, x.selected);
  record<Gated>({x, out, codes}, x, weight, bias, out, codes);
  encodings_.push_back({out, codes});
  return out;
}

std::vector<View> Program::split(View x, const std::vector<int>& widths) {
  check_view(x, "the input of split");
  std::vector<View> parts;
  int offset = 0;
  for (int width : widths) {
    require(width >= 1 && width <= x.width - offset, "split widths do not fit in " + number(x.width) + " columns");
    parts.push_back({id_, x.buffer, x.offset + offset, width, x.selected});
    offset += width;
  }
  require(offset == x.width, "split widths add up to " + number(offset) + ", not " + number(x.width));
  return parts;
}

View Program::concat(const std::vector<View>& xs) {
  require(!xs.empty(), "concat needs at least one piece");
  int width = 0;
  for (const View& x : xs) {
    check_view(x, "a piece of concat");
    require(x.selected == xs[0].selected, "concat cannot mix all rows with selected rows");
    width += x.width;
  }
  const View out = buffer(width, xs[0].selected);
  std::vector<View> uses = xs;
  uses.push_back(out);
  record<Concat>(uses, xs, out);
  return out;
}

View Program::add(View x, View y) {
  check_view(x, "the first input of add");
  check_view(y, "the second input of add");
  check_width(y, x.width, "the second input of add");
  require(x.selected == y.selected, "add cannot mix all rows with selected rows");
  const View out = buffer(x.width, x.selected);
  record<Add>({x, y, out}, x, y, out);
  return out;
}

View Program::rope(View x, int heads, const Rotation& rotation) {
  check_view(x, "the input of rope");
  require(!x.selected, "rope works on all rows, before select");
  const int width = 2 * static_cast<int>(rotation.inv_freq.size());
  require(heads >= 1 && x.width % heads == 0 && width >= 2 && width <= x.width / heads,
          "rope cannot rotate " + number(width) + " columns of " + number(heads) + " heads in " + number(x.width));
  int index = 0;
  while (index < static_cast<int>(rotations_.size()) && !(rotations_[index] == rotation)) ++index;
  if (index == static_cast<int>(rotations_.size())) rotations_.push_back(rotation);
  const View out = buffer(x.width, false);
  record<Rope>({x, out}, x, heads, index, width, rotation.interleaved, rotation.leading, out);
  return out;
}

View Program::gqa(View q, View k, View v, int layer, const GqaShape& s) {
  check_view(q, "the queries of gqa");
  check_view(k, "the keys of gqa");
  check_view(v, "the values of gqa");
  require(!q.selected && !k.selected && !v.selected, "gqa works on all rows, before select");
  require(s.heads >= 1 && s.kv_heads >= 1 && s.head_dim >= 1 && s.heads % s.kv_heads == 0,
          "gqa cannot share " + number(s.kv_heads) + " key heads among " + number(s.heads) + " query heads");
  check_width(q, int64_t{s.heads} * s.head_dim, "the queries of gqa");
  check_width(k, int64_t{s.kv_heads} * s.head_dim, "the keys of gqa");
  check_width(v, int64_t{s.kv_heads} * s.head_dim, "the values of gqa");
  use_layer(layer, 2 * s.kv_heads * s.head_dim, s.head_dim % kLanes == 0 && s.head_dim <= kMostCachedWidth);
  const View out = buffer(s.heads * s.head_dim, false);
  record<Gqa>({q, k, v, out}, q, k, v, layer, s, out);
  return out;
}

View Program::index(View q, View k, View weights, int layer, const IndexShape& s) {
  check_view(q, "the queries of index");
  check_view(k, "the key of index");
  check_view(weights, "the weights of index");
  require(!q.selected && !k.selected && !weights.selected, "index works on all rows, before select");
  require(s.heads >= 1 && s.head_dim >= 1 && s.top_k >= 1 && s.top_k <= kMostChosen,
          "index needs positive sizes, and a top_k of at most " + number(kMostChosen));
  check_width(q, int64_t{s.heads} * s.head_dim, "the queries of index");
  check_width(k, s.head_dim, "the key of index");
  check_width(weights, s.heads, "the weights of index");
  use_layer(layer, s.head_dim, s.head_dim % 2 == 0 && s.head_dim <= kMostCachedWidth);
  const View out = buffer(s.top_k, false);
  record<Index>({q, k, weights, out}, q, k, weights, layer, s, out);
  indexed_.push_back(out.buffer);
  return out;
}

View Program::mla(View q, View latent, View k_rope, MatrixPtr k_b, MatrixPtr v_b, int layer, const MlaShape& s,
                  const View* chosen) {
  check_view(q, "the queries of mla");
  check_view(latent, "the latent of mla");
  check_view(k_rope, "the rotated key of mla");
  require(!q.selected && !latent.selected && !k_rope.selected, "mla works on all rows, before select");
  require(s.heads >= 1 && s.nope >= 1 && s.rope >= 1 && s.value >= 1 && s.latent >= 1, "mla needs positive widths");
  check_width(q, s.heads * (int64_t{s.nope} + s.rope), "the queries of mla");
  check_width(latent, s.latent, "the latent of mla");
  check_width(k_rope, s.rope, "the rotated key of mla");
  check_shape(k_b, s.heads, s.latent, s.nope, "the key half of kv_b");
  check_shape(v_b, s.heads, s.value, s.latent, "the value half of kv_b");
  if (chosen) {
    check_view(*chosen, "the chosen positions of mla");
    const bool known = std::find(indexed_.begin(), indexed_.end(), chosen->buffer) != indexed_.end();
    require(known && chosen->width == buffers_[chosen->buffer].width,
            "the chosen positions of mla must be those of index");
  }
  use_layer(layer, s.latent + s.rope, static_cast<int>(round_up(s.latent + s.rope, 32)) <= kMostCachedWidth);
  const View absorbed = buffer(s.heads * (s.latent + s.rope), false), weighted = buffer(s.heads * s.latent, false);
  const int most = std::max(quantised(k_b->storage()) ? s.nope : 0, quantised(v_b->storage()) ? s.latent : 0);
  const View codes = code_buffer(most, s.heads, false), out = buffer(s.heads * s.value, false);
  std::vector<View> uses{q, latent, k_rope, absorbed, weighted, codes, out};
  if (chosen) uses.push_back(*chosen);
  record<Mla>(uses, q, latent, k_rope, k_b, v_b, layer, s, absorbed, weighted, codes, out, chosen);
  return out;
}

View Program::moe(View x, MatrixPtr router, VectorPtr bias, MatrixPtr gate_up, MatrixPtr down,
                  MatrixPtr shared_gate_up, MatrixPtr shared_down, const Routing& r) {
  check_view(x, "the input of moe");
  check(r);
  check_shape(router, 1, r.experts, x.width, "the router");
  require(!quantised(router->storage()), "the router must be in a float storage");
  if (bias) {
    require(r.method == Method::kNoauxTc, "only noaux_tc routing takes a bias");
    check_vector(bias, r.experts, "the router's bias");
  }
  require(down != nullptr, "the experts' down matrix is missing");
  check_shape(gate_up, r.experts, 2 * down->cols(), x.width, "the experts' gate and up matrix");
  check_shape(down, r.experts, -1, down->cols(), "the experts' down matrix");
  require(!shared_gate_up == !shared_down, "a shared expert needs both its matrices");
  if (shared_down) {
    check_shape(shared_gate_up, 1, 2 * shared_down->cols(), x.width, "the shared expert's gate and up matrix");
    check_shape(shared_down, 1, down->rows(), shared_down->cols(), "the shared expert's down matrix");
  }
  const int f = down->cols(), d = down->rows(), k = r.top_k, fs = shared_down ? shared_down->cols() : 0;
  const bool codes_in = quantised(gate_up->storage()) || (fs && quantised(shared_gate_up->storage()));
  const View coded = codes_in ? encoded(x) : x;
  const auto hidden_of = [](const MatrixPtr& m) { return m && !m->pairs() ? m->rows() : 0; };
  const auto codes_of_row = [](const MatrixPtr& m) {
    return m && quantised(m->storage()) ? static_cast<int>(CodedRow(m->cols()).bytes / sizeof(float)) : 0;
  };
  const Moe::Scratch scratch{buffer(r.experts, x.selected),
                             buffer(std::max(1, k * hidden_of(gate_up) + hidden_of(shared_gate_up)), x.selected),
                             buffer(k * f + fs, x.selected),
                             buffer(std::max(1, k * codes_of_row(down) + codes_of_row(shared_down)), x.selected),
                             buffer((k + (fs ? 1 : 0)) * d, x.selected)};
  const View out = buffer(d, x.selected);
  record<Moe>({x, coded, scratch.logits, scratch.hidden, scratch.active, scratch.codes, scratch.results, out}, x, coded,
              router, bias, ExpertWeights{gate_up, down}, ExpertWeights{shared_gate_up, shared_down}, r, scratch, out);
  return out;
}

View Program::select(View x) {
  check_view(x, "the input of select");
  require(!x.selected, "these rows are selected already");
  const View out = buffer(x.width, true);
  record<Select>({x, out}, x, out);
  return out;
}

// ---- placing

void Program::finish(View logits, const std::vector<View>& further) {
  check_view(logits, "the logits");
  for (const View& v : further) check_view(v, "a further result");
  BufferPlan& b = buffers_[logits.buffer];
  require(logits.selected, "the logits must be of the selected rows: call select first");
  require(logits.width == b.width, "the logits must be a whole result, not a part of one");
  logits_ = logits.buffer;
  b.stride = b.width;
  for (const View& v : further) buffers_[v.buffer].last = static_cast<int>(instructions_.size());
  further_ = further;
  row_floats_ = place_buffers(false);
  selected_floats_ = place_buffers(true);
}

// Each buffer takes the lowest place that is free for as long as it is used. Returns the floats per row needed.
size_t Program::place_buffers(bool selected) {
  size_t end = 0;
  std::vector<BufferPlan*> placed;
  for (BufferPlan& b : buffers_) {
    if (b.selected != selected || &b == &buffers_[logits_]) continue;
    b.place = 0;
    for (bool moved = true; moved;) {
      moved = false;
      for (const BufferPlan* o : placed) {
        const bool together = o->first <= b.last && b.first <= o->last;
        if (together && b.place < o->place + o->stride && o->place < b.place + b.stride) {
          b.place = o->place + o->stride;
          moved = true;
        }
      }
    }
    placed.push_back(&b);
    end = std::max(end, b.place + b.stride);
  }
  return end;
}

// ---- running

int Program::logits_width() const {
  require(logits_ >= 0, "the plan is not finished");
  return buffers_[logits_].width;
}

void Program::check_cache(const Cache& cache) const {
  for (const LayerUse& use : layers_) {
    const auto& widths = cache.layer_widths();
    require(use.layer < static_cast<int>(widths.size()),
            "the cache has " + number(static_cast<int>(widths.size())) + " layers, the plan uses layer " +
                number(use.layer));
    require(widths[use.layer] == use.width, "layer " + number(use.layer) + " of the cache is " +
            number(widths[use.layer]) + " wide, the plan needs " + number(use.width));
    require(use.bfloat16 || !cache.bfloat16(), "layer " + number(use.layer) + " needs a float32 cache: its heads are " +
            "no multiple of 16 wide, or wider than " + number(kMostCachedWidth));
  }
}

void Program::check_step(const Batch& batch, const Cache& cache) const {
  logits_width();
  check_cache(cache);
  check(batch, vocabulary_ > 0 ? vocabulary_ : std::numeric_limits<int>::max(), cache.blocks());
  for (int t = 0; t < batch.rows && !indexed_.empty(); ++t)
    require(batch.positions[t] < kMostPositions, "position " + number(batch.positions[t]) +
            " is beyond the " + number(kMostPositions) + " that an indexer can name");
}

size_t Program::arena_floats(int rows, int wanted) const {
  return row_floats_ * rows + selected_floats_ * wanted;
}

size_t Program::bytes(int rows, int wanted) const {
  require(rows >= 0 && wanted >= 0 && wanted <= rows, "a step has 0 rows or more, and selects none or some of them");
  return sizeof(float) * (arena_floats(rows, wanted) + static_cast<size_t>(logits_width()) * wanted);
}

void Program::run(const Batch& batch, const Cache& cache, float* logits, const std::vector<const float*>& inputs,
                  const std::vector<float*>& further) {
  check_step(batch, cache);
  require(inputs.size() == inputs_.size() && further.size() == further_.size(),
          "the plan has " + number(static_cast<int>(inputs_.size())) + " inputs and " +
              number(static_cast<int>(further_.size())) + " further results");
  std::lock_guard<std::mutex> lock(running_);
  execute(batch, cache, logits, inputs, further);
}

void Program::step(const Batch& batch, const Cache& cache, const std::vector<const float*>& inputs,
                   const std::vector<float*>& further, const std::function<void(const float*)>& use) {
  check_step(batch, cache);
  require(inputs.size() == inputs_.size() && (further.empty() || further.size() == further_.size()),
          "the plan has " + number(static_cast<int>(inputs_.size())) + " inputs and " +
              number(static_cast<int>(further_.size())) + " further results");
  std::lock_guard<std::mutex> lock(running_);
  const size_t needed = sizeof(float) * batch.wanted * static_cast<size_t>(logits_width());
  if (step_logits_.size() < needed) step_logits_ = Buffer(needed, true);
  execute(batch, cache, step_logits_.floats(), inputs, further);
  use(step_logits_.floats());
}

void Program::execute(const Batch& batch, const Cache& cache, float* logits, const std::vector<const float*>& inputs,
                      const std::vector<float*>& further) {
  const size_t floats = arena_floats(batch.rows, batch.wanted);
  if (arena_.size() < floats * sizeof(float)) arena_ = Buffer(floats * sizeof(float), true);

  Step step{batch, cache, {}, {}};
  float* selected = arena_.floats() + row_floats_ * batch.rows;
  for (const BufferPlan& b : buffers_) {
    const int rows = b.selected ? batch.wanted : batch.rows;
    float* base = b.selected ? selected : arena_.floats();
    step.buffers.push_back({&b == &buffers_[logits_] ? logits : base + b.place * rows, b.stride, rows});
  }
  for (const Rotation& r : rotations_) step.angles.push_back(angles_of(r, batch));
  for (size_t i = 0; i < inputs.size(); ++i) copy_in(inputs[i], step.rows(inputs_[i]), inputs_[i].width);
  for (const auto& instruction : instructions_) instruction->run(step);
  for (size_t i = 0; i < further.size(); ++i) copy_out(step.rows(further_[i]), further[i], further_[i].width);
}

}  // namespace deepwell
