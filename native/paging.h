// Where a row's token lives in the paged cache.
#pragma once
#include "program.h"

namespace deepwell {

inline int page_of(const Step& step, int row) {
  return step.batch.table(row)[step.batch.positions[row] / kBlockTokens];
}
inline int slot_of(const Step& step, int row) { return step.batch.positions[row] % kBlockTokens; }

}  // namespace deepwell
