// Python's view of the searching quantisers.
#include "module_search.h"

#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/tuple.h>

#include "common.h"
#include "released.h"
#include "search.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace deepwell {
namespace {

using Values = nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Importance = std::optional<nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu>>;

template <class T>
using Array = nb::ndarray<nb::numpy, T, nb::ndim<2>>;

template <class T>
Array<T> zeros(size_t rows, size_t cols) {
  T* data = new T[rows * cols]();
  return Array<T>(data, {rows, cols}, nb::capsule(data, [](void* p) noexcept { delete[] static_cast<T*>(p); }));
}

const float* checked(const Values& values, const Importance& importance, size_t multiple) {
  const size_t cols = values.shape(1);
  require(cols % multiple == 0, "rows have " + std::to_string(cols) + " values; a multiple of " +
          std::to_string(multiple) + " is needed");
  require(!importance || importance->size() == cols, "importance needs a value for each of the " +
          std::to_string(cols) + " columns");
  require(values.shape(0) * cols < size_t{1} << 31, "more values than are searched at once");
  return importance ? importance->data() : nullptr;
}

auto scales(const Values& values, int bits, const Importance& importance) {
  const float* weight = checked(values, importance, 1);
  const size_t n = values.shape(0), cols = values.shape(1);
  auto q = zeros<int8_t>(n, cols);
  auto d = zeros<uint16_t>(n, ceil_div(cols, kGroup));
  {
    const Released release;
    search_scales(values.data(), n, cols, bits, weight, q.data(), d.data());
  }
  return std::tuple(q, d);
}

auto q4_k(const Values& values, const Importance& importance) {
  const float* weight = checked(values, importance, 256);
  const size_t n = values.shape(0), cols = values.shape(1), blocks = n * cols / 256;
  auto q = zeros<uint8_t>(blocks, 256), s = zeros<uint8_t>(blocks, 8), m = zeros<uint8_t>(blocks, 8);
  auto d = zeros<uint16_t>(blocks, 1), dmin = zeros<uint16_t>(blocks, 1);
  {
    const Released release;
    search_q4_k(values.data(), n, cols, weight, q.data(), s.data(), m.data(), d.data(), dmin.data());
  }
  return std::tuple(q, s, m, d, dmin);
}

auto q6_k(const Values& values, const Importance& importance) {
  const float* weight = checked(values, importance, 256);
  const size_t n = values.shape(0), cols = values.shape(1), blocks = n * cols / 256;
  auto q = zeros<int8_t>(blocks, 256), s = zeros<int8_t>(blocks, 16);
  auto d = zeros<uint16_t>(blocks, 1);
  {
    const Released release;
    search_q6_k(values.data(), n, cols, weight, q.data(), s.data(), d.data());
  }
  return std::tuple(q, s, d);
}

}  // namespace

void bind_search(nb::module_& m) {
  m.def("search_scales", &scales, "values"_a.noconvert(), "bits"_a, "importance"_a.noconvert().none() = nb::none(),
        "Codes of 4 or 5 bits and the bits of float16 scales per 32 columns, of the least weighted error.");
  m.def("search_q4_k", &q4_k, "values"_a.noconvert(), "importance"_a.noconvert().none() = nb::none(),
        "Codes, scales, minimums and the bits of d and dmin of ggml's q4_k.");
  m.def("search_q6_k", &q6_k, "values"_a.noconvert(), "importance"_a.noconvert().none() = nb::none(),
        "Codes, scales and the bits of d of ggml's q6_k.");
}

}  // namespace deepwell
