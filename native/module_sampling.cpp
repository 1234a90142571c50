#include "module_sampling.h"

#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/vector.h>

#include "isa.h"
#include "released.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace deepwell {
namespace {

using Masks = nb::ndarray<const uint32_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Logits = nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Doubles = nb::ndarray<const double, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

template <class T>
T field(nb::handle ask, const char* name, size_t index, bool convert = true) {
  try {
    return nb::cast<T>(ask.attr(name), convert);
  } catch (const nb::cast_error&) {
    fail("ask " + std::to_string(index) + ": its " + name + " cannot be read");
  }
}

template <class T>
std::vector<T> tuple_field(nb::handle ask, const char* name, size_t index) {
  const nb::object values = ask.attr(name);
  if (nb::len(values) == 0) return {};
  return field<std::vector<T>>(ask, name, index);
}

const uint32_t* masks_of(nb::handle ask, size_t index, size_t rows, int vocab, std::vector<nb::object>& kept) {
  const nb::object given = ask.attr("masks");
  if (given.is_none()) return nullptr;
  const auto masks = field<Masks>(ask, "masks", index, false);  // a converted copy would not outlive this call
  const size_t words = ceil_div(vocab, 32);
  require(masks.shape(0) == rows && masks.shape(1) == words,
          "the masks of ask " + std::to_string(index) + " are " + std::to_string(masks.shape(0)) + " x " +
              std::to_string(masks.shape(1)) + ", expected " + std::to_string(rows) + " x " + std::to_string(words));
  kept.push_back(given);
  return masks.data();
}

nb::tuple logprob_of(const RowLogprob& from) {
  nb::list top;
  for (const auto& [token, logprob] : from.top) top.append(nb::make_tuple(token, logprob));
  return nb::make_tuple(from.token, from.logprob, nb::tuple(top));
}

nb::tuple logprobs_of(const std::vector<RowLogprob>& from) {
  nb::list all;
  for (const RowLogprob& one : from) all.append(logprob_of(one));
  return nb::tuple(all);
}

nb::list choose_by(const Logits& logits, const nb::sequence& given) {
  const int rows = static_cast<int>(logits.shape(0)), vocab = static_cast<int>(logits.shape(1));
  const Asks asks = asks_of(given, rows, vocab);
  std::vector<Chosen> chosen;
  {
    const Released release;
    chosen = choose(logits.data(), vocab, asks.all);
  }
  return answers_of(chosen);
}

}  // namespace

Asks asks_of(const nb::sequence& given, int rows, int vocab) {
  Asks asks;
  size_t i = 0;
  for (nb::handle ask : given) {
    Ask a{field<Sampler*>(ask, "sampler", i), field<int>(ask, "rows", i), tuple_field<int64_t>(ask, "score", i),
          field<bool>(ask, "choose", i), tuple_field<int64_t>(ask, "draft", i),
          tuple_field<double>(ask, "points", i),
          field<std::optional<int64_t>>(ask, "logprobs", i), field<std::optional<int64_t>>(ask, "score_logprobs", i),
          nullptr};
    require(a.sampler != nullptr, "ask " + std::to_string(i) + " has no sampler");
    a.masks = masks_of(ask, i, 1 + a.draft.size(), vocab, asks.kept);
    asks.all.push_back(std::move(a));
    ++i;
  }
  check(asks.all, rows, vocab);
  return asks;
}

nb::list answers_of(const std::vector<Chosen>& chosen) {
  nb::list answers;
  for (const Chosen& c : chosen) {
    nb::list tokens;
    for (int64_t token : c.tokens) tokens.append(token);
    answers.append(nb::make_tuple(nb::tuple(tokens), logprobs_of(c.logprobs), logprobs_of(c.scores), c.sound));
  }
  return answers;
}

void bind_sampling(nb::module_& m) {
  nb::class_<Sampler>(m, "Sampler")
      .def("__init__", [](Sampler* self, int vocab, double temperature, double top_p, int64_t top_k, double min_p,
                          double presence, double frequency, double repetition,
                          const std::vector<std::pair<int64_t, double>>& bias, const std::vector<int64_t>& prompt) {
        new (self) Sampler({temperature, top_p, top_k, min_p, presence, frequency, repetition}, vocab, bias, prompt);
      }, "vocab"_a, "temperature"_a, "top_p"_a, "top_k"_a, "min_p"_a, "presence"_a, "frequency"_a, "repetition"_a,
         "bias"_a, "prompt"_a)
      .def_prop_ro("vocab", &Sampler::vocab);
  m.def("choose", &choose_by, "logits"_a.noconvert(), "asks"_a);
  m.def("log", &natural_log, "x"_a, "The logarithm that sampling uses, for numbers from 1 on.");
  m.def("exp_double", [](const Doubles& x) {
    std::vector<double> out(x.size());
    double values[kChunk], weights[kChunk];
    for (size_t start = 0; start < x.size(); start += kChunk) {
      for (size_t i = 0; i < kChunk; ++i) values[i] = start + i < x.size() ? x.data()[start + i] : 0;
      kernels().chunk_weights(values, 0, 1, weights);
      for (size_t i = 0; i < kChunk && start + i < x.size(); ++i) out[start + i] = weights[i];
    }
    return out;
  }, "x"_a.noconvert(), "The exponential that sampling uses, for numbers up to 0.");
}

}  // namespace deepwell
