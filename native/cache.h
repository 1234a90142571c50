// The paged KV cache: per layer, `blocks` pages of 64 tokens, in float32 or bfloat16.
//
// A layer's width is 2 * kv_heads * head_dim for grouped-query attention, latent + rope for latent attention, and
// head_dim for the keys of an indexer, which are laid out like grouped-query keys of one head.
// float32: grouped-query keeps keys as [kv_heads][head_dim][64], so that a vector holds 16 tokens, then values as
// [kv_heads][64][head_dim]; latent keeps [64][latent | rope]. bfloat16: kernels_cached.h states the layouts; rows are
// rounded up to 32 values. Slots never written are never used.
#pragma once
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
  size_t nbytes() const {
    size_t n = 0;
    for (const Buffer& b : layers_) n += b.size();
    return n;
  }

 private:
  static constexpr size_t kHugeBytes = size_t{64} << 20;
  int stride(int width) const { return bfloat16_ ? static_cast<int>(round_up(width, 32)) : width; }

  std::vector<int> widths_;
  int blocks_;
  bool bfloat16_;
  std::vector<Buffer> layers_;
};

}  // namespace deepwell
