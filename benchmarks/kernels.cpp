// Products of quantised weights with 8-bit rows, one thread, beside a plain read of the same memory and the processor's
// 8-bit peak:
//
//   make bench-kernels                 (needs AVX-512 with VNNI and BF16)
//
// Weights stream through 768 MiB in huge pages, as a decoded token does it. "read" is an xor over the same bytes just
// before; GOPS count a multiply-add as two. What matters: one row should be as fast as reading, many rows near the peak.
#define DEEPWELL_ISA avx512_bf16
#define DEEPWELL_USE_AVX512
#include "../native/kernels_table.h"

#include <sys/mman.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <vector>

namespace {

using namespace deepwell;
using deepwell::avx512_bf16::table;

constexpr size_t kBytes = size_t{768} << 20, kHuge = size_t{2} << 20;

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

uint8_t* huge_pages() {
  void* base = mmap(nullptr, kBytes + kHuge, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  uint8_t* p = reinterpret_cast<uint8_t*>((reinterpret_cast<uintptr_t>(base) + kHuge - 1) / kHuge * kHuge);
  madvise(p, kBytes, MADV_HUGEPAGE);
  std::memset(p, 0x11, kBytes);
  return p;
}

double read_rate(const uint8_t* p) {
  const double begun = now();
  __m512i sum[4] = {};
  for (size_t i = 0; i < kBytes; i += 256)
    for (int k = 0; k < 4; ++k) sum[k] = _mm512_xor_si512(sum[k], _mm512_load_si512(p + i + 64 * k));
  const volatile long long keep = _mm512_reduce_add_epi64(sum[0] ^ sum[1] ^ sum[2] ^ sum[3]);
  (void)keep;
  return kBytes / (now() - begun);
}

// Seconds for `rows` rows over all matrices of 2048 x cols that fit, and how many bytes they are.
double product_seconds(const uint8_t* weights, Storage storage, int cols, int rows, size_t& bytes) {
  const size_t tile = codes_of(storage).tile_bytes(cols);
  const int out = 2048, matrices = static_cast<int>(kBytes / (out / 16 * tile));
  const int run = std::max(1, rows > 8 ? matrices / 8 : matrices);
  const CodedRow at(cols);
  std::vector<uint8_t> codes(at.bytes * rows + 64, 1);
  std::vector<float> values(static_cast<size_t>(rows) * out);
  std::vector<const uint8_t*> x(rows);
  std::vector<float*> y(rows);
  for (int r = 0; r < rows; ++r) {
    x[r] = codes.data() + r * at.bytes;
    y[r] = values.data() + static_cast<size_t>(r) * out;
    for (int k = 0; k < cols / kScaledCols; ++k) {
      const float scale = 1e-3f;
      std::memcpy(codes.data() + r * at.bytes + at.scales + 4 * k, &scale, 4);
    }
  }
  const double begun = now();
  for (int m = 0; m < run; ++m) {
    const Tiles w{weights + m * (out / 16 * tile), tile, out, cols, storage};
    for (int t = 0; t < out / 16; t += 16)
      for (int r = 0; r < rows; r += 128)
        table.linear_coded(w, t, t + 16, x.data() + r, y.data() + r, std::min(128, rows - r), nullptr, false);
  }
  bytes = static_cast<size_t>(run) * (out / 16) * tile;
  return now() - begun;
}

double median(std::vector<double> v) {
  std::sort(v.begin(), v.end());
  return v[v.size() / 2];
}

}  // namespace

int main() {
  const uint8_t* weights = huge_pages();
  const struct {
    Storage storage;
    const char* name;
  } storages[] = {{Storage::kInt4, "q4_0"}, {Storage::kQ4K, "q4_k"}, {Storage::kQ6K, "q6_k"}, {Storage::kInt8, "q8_0"}};
  std::printf("| weights | columns | read GB/s | 1 row GB/s | 2 rows GB/s | GOPS: 4 rows | 16 | 48 | 128 |\n");
  std::printf("|---|---|---|---|---|---|---|---|---|\n");
  for (const auto& s : storages)
    for (int cols : {2048, 4096}) {
      std::vector<double> read, rate[6];
      for (int round = 0; round < 5; ++round) {
        read.push_back(read_rate(weights) / 1e9);
        const int rows[] = {1, 2, 4, 16, 48, 128};
        for (int i = 0; i < 6; ++i) {
          size_t bytes = 0;
          const double seconds = product_seconds(weights, s.storage, cols, rows[i], bytes);
          const double weights_used = bytes / (codes_of(s.storage).tile_bytes(cols) / (16.0 * cols));
          rate[i].push_back((i < 2 ? bytes : 2 * weights_used * rows[i]) / seconds / 1e9);
        }
      }
      std::printf("| %s | %d | %.1f | %.1f | %.1f | %.0f | %.0f | %.0f | %.0f |\n", s.name, cols, median(read),
                  median(rate[0]), median(rate[1]), median(rate[2]), median(rate[3]), median(rate[4]), median(rate[5]));
      std::fflush(stdout);
    }
}
