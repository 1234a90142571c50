// The rows of one step, as ops/base.py defines them, and the check that nothing in them points outside.
#pragma once
#include <cstdint>

namespace deepwell {

struct Batch {
  const int32_t* tokens;
  const int32_t* positions;
  const int32_t* sequence;
  const int32_t* block_table;
  const int32_t* selected;
  int rows;       // T
  int sequences;  // S
  int pages;      // P
  int wanted;     // L

  const int32_t* table(int row) const { return block_table + static_cast<int64_t>(sequence[row]) * pages; }
};

// Raises unless tokens are below `vocabulary`, pages below `blocks`, rows of a sequence consecutive with positions that
// ascend by one, and no page is written by two sequences.
void check(const Batch& batch, int vocabulary, int blocks);

}  // namespace deepwell
