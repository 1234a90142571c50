#include "memory.h"

#include <cstdlib>
#include <cstring>
#include <new>
#include <utility>

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>

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

// Maps `fd` at a multiple of 2 MiB, over a reservation that is then trimmed to it.
uint8_t* map_descriptor(int fd, size_t bytes) {
  const size_t length = round_up(bytes, kHugePage);
  void* whole = mmap(nullptr, length + kHugePage, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (whole == MAP_FAILED) return nullptr;
  uint8_t* base = static_cast<uint8_t*>(whole);
  uint8_t* start = base + (round_up(reinterpret_cast<uintptr_t>(base), kHugePage) - reinterpret_cast<uintptr_t>(base));
  void* mapped = mmap(start, bytes, PROT_READ, MAP_PRIVATE | MAP_FIXED, fd, 0);
  if (mapped == MAP_FAILED) {
    const int error = errno;
    munmap(base, length + kHugePage);
    errno = error;
    return nullptr;
  }
  const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  uint8_t* end = start + round_up(bytes, page);
  if (start > base) munmap(base, start - base);
  if (end < base + length + kHugePage) munmap(end, base + length + kHugePage - end);
#if defined(__linux__)
  madvise(start, bytes, MADV_HUGEPAGE);
#endif
  return start;
}

}  // namespace

MappedFile::MappedFile(const std::string& path) {
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  require(fd >= 0, std::string("cannot be opened: ") + std::strerror(errno));
  struct stat about;
  if (fstat(fd, &about) == 0 && S_ISREG(about.st_mode) && about.st_size > 0) {
    size_ = static_cast<size_t>(about.st_size);
    data_ = map_descriptor(fd, size_);
  } else {
    errno = EINVAL;
  }
  const int error = errno;
  close(fd);
  require(data_ != nullptr, std::string("cannot be mapped: ") + std::strerror(error));
}

MappedFile::~MappedFile() { munmap(data_, size_); }

Buffer::Buffer(std::shared_ptr<const MappedFile> file, size_t offset, size_t bytes) : size_(bytes) {
  require(offset % 64 == 0, "byte " + std::to_string(offset) + " of a file is no multiple of 64");
  require(offset <= file->size() && bytes <= file->size() - offset,
          std::to_string(bytes) + " bytes from byte " + std::to_string(offset) + " on do not fit in a file of " +
              std::to_string(file->size()));
  data_ = const_cast<uint8_t*>(file->bytes()) + offset;
  file_ = std::move(file);
}

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
  if (file_) return;
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
      mapped_(std::exchange(other.mapped_, 0)),
      file_(std::move(other.file_)) {}

Buffer& Buffer::operator=(Buffer&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  std::swap(mapped_, other.mapped_);
  std::swap(file_, other.file_);
  return *this;
}

}  // namespace deepwell
