// Zeroed memory, aligned to 64 bytes, that the system hands out page by page, in huge pages where it can and is asked.
#pragma once
#include <cstddef>
#include <cstdint>

namespace deepwell {

class Buffer {
 public:
  Buffer() = default;
  Buffer(size_t bytes, bool huge_pages);
  ~Buffer();
  Buffer(Buffer&& other) noexcept;
  Buffer& operator=(Buffer&& other) noexcept;
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  size_t size() const { return size_; }
  uint8_t* bytes() const { return data_; }
  float* floats() const { return reinterpret_cast<float*>(data_); }

 private:
  uint8_t* data_ = nullptr;
  size_t size_ = 0;
  size_t mapped_ = 0;  // bytes to unmap; 0 for memory of the heap
};

}  // namespace deepwell
