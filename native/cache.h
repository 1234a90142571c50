// The paged KV cache: per layer, `blocks` pages of 64 tokens, in float32 or bfloat16.
//
// A layer's width is 2 * kv_heads * head_dim for grouped-query attention, latent + rope for latent attention, and
// head_dim for the keys of an indexer, which are laid out like grouped-query keys of one head.
// float32: grouped-query keeps keys as [kv_heads][head_dim][64], so that a vector holds 16 tokens, then values as
// [kv_heads][64][head_dim]; latent keeps [64][latent | rope]. bfloat16: kernels_cached.h states the layouts; rows are
// rounded up to 32 values. Slots never written are never used.
#pragma once
#include <cstring>
#include <vector>

#include "common.h"
#include "memory.h"

namespace deepwell {

class Cache {
 public:
  Cache(const std::vector<int>& layer_widths, int blocks, bool bfloat16)
      : widths_(layer_widths), blocks_(blocks), bfloat16_(bfloat16) {
    require(blocks >= 1, "a cache needs at least 1 block, not " + std::to_string(blocks));
    for (int width : layer_widths) {
      require(width >= 1, "a cache layer needs a width of at least 1, not " + std::to_string(width));
      const size_t bytes = static_cast<size_t>(kBlockTokens) * stride(width) * (bfloat16 ? 2 : 4) * blocks;
      layers_.emplace_back(bytes, bytes >= kHugeBytes);
    }
  }

  Cache(const Cache&) = delete;

  int blocks() const { return blocks_; }
  bool bfloat16() const { return bfloat16_; }
  const std::vector<int>& layer_widths() const { return widths_; }
  // Values of a page, in the cache's type.
  size_t page_values(int layer) const { return static_cast<size_t>(kBlockTokens) * stride(widths_[layer]); }
  float* floats(int layer) const { return layers_[layer].floats(); }
  uint16_t* halves(int layer) const { return reinterpret_cast<uint16_t*>(layers_[layer].bytes()); }
  // Bytes of a block: its pages of all layers, one after the other.
  size_t block_bytes() const {
    size_t n = 0;
    for (int layer = 0; layer < static_cast<int>(layers_.size()); ++layer) n += page_bytes(layer);
    return n;
  }
  void read(int block, uint8_t* to) const { copy(block, [&](uint8_t* page, size_t n) { std::memcpy(to, page, n); to += n; }); }
  void write(int block, const uint8_t* from, size_t bytes) {
    require(bytes == block_bytes(), "a block of this cache has " + std::to_string(block_bytes()) + " bytes, not " +
                                        std::to_string(bytes));
    copy(block, [&](uint8_t* page, size_t n) { std::memcpy(page, from, n); from += n; });
  }
  size_t nbytes() const {
    size_t n = 0;
    for (const Buffer& b : layers_) n += b.size();
    return n;
  }

 private:
  static constexpr size_t kHugeBytes = size_t{64} << 20;
  size_t page_bytes(int layer) const { return page_values(layer) * (bfloat16_ ? 2 : 4); }
  template <class F>
  void copy(int block, F&& each) const {
    require(block >= 0 && block < blocks_, "block " + std::to_string(block) + " is outside 0.." +
                                               std::to_string(blocks_ - 1));
    for (int layer = 0; layer < static_cast<int>(layers_.size()); ++layer)
      each(layers_[layer].bytes() + page_bytes(layer) * block, page_bytes(layer));
  }
  int stride(int width) const { return bfloat16_ ? static_cast<int>(round_up(width, 32)) : width; }

  std::vector<int> widths_;
  int blocks_;
  bool bfloat16_;
  std::vector<Buffer> layers_;
};

}  // namespace deepwell
