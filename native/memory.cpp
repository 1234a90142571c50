#include "memory.h"

#include <cstdlib>
#include <cstring>
#include <new>
#include <utility>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "common.h"

namespace deepwell {

namespace {

constexpr size_t kHugePage = size_t{2} << 20;
constexpr size_t kMapped = size_t{64} << 10;  // from here on the system's own pages, which come zeroed and on first use

#if defined(__linux__)
uint8_t* map_pages(size_t bytes, bool huge) {
  const size_t alignment = huge ? kHugePage : 4096, length = round_up(bytes, alignment);
  void* whole = mmap(nullptr, length + alignment, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (whole == MAP_FAILED) throw std::bad_alloc();
  uint8_t* base = static_cast<uint8_t*>(whole);
  const size_t before = round_up(reinterpret_cast<uintptr_t>(base), alignment) - reinterpret_cast<uintptr_t>(base);
  if (before) munmap(base, before);
  if (before < alignment) munmap(base + before + length, alignment - before);
  if (huge) madvise(base + before, length, MADV_HUGEPAGE);
  return base + before;
}
#endif

}  // namespace

Buffer::Buffer(size_t bytes, bool huge_pages) : size_(bytes) {
  if (bytes == 0) return;
#if defined(__linux__)
  if (bytes >= kMapped) {
    const bool huge = huge_pages && bytes >= 2 * kHugePage;
    data_ = map_pages(bytes, huge);
    mapped_ = round_up(bytes, huge ? kHugePage : 4096);
    return;
  }
#endif
  data_ = static_cast<uint8_t*>(std::aligned_alloc(64, round_up(bytes, 64)));
  if (!data_) throw std::bad_alloc();
  std::memset(data_, 0, bytes);
}

Buffer::~Buffer() {
#if defined(__linux__)
  if (mapped_) {
    munmap(data_, mapped_);
    return;
  }
#endif
  std::free(data_);
}

Buffer::Buffer(Buffer&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)),
      size_(std::exchange(other.size_, 0)),
      mapped_(std::exchange(other.mapped_, 0)) {}

Buffer& Buffer::operator=(Buffer&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  std::swap(mapped_, other.mapped_);
  return *this;
}

}  // namespace deepwell
