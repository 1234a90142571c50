// Zeroed memory, aligned to 64 bytes, that the system hands out page by page, in huge pages where it can and is asked;
// and files mapped to be read.
#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

namespace deepwell {

// A whole file, mapped read-only. Its address is a multiple of 2 MiB, so that a file which the system caches in huge
// pages is mapped in huge pages too: then reading it is as fast as reading memory of our own, and costs no copy.
class MappedFile {
 public:
  explicit MappedFile(const std::string& path);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  size_t size() const { return size_; }
  const uint8_t* bytes() const { return data_; }

 private:
  uint8_t* data_ = nullptr;
  size_t size_ = 0;
};

class Buffer {
 public:
  Buffer() = default;
  Buffer(size_t bytes, bool huge_pages);
  // A part of a mapped file, to be read only.
  Buffer(std::shared_ptr<const MappedFile> file, size_t offset, size_t bytes);
  ~Buffer();
  Buffer(Buffer&& other) noexcept;
  Buffer& operator=(Buffer&& other) noexcept;
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  size_t size() const { return size_; }
  uint8_t* bytes() const { return data_; }
  float* floats() const { return reinterpret_cast<float*>(data_); }
  bool read_only() const { return file_ != nullptr; }

 private:
  uint8_t* data_ = nullptr;
  size_t size_ = 0;
  size_t mapped_ = 0;  // bytes to unmap; 0 for memory of the heap
  std::shared_ptr<const MappedFile> file_;  // what the bytes belong to, if not to the buffer
};

}  // namespace deepwell
