#include "memory.h"

#include <cstdlib>
#include <new>
#include <utility>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "common.h"

namespace deepwell {

namespace {
constexpr size_t kHugePage = size_t{2} << 20;
}

Buffer::Buffer(size_t bytes, bool huge_pages) : size_(bytes) {
  if (bytes == 0) return;
  const bool huge = huge_pages && bytes >= 2 * kHugePage;
  const size_t alignment = huge ? kHugePage : 64;
  data_ = static_cast<uint8_t*>(std::aligned_alloc(alignment, round_up(bytes, alignment)));
  if (!data_) throw std::bad_alloc();
#if defined(__linux__)
  if (huge) madvise(data_, round_up(bytes, alignment), MADV_HUGEPAGE);
#endif
}

Buffer::~Buffer() { std::free(data_); }

Buffer::Buffer(Buffer&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}

Buffer& Buffer::operator=(Buffer&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}

}  // namespace deepwell
