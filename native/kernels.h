// The table of kernels that exists once per instruction set. Plain data only: the files that implement it are compiled
// for different machines and must not share inline code with the rest.
#pragma once
#include "storage.h"

namespace deepwell {

// One matrix in tiles of 16 output rows; see matrix.h for the layout.
struct Tiles {
  const uint8_t* data;
  size_t tile_bytes;
  int rows;
  int cols;
  Storage storage;
};

// Attention of `heads` query heads that share one key/value head, for one token that sees `length` tokens.
struct GqaTask {
  const float* q;  // heads x head_dim, contiguous
  float* out;      // heads x head_dim, contiguous
  const float* pages;
  const int32_t* table;
  size_t page_floats;
  size_t k_offset;  // of this head's keys in a page: [head_dim][64]
  size_t v_offset;  // of this head's values in a page: [64][head_dim]
  int length;
  int heads;
  int head_dim;
  float scale;
};

// Attention of `heads` absorbed query heads over latent rows [latent | rope], for one token that sees `length` tokens:
// the first ones, or those at the `chosen` positions.
struct MlaTask {
  const float* q;  // heads x (latent + rope), contiguous
  float* out;      // heads x latent, contiguous
  const float* pages;
  const int32_t* table;
  size_t page_floats;
  int length;
  int heads;
  int latent;
  int rope;
  float scale;
  const float* chosen;  // positions, or null
};

// Attention over a cache in bfloat16; kernels_cached.h states the layout of a page. A row is one query head of one token
// and sees `length` tokens; rows of a task share keys and values, and a row's result does not depend on the others.
struct CachedRow {
  const float* q;
  float* out;
  int length;
};
struct CachedTask {
  const CachedRow* rows;
  int count;
  const uint16_t* pages;
  const int32_t* table;
  size_t page_shorts;
  size_t k_offset, v_offset;  // grouped-query: of this head's keys and values in a page
  int width;                  // of a query: head_dim, or latent + rope
  int value;                  // of a result: head_dim, or latent
  int stride;                 // latent: shorts between the rows of a page
  float scale;
  const float* chosen;        // latent: the positions that all rows see instead of the first ones, or null
};

// The lightning indexer's scores of one token's `heads` queries for the positions of pages [first, last) of its table;
// kernels_index.h states the layout of a page. Values are floats, or shorts of bfloat16.
template <class Value>
struct IndexTaskOf {
  const Value* q;        // heads x width, contiguous
  const float* weights;  // of the heads
  const Value* pages;
  const int32_t* table;
  size_t page_values;
  int first, last;
  int heads, width;
  float scale;
  float* scores;  // 64 for each page
};
using IndexTask = IndexTaskOf<float>;
using IndexCachedTask = IndexTaskOf<uint16_t>;

constexpr int kChunk = 128;  // values of a row of logits that are weighed together

struct Kernels {
  const char* name;
  // y[m][n] = sum over k of w[n][k] * x[m][k] (+ bias[n]) for the rows n of tiles [first, last).
  void (*linear)(const Tiles& w, int first, int last, const float* const* x, float* const* y, int rows,
                 const float* bias);
  // Turns columns [first, last) of x, which has `cols`, into 8-bit codes (CodedRow); `first` is a multiple of 32.
  void (*encode)(const float* x, int cols, int first, int last, uint8_t* row);
  // The same as a fine row, two coded ones, of all columns.
  void (*encode_fine)(const float* x, int cols, uint8_t* rows);
  // The same product with a quantised matrix and coded rows; kernels_coded.h states its rounding. With `fine`, every
  // second row's result is added to that of the row before, at the same y.
  void (*linear_coded)(const Tiles& w, int first, int last, const uint8_t* const* x, float* const* y, int rows,
                       const float* bias, bool fine);
  // y = silu(gate) * up for tile pairs [first, last) of a matrix whose tiles alternate between gate and up.
  void (*gated_coded)(const Tiles& w, int first, int last, const uint8_t* const* x, float* const* y, int rows,
                      const float* bias);
  void (*rms_norm)(const float* x, const float* weight, float* y, int n, float eps);
  void (*layer_norm)(const float* x, const float* weight, const float* bias, float* y, int n, float eps);
  void (*add)(const float* x, const float* y, float* out, int n);
  void (*swiglu)(const float* gate, const float* up, float* out, int n);
  void (*softmax)(const float* x, float* out, int n);
  void (*sigmoid)(const float* x, float* out, int n);
  void (*exp)(const float* x, float* out, int n);
  // out[i] = sum over j, in order, of w[j] * xs[j][i].
  void (*combine)(const float* const* xs, const float* w, int count, float* out, int n);
  void (*gqa)(const GqaTask& task);
  void (*mla)(const MlaTask& task);
  void (*to_bf16)(const float* x, uint16_t* y, int n);
  void (*gqa_cached)(const CachedTask& task);
  void (*mla_cached)(const CachedTask& task);
  void (*index_scores)(const IndexTask& task);
  void (*index_scores_cached)(const IndexCachedTask& task);
  // Sampling; see kernels_sampling.h.
  void (*chunk_peaks)(const float* x, int n, float* peaks);
  void (*widen_chunk)(const float* x, int n, const uint32_t* allowed, double* out);
  double (*chunk_peak)(const double* x);
  double (*chunk_weights)(const double* x, double peak, double temperature, double* weights);
  void (*chunk_sums)(const double* weights, int chunks, double limit, double* sums);
  void (*chunk_at_least)(const double* x, double limit, uint64_t* bits);
};

}  // namespace deepwell
