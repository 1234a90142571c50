// A plan of one decoder step: instructions recorded once, over buffers whose number of rows is known only at run time.
//
// A View names columns [offset, offset + width) of a buffer; its rows are the step's tokens, or, after `select`, the
// rows whose logits are wanted. Recording methods check every width and return the view of the result. `finish` gives
// each buffer a place in an arena, reusing the place of results that nobody reads any more. `run` executes a step.
#pragma once
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "batch.h"
#include "cache.h"
#include "matrix.h"
#include "routing.h"

namespace deepwell {

struct View {
  uint64_t program;
  int buffer;
  int offset;
  int width;
  bool selected;
};

struct Rotation {
  std::vector<float> inv_freq;
  bool interleaved;
  float magnitude;
  bool leading = false;
  bool operator==(const Rotation& o) const {
    return inv_freq == o.inv_freq && interleaved == o.interleaved && magnitude == o.magnitude &&
           leading == o.leading;
  }
};

struct GqaShape {
  int heads, kv_heads, head_dim;
  float scale;
};

struct MlaShape {
  int heads, nope, rope, value, latent;
  float scale;
};

struct IndexShape {
  int heads, head_dim, top_k;
  float scale;
};

// A view at run time.
struct Rows {
  float* base;
  size_t stride;
  int count;
  float* operator[](int row) const { return base + row * stride; }
  uint8_t* codes(int row) const { return reinterpret_cast<uint8_t*>(base + row * stride); }
};

// Cosines and sines of the step's positions: [row][pair].
struct Angles {
  std::vector<float> cosine, sine;
};

struct Step {
  const Batch& batch;
  const Cache& cache;
  std::vector<Rows> buffers;
  std::vector<Angles> angles;

  Rows rows(const View& v) const {
    const Rows& b = buffers[v.buffer];
    return {b.base + v.offset, b.stride, b.count};
  }
};

class Instruction {
 public:
  virtual ~Instruction() = default;
  virtual void run(Step& step) const = 0;
  std::vector<int> buffers;  // read, written or used as scratch
};

using MatrixPtr = std::shared_ptr<const Matrix>;
using VectorPtr = std::shared_ptr<const Vector>;

class Program {
 public:
  Program();

  // Rows that the caller gives at each run, one per token of the step.
  View input(int width);
  View embed(MatrixPtr table);
  View rms_norm(View x, VectorPtr weight, float eps, int heads);
  View layer_norm(View x, VectorPtr weight, VectorPtr bias, float eps);
  View linear(View x, MatrixPtr weight, VectorPtr bias);
  View head(View x, MatrixPtr weight);
  // silu(gate) * up, where the weight's first half of rows is the gate's.
  View gated(View x, MatrixPtr weight, VectorPtr bias);
  std::vector<View> split(View x, const std::vector<int>& widths);
  View concat(const std::vector<View>& xs);
  View add(View x, View y);
  View rope(View x, int heads, const Rotation& rotation);
  View gqa(View q, View k, View v, int layer, const GqaShape& shape);
  // The positions that each row is to attend to, as whole numbers: top_k columns.
  View index(View q, View k, View weights, int layer, const IndexShape& shape);
  // `chosen`, a result of index, may be null.
  View mla(View q, View latent, View k_rope, MatrixPtr k_b, MatrixPtr v_b, int layer, const MlaShape& shape,
           const View* chosen = nullptr);
  // The shared expert's matrices may be null.
  View moe(View x, MatrixPtr router, VectorPtr bias, MatrixPtr gate_up, MatrixPtr down, MatrixPtr shared_gate_up,
           MatrixPtr shared_down, const Routing& routing);
  View select(View x);

  // `further` are results that `run` copies out too, of all rows or of the selected ones.
  void finish(View logits, const std::vector<View>& further = {});
  int logits_width() const;
  const std::vector<View>& inputs() const { return inputs_; }
  const std::vector<View>& further() const { return further_; }

  // Writes logits (batch.wanted rows of logits_width()) and the further results, rows packed. `inputs` are read as
  // recorded. Raises for a bad batch or a cache of another shape.
  void run(const Batch& batch, const Cache& cache, float* logits, const std::vector<const float*>& inputs = {},
           const std::vector<float*>& further = {});
  // The same, with logits that belong to the plan: `use` sees them once. `further` may be empty.
  void step(const Batch& batch, const Cache& cache, const std::vector<const float*>& inputs,
            const std::vector<float*>& further, const std::function<void(const float* logits)>& use);
  // Bytes that a step of `rows` tokens takes, `wanted` of them with logits; the largest one's are kept.
  size_t bytes(int rows, int wanted) const;

 private:
  struct BufferPlan {
    int width;
    bool selected;
    size_t stride;   // floats between rows
    size_t place;    // floats per row before it in its arena
    int first, last; // instructions that use it
  };
  struct LayerUse {
    int layer, width;
    bool bfloat16;  // whether the layer can be kept in bfloat16
  };
  struct Encoding {
    View x, codes;
  };

  View buffer(int width, bool selected);
  void use(const std::vector<View>& views);
  template <class T, class... Args>
  void record(std::vector<View> uses, Args&&... args);
  void check_view(const View& v, const char* what) const;
  void check_open() const;
  void use_layer(int layer, int width, bool bfloat16);
  View encoded(View x);
  View code_buffer(int width, int count, bool selected);
  size_t place_buffers(bool selected);
  void check_cache(const Cache& cache) const;
  void check_step(const Batch& batch, const Cache& cache) const;
  size_t arena_floats(int rows, int wanted) const;
  void execute(const Batch& batch, const Cache& cache, float* logits, const std::vector<const float*>& inputs,
               const std::vector<float*>& further);

  const uint64_t id_;
  std::vector<BufferPlan> buffers_;
  std::vector<std::unique_ptr<Instruction>> instructions_;
  std::vector<Rotation> rotations_;
  std::vector<LayerUse> layers_;
  std::vector<int> indexed_;  // buffers of chosen positions
  std::vector<Encoding> encodings_;  // buffers are written once, so a row is coded once
  int vocabulary_ = 0;  // 0: nothing is embedded, and tokens may be any
  int logits_ = -1;
  std::vector<View> inputs_, further_;
  size_t row_floats_ = 0, selected_floats_ = 0;  // arena floats per row of each kind
  Buffer arena_, step_logits_;
  std::mutex running_;
};

}  // namespace deepwell
