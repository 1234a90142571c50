// Python's view of sampling: asks become C++'s, answers tuples.
#pragma once
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include "sampling.h"

namespace deepwell {

// Asks as ops/sampling.py defines them, and what their pointers point into.
struct Asks {
  std::vector<Ask> all;
  std::vector<nanobind::object> kept;
};

// Raises unless they fit `rows` rows of `vocab` logits.
Asks asks_of(const nanobind::sequence& asks, int rows, int vocab);
// Per ask: tokens, log-probabilities, scores, sound; a log-probability is a token, its value, and the likeliest pairs.
nanobind::list answers_of(const std::vector<Chosen>& chosen);

void bind_sampling(nanobind::module_& m);

}  // namespace deepwell
