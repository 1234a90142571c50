// Searching quantisers: codes and scales of the least weighted error, for weights are quantised once and read often.
//
// Plain code in a fixed order, so that a model's codes are the same on every machine. Plain rounding, as ggml's
// reference code does it, is always among what is tried.
#pragma once
#include <cstddef>
#include <cstdint>

namespace deepwell {

// What an error of each value counts: `importance` of its column, or, where there is none, sqrt(mean square of its
// group plus its own square), for large weights matter more and nothing is known of their inputs.
// A value that is not finite, or too large for a float16 scale, makes a scale that is not finite: callers look.

// Rows of `cols` values to signed codes of `bits` bits (4 or 5), groups of 32 columns with a float16 scale: q is
// n x cols, d n x ceil(cols / 32). A value is q * d.
void search_scales(const float* x, size_t n, size_t cols, int bits, const float* importance, int8_t* q, uint16_t* d);

// Superblocks of 256 values to ggml's q4_k: eight groups of 32, each with a 6-bit scale and minimum. A value is
// d * scale * q - dmin * minimum. `cols` is a multiple of 256; there are n * cols / 256 superblocks.
void search_q4_k(const float* x, size_t n, size_t cols, const float* importance, uint8_t* q, uint8_t* scales,
                 uint8_t* minimums, uint16_t* d, uint16_t* dmin);

// The same to q6_k: sixteen groups of 16 with a signed 8-bit scale. A value is d * scale * q, q in -32..31.
void search_q6_k(const float* x, size_t n, size_t cols, const float* importance, int8_t* q, int8_t* scales,
                 uint16_t* d);

}  // namespace deepwell
