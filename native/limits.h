// What the machine allows: read bandwidth and the peaks of its multiply instructions, with the pool's threads.
#pragma once
#include <cstddef>
#include <optional>
#include <string>
#include <vector>

namespace deepwell {

// Bytes per second of reading `bytes` of memory once, one figure per round. Memory is taken in huge pages where the
// system gives them, and freed at the end. Raises for bytes below 1 MiB or rounds below 1.
std::vector<double> read_bandwidth(size_t bytes, int rounds);

// Operations per second (a multiply-add counts as two) of an instruction that touches registers only.
struct Peak {
  std::string instruction;
  std::vector<double> rates;  // one per round
};

// `kind` is int8 (dot product of bytes), bf16 (dot product of bfloat16) or fma (float32). None where the processor has
// no such instruction. Raises for another kind or rounds below 1.
std::optional<Peak> peak(const std::string& kind, int rounds);

}  // namespace deepwell
