// The paged KV cache: per layer, `blocks` pages of 64 tokens, float32.
//
// A page of a layer is 64 * width floats. Grouped-query attention (width 2 * kv_heads * head_dim) keeps keys as
// [kv_heads][head_dim][64], so that a vector holds 16 tokens, then values as [kv_heads][64][head_dim]. Latent attention
// (width latent + rope) keeps [64][latent | rope]. Slots never written are never used.
#pragma once
#include <vector>

#include "common.h"
#include "memory.h"

namespace deepwell {

class Cache {
 public:
  Cache(const std::vector<int>& layer_widths, int blocks) : widths_(layer_widths), blocks_(blocks) {
    require(blocks >= 1, "a cache needs at least 1 block, not " + std::to_string(blocks));
    for (int width : layer_widths) {
      require(width >= 1, "a cache layer needs a width of at least 1, not " + std::to_string(width));
      layers_.emplace_back(sizeof(float) * kBlockTokens * width * blocks, false);
    }
  }

  Cache(const Cache&) = delete;

  int blocks() const { return blocks_; }
  const std::vector<int>& layer_widths() const { return widths_; }
  size_t page_floats(int layer) const { return static_cast<size_t>(kBlockTokens) * widths_[layer]; }
  float* layer(int layer) const { return layers_[layer].floats(); }
  size_t nbytes() const {
    size_t n = 0;
    for (const Buffer& b : layers_) n += b.size();
    return n;
  }

 private:
  std::vector<int> widths_;
  int blocks_;
  std::vector<Buffer> layers_;
};

}  // namespace deepwell
