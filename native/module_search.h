// Python's view of the searching quantisers.
#pragma once
#include <nanobind/nanobind.h>

namespace deepwell {

void bind_search(nanobind::module_& m);

}  // namespace deepwell
