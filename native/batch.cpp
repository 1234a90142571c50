#include "batch.h"

#include <algorithm>
#include <vector>

#include "common.h"

namespace deepwell {

namespace {

std::string at_row(int t) { return " (row " + std::to_string(t) + ")"; }

void check_row(const Batch& b, int t, int vocabulary) {
  const auto in = [t](int value, int end, const char* what) {
    require(value >= 0 && value < end, std::string(what) + " " + std::to_string(value) + " is outside 0.." +
                                           std::to_string(end - 1) + at_row(t));
  };
  in(b.tokens[t], vocabulary, "token");
  in(b.sequence[t], b.sequences, "sequence");
  require(b.positions[t] >= 0, "position " + std::to_string(b.positions[t]) + " is negative" + at_row(t));
  require(b.positions[t] / kBlockTokens < b.pages, "position " + std::to_string(b.positions[t]) +
          " needs more pages than the block table's " + std::to_string(b.pages) + at_row(t));
}

// Rows [first, last) are one sequence's: its pages must exist; those written now are noted.
void check_pages(const Batch& b, int first, int last, int blocks, std::vector<int32_t>& written) {
  const int32_t* table = b.table(first);
  const int pages = b.positions[last - 1] / kBlockTokens + 1;
  for (int p = 0; p < pages; ++p)
    require(table[p] >= 0 && table[p] < blocks, "block " + std::to_string(table[p]) + " of sequence " +
            std::to_string(b.sequence[first]) + " is outside 0.." + std::to_string(blocks - 1));
  for (int p = b.positions[first] / kBlockTokens; p < pages; ++p) written.push_back(table[p]);
}

}  // namespace

void check(const Batch& b, int vocabulary, int blocks) {
  require(b.rows >= 1, "a step needs at least one token");
  std::vector<char> seen(b.sequences, 0);
  std::vector<int32_t> written;
  int first = 0;
  for (int t = 0; t < b.rows; ++t) {
    check_row(b, t, vocabulary);
    const bool starts = t == 0 || b.sequence[t] != b.sequence[t - 1];
    if (starts) {
      require(!seen[b.sequence[t]], "the rows of sequence " + std::to_string(b.sequence[t]) + " are not consecutive" +
                                        at_row(t));
      seen[b.sequence[t]] = 1;
      first = t;
    } else {
      require(b.positions[t] == b.positions[t - 1] + 1, "positions of a sequence must ascend by one" + at_row(t));
    }
    if (t + 1 == b.rows || b.sequence[t + 1] != b.sequence[t]) check_pages(b, first, t + 1, blocks, written);
  }
  std::sort(written.begin(), written.end());
  const auto twice = std::adjacent_find(written.begin(), written.end());
  if (twice != written.end()) fail("two sequences write block " + std::to_string(*twice));
  for (int i = 0; i < b.wanted; ++i)
    require(b.selected[i] >= 0 && b.selected[i] < b.rows, "selected row " + std::to_string(b.selected[i]) +
            " is outside 0.." + std::to_string(b.rows - 1));
}

}  // namespace deepwell
