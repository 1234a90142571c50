// Python's view of the native backend: deepwell._native.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include "isa.h"
#include "limits.h"
#include "module_sampling.h"
#include "module_search.h"
#include "pool.h"
#include "program.h"
#include "released.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace deepwell {
namespace {

using Ints = nb::ndarray<const int32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Table = nb::ndarray<const int32_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Floats = nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Floats2 = nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Result = nb::ndarray<nb::numpy, float, nb::ndim<2>>;

struct Output {
  float* data;
  nb::object array;
};

Output new_array(size_t rows, size_t cols) {
  float* data = new float[rows * cols];
  nb::capsule owner(data, [](void* p) noexcept { delete[] static_cast<float*>(p); });
  return {data, nb::cast(Result(data, {rows, cols}, owner))};
}

void fill(Matrix& m, int index, int row_start, const Floats2& values) {
  require(static_cast<int>(values.shape(1)) == m.cols(), "the rows have " + std::to_string(values.shape(1)) +
          " columns, the matrix has " + std::to_string(m.cols()));
  const int rows = static_cast<int>(values.shape(0));
  const Released release;
  m.fill(index, row_start, rows, values.data());
}

using Blocks = nb::ndarray<const uint8_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Codes8 = nb::ndarray<const int8_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Halves = nb::ndarray<const uint16_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

void fill_blocks(Matrix& m, int index, int row_start, const Blocks& blocks) {
  require(blocks.shape(1) == m.row_bytes(), "the rows have " + std::to_string(blocks.shape(1)) +
          " bytes, the matrix needs " + std::to_string(m.row_bytes()));
  const Released release;
  m.fill_blocks(index, row_start, static_cast<int>(blocks.shape(0)), blocks.data());
}

void fill_coded(Matrix& m, int index, int row_start, const Codes8& q, const Halves& d) {
  require(static_cast<int>(q.shape(1)) == m.cols() && d.shape(0) == q.shape(0) &&
              d.shape(1) == ceil_div(m.cols(), kGroup),
          "codes must be n x " + std::to_string(m.cols()) + " and scales n x " +
              std::to_string(ceil_div(m.cols(), kGroup)));
  const Released release;
  m.fill_coded(index, row_start, static_cast<int>(q.shape(0)), q.data(), d.data());
}

using Raw = nb::ndarray<const uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Bytes = nb::ndarray<nb::numpy, const uint8_t, nb::ndim<1>>;

// The bytes without a copy; they keep `owner` alive.
nb::object view_of(const uint8_t* bytes, size_t size, nb::handle owner) {
  return nb::cast(Bytes(bytes, {size}, owner), nb::rv_policy::reference);
}

nb::object dequantize(const Matrix& m, int index) {
  require(index >= 0 && index < m.count(), "matrix index " + std::to_string(index) + " is out of range");
  Output out = new_array(m.rows(), m.cols());
  for (int r = 0; r < m.rows(); ++r) m.read_row(index, r, out.data + static_cast<size_t>(r) * m.cols());
  return out.array;
}

Batch batch_of(const Ints& tokens, const Ints& positions, const Ints& sequence, const Table& table,
               const Ints& selected) {
  require(tokens.size() == positions.size() && tokens.size() == sequence.size(),
          "tokens, positions and sequence must have the same length");
  return {tokens.data(), positions.data(), sequence.data(), table.data(), selected.data(),
          static_cast<int>(tokens.size()), static_cast<int>(table.shape(0)),
          static_cast<int>(table.shape(1)), static_cast<int>(selected.size())};
}

std::vector<const float*> inputs_of(const Program& program, const std::vector<Floats2>& inputs, size_t rows) {
  require(inputs.size() == program.inputs().size(), "the plan takes " + std::to_string(program.inputs().size()) +
          " inputs, not " + std::to_string(inputs.size()));
  std::vector<const float*> from;
  for (size_t i = 0; i < inputs.size(); ++i) {
    const int width = program.inputs()[i].width;
    require(inputs[i].shape(0) == rows && static_cast<int>(inputs[i].shape(1)) == width,
            "an input must have a row of " + std::to_string(width) + " columns for every token");
    from.push_back(inputs[i].data());
  }
  return from;
}

// Room for the further results: appended to `results`.
std::vector<float*> further_of(const Program& program, const Batch& batch, std::vector<nb::object>& results) {
  std::vector<float*> further;
  for (const View& v : program.further()) {
    const Output out = new_array(v.selected ? batch.wanted : batch.rows, v.width);
    further.push_back(out.data);
    results.push_back(out.array);
  }
  return further;
}

std::vector<nb::object> run(Program& program, const Ints& tokens, const Ints& positions, const Ints& sequence,
                            const Table& table, const Ints& selected, const Cache& cache,
                            const std::vector<Floats2>& inputs) {
  const Batch batch = batch_of(tokens, positions, sequence, table, selected);
  const auto from = inputs_of(program, inputs, tokens.size());
  const Output logits = new_array(selected.size(), program.logits_width());
  std::vector<nb::object> results{logits.array};
  const auto further = further_of(program, batch, results);
  {
    const Released release;
    program.run(batch, cache, logits.data, from, further);
  }
  return results;
}

std::pair<nb::list, std::vector<nb::object>> step(Program& program, const Ints& tokens, const Ints& positions,
                                                  const Ints& sequence, const Table& table, const Ints& selected,
                                                  const Cache& cache, const std::vector<Floats2>& inputs,
                                                  const nb::sequence& given, bool states) {
  const Batch batch = batch_of(tokens, positions, sequence, table, selected);
  const auto from = inputs_of(program, inputs, tokens.size());
  const int vocab = program.logits_width();
  const Asks asks = asks_of(given, batch.wanted, vocab);
  std::vector<nb::object> results;
  const auto further = states ? further_of(program, batch, results) : std::vector<float*>{};
  std::vector<Chosen> chosen;
  {
    const Released release;
    program.step(batch, cache, from, further,
                 [&](const float* logits) { chosen = choose(logits, vocab, asks.all); });
  }
  return {answers_of(chosen), std::move(results)};
}

void bind_data(nb::module_& m) {
  nb::class_<MappedFile>(m, "MappedFile")
      .def(nb::init<const std::string&>(), "path"_a)
      .def_prop_ro("size", &MappedFile::size)
      .def("bytes", [](nb::handle self) {
        const auto& x = nb::cast<const MappedFile&>(self);
        return view_of(x.bytes(), x.size(), self);
      });
  nb::class_<Matrix>(m, "Matrix")
      .def("__init__", [](Matrix* self, int count, int rows, int cols, const std::string& storage, bool pairs) {
        new (self) Matrix(count, rows, cols, parse_storage(storage), pairs);
      }, "count"_a, "rows"_a, "cols"_a, "storage"_a, "pairs"_a = false)
      .def_static("mapped", [](int count, int rows, int cols, const std::string& storage, bool pairs,
                               std::shared_ptr<MappedFile> file, size_t offset) {
        return std::make_shared<Matrix>(count, rows, cols, parse_storage(storage), pairs, std::move(file), offset);
      }, "count"_a, "rows"_a, "cols"_a, "storage"_a, "pairs"_a, "file"_a, "offset"_a)
      .def_static("packed_bytes", [](int count, int rows, int cols, const std::string& storage, bool pairs) {
        return Matrix::packed_bytes(count, rows, cols, parse_storage(storage), pairs);
      }, "count"_a, "rows"_a, "cols"_a, "storage"_a, "pairs"_a = false)
      .def("bytes", [](nb::handle self) {
        const auto& x = nb::cast<const Matrix&>(self);
        return view_of(x.bytes(), x.nbytes(), self);
      })
      .def("fill", &fill, "index"_a, "row_start"_a, "values"_a)
      .def("fill_blocks", &fill_blocks, "index"_a, "row_start"_a, "blocks"_a)
      .def("fill_coded", &fill_coded, "index"_a, "row_start"_a, "codes"_a, "scales"_a)
      .def("dequantize", &dequantize, "index"_a = 0)
      .def_prop_ro("count", &Matrix::count)
      .def_prop_ro("rows", &Matrix::rows)
      .def_prop_ro("cols", &Matrix::cols)
      .def_prop_ro("storage", [](const Matrix& x) { return storage_name(x.storage()); })
      .def_prop_ro("pairs", &Matrix::pairs)
      .def_prop_ro("nbytes", &Matrix::nbytes);
  nb::class_<Vector>(m, "Vector")
      .def("__init__", [](Vector* self, const Floats& values) {
        new (self) Vector{{values.data(), values.data() + values.size()}};
      }, "values"_a)
      .def_prop_ro("size", &Vector::size)
      .def_prop_ro("values", [](const Vector& x) {
        Output out = new_array(1, x.values.size());
        std::copy(x.values.begin(), x.values.end(), out.data);
        return out.array;
      });
  nb::class_<Cache>(m, "Cache")
      .def(nb::init<const std::vector<int>&, int, bool>(), "layer_widths"_a, "blocks"_a, "bfloat16"_a = false)
      .def_prop_ro("bfloat16", &Cache::bfloat16)
      .def_prop_ro("blocks", &Cache::blocks)
      .def_prop_ro("layer_widths", &Cache::layer_widths)
      .def_prop_ro("block_bytes", &Cache::block_bytes)
      .def("read", [](const Cache& cache, int block) {
        std::vector<uint8_t> bytes(cache.block_bytes());
        cache.read(block, bytes.data());
        return nb::bytes(bytes.data(), bytes.size());
      }, "block"_a, "The bytes of a block: its pages of all layers, one after the other.")
      .def("write", [](Cache& cache, int block, const nb::bytes& bytes) {
        cache.write(block, reinterpret_cast<const uint8_t*>(bytes.c_str()), bytes.size());
      }, "block"_a, "bytes"_a, "Set a block to what `read` gave.")
      .def_prop_ro("nbytes", &Cache::nbytes);
  nb::class_<View>(m, "View")
      .def_ro("width", &View::width)
      .def_ro("selected", &View::selected);
}

void bind_program(nb::module_& m) {
  nb::class_<Program>(m, "Program")
      .def(nb::init<>())
      .def("input", &Program::input, "width"_a)
      .def("embed", &Program::embed, "table"_a)
      .def("rms_norm", &Program::rms_norm, "x"_a, "weight"_a, "eps"_a, "heads"_a)
      .def("layer_norm", &Program::layer_norm, "x"_a, "weight"_a, "bias"_a, "eps"_a)
      .def("linear", &Program::linear, "x"_a, "weight"_a, "bias"_a.none())
      .def("head", &Program::head, "x"_a, "weight"_a)
      .def("split", &Program::split, "x"_a, "widths"_a)
      .def("concat", &Program::concat, "xs"_a)
      .def("add", &Program::add, "x"_a, "y"_a)
      .def("rope", [](Program& p, View x, int heads, std::vector<float> inv_freq, bool interleaved, float magnitude,
                      bool leading) {
        return p.rope(x, heads, {std::move(inv_freq), interleaved, magnitude, leading});
      }, "x"_a, "heads"_a, "inv_freq"_a, "interleaved"_a, "magnitude"_a, "leading"_a)
      .def("gqa", [](Program& p, View q, View k, View v, int layer, int heads, int kv_heads, int head_dim,
                     float scale) { return p.gqa(q, k, v, layer, {heads, kv_heads, head_dim, scale}); },
           "q"_a, "k"_a, "v"_a, "layer"_a, "heads"_a, "kv_heads"_a, "head_dim"_a, "scale"_a)
      .def("index", [](Program& p, View q, View k, View weights, int layer, int heads, int head_dim, int top_k,
                       float scale) { return p.index(q, k, weights, layer, {heads, head_dim, top_k, scale}); },
           "q"_a, "k"_a, "weights"_a, "layer"_a, "heads"_a, "head_dim"_a, "top_k"_a, "scale"_a)
      .def("mla", [](Program& p, View q, View latent, View k_rope, MatrixPtr k_b, MatrixPtr v_b, int layer, int heads,
                     int nope, int rope, int value, float scale, const View* chosen) {
        return p.mla(q, latent, k_rope, k_b, v_b, layer, {heads, nope, rope, value, latent.width, scale}, chosen);
      }, "q"_a, "latent"_a, "k_rope"_a, "k_b"_a, "v_b"_a, "layer"_a, "heads"_a, "nope"_a, "rope"_a, "value"_a,
         "scale"_a, "chosen"_a.none())
      .def("gated", &Program::gated, "x"_a, "weight"_a, "bias"_a.none())
      .def("moe", [](Program& p, View x, MatrixPtr router, VectorPtr bias, MatrixPtr gate_up, MatrixPtr down,
                     MatrixPtr shared_gate_up, MatrixPtr shared_down, int top_k, bool softmax, const std::string& method, int n_group, int topk_group, bool normalize,
                     float scale) {
        require(router != nullptr, "the router is missing");
        const Routing r{router->rows(), top_k, softmax, parse_method(method), n_group, topk_group, normalize, scale};
        return p.moe(x, router, bias, gate_up, down, shared_gate_up, shared_down, r);
      }, "x"_a, "router"_a, "bias"_a.none(), "gate_up"_a, "down"_a, "shared_gate_up"_a.none(),
         "shared_down"_a.none(), "top_k"_a, "softmax"_a, "method"_a, "n_group"_a,
         "topk_group"_a, "normalize"_a, "scale"_a)
      .def("select", &Program::select, "x"_a)
      .def("finish", &Program::finish, "logits"_a, "further"_a)
      .def_prop_ro("logits_width", &Program::logits_width)
      .def("bytes", &Program::bytes, "rows"_a, "wanted"_a)
      .def("step", &step, "tokens"_a.noconvert(), "positions"_a.noconvert(), "sequence"_a.noconvert(),
           "block_table"_a.noconvert(), "selected"_a.noconvert(), "cache"_a, "inputs"_a, "asks"_a, "states"_a)
      .def("run", &run, "tokens"_a.noconvert(), "positions"_a.noconvert(), "sequence"_a.noconvert(),
           "block_table"_a.noconvert(), "selected"_a.noconvert(), "cache"_a, "inputs"_a);
}

void bind_limits(nb::module_& m) {
  m.def("read_bandwidth", &read_bandwidth, "bytes"_a, "rounds"_a, nb::call_guard<Released>());
  m.def("peak", [](const std::string& kind, int rounds) -> std::optional<std::pair<std::string, std::vector<double>>> {
    const Released release;
    auto found = peak(kind, rounds);
    if (!found) return std::nullopt;
    return std::pair(std::move(found->instruction), std::move(found->rates));
  }, "kind"_a, "rounds"_a);
}

}  // namespace
}  // namespace deepwell

NB_MODULE(_native, m) {
  using namespace deepwell;
  m.doc() = "Deepwell's kernels and plans for CPUs.";
  Released::watch_exit();
  m.def("isa", &isa, "The instruction set in use.");
  m.def("available_isas", &available_isas, "Instruction sets this machine can run, best first.");
  m.def("set_isa", &set_isa, "name"_a, "Force an instruction set.");
  m.def("threads", &threads, "Threads a step uses.");
  m.def("set_threads", &set_threads, "n"_a, "Choose how many threads a step uses, 1 to 1024.");
  m.def("exp", [](const Floats& x) {
    Output out = new_array(1, x.size());
    kernels().exp(x.data(), out.data, static_cast<int>(x.size()));
    return out.array;
  }, "x"_a, "The exponential the kernels use; a row of results.");
  m.def("checksum", [](const Raw& bytes) {
    const Released release;
    return checksum(bytes.data(), bytes.size());
  }, "bytes"_a, "A 64-bit sum of bytes that finds damage, not forgery; computed by all threads.");
  m.def("storages", [] {
    std::vector<std::tuple<std::string, double, int, size_t>> all;
    for (int i = 0; i < kStorages; ++i) {
      const BlockSize block = kStorageTable[i].ggml;
      all.emplace_back(kStorageTable[i].name, bits_per_weight(static_cast<Storage>(i)), block.cols, block.bytes);
    }
    return all;
  }, "Of each storage, in order: name, bits per weight, columns and bytes of the ggml block of the same values.");
  bind_limits(m);
  bind_data(m);
  bind_program(m);
  bind_sampling(m);
  bind_search(m);
}
