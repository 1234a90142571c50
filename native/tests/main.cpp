// Compares the kernels of every instruction set that this machine has: with plain formulas in double precision, and
// with each other bit for bit. `kernels_test NAME` also demands that NAME is the one chosen at the start;
// `kernels_test NAME chosen` demands only that.
#include <cstdio>
#include <exception>
#include <string>

#include "../isa.h"
#include "checks.h"

namespace {

std::vector<const deepwell::Kernels*> plain_first() {
  std::vector<const deepwell::Kernels*> sets;
  const auto names = deepwell::available_isas();
  for (auto name = names.rbegin(); name != names.rend(); ++name) {
    deepwell::set_isa(*name);
    sets.push_back(&deepwell::kernels());
  }
  return sets;
}

int run(int argc, char** argv) {
  const std::string chosen = deepwell::isa();
  if (argc > 1 && chosen != argv[1]) {
    std::fprintf(stderr, "FAIL the instruction set chosen here is %s, not %s\n", chosen.c_str(), argv[1]);
    return 1;
  }
  if (argc > 2) return 0;
  const auto sets = plain_first();
  deepwell::Checks checks(sets);
  deepwell::check_rows(checks);
  deepwell::check_sampling(checks);
  deepwell::check_search(checks);
  deepwell::check_attention(checks);
  deepwell::check_products(checks);
  std::string names;
  for (const auto* set : sets) names += std::string(names.empty() ? "" : ", ") + set->name;
  std::printf("kernels of %s: %d results, %d failures\n", names.c_str(), checks.done(), checks.failures());
  return checks.failures() ? 1 : 0;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    return run(argc, argv);
  } catch (const std::exception& e) {
    std::fprintf(stderr, "FAIL %s\n", e.what());
    return 1;
  }
}
