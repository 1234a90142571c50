// Included once per instruction set, with DEEPWELL_ISA defined: compiles the kernels for it and lists them.
#pragma once
#include "kernels_attention.h"
#include "kernels_cached.h"
#include "kernels_coded.h"
#include "kernels_index.h"
#include "kernels_linear.h"
#include "kernels_rows.h"
#include "kernels_sampling.h"

#define DEEPWELL_NAME_(x) #x
#define DEEPWELL_NAME(x) DEEPWELL_NAME_(x)

namespace deepwell {
namespace DEEPWELL_ISA {

extern const Kernels table;
const Kernels table = {DEEPWELL_NAME(DEEPWELL_ISA), linear, encode, encode_fine, linear_coded,
                       gated_coded, rms_norm, layer_norm, add, swiglu, softmax, sigmoid, exp_row, combine,
                       gqa, mla, to_bf16, gqa_cached, mla_cached, index_scores, index_scores_cached, chunk_peaks,
                       widen_chunk, chunk_peak, chunk_weights, chunk_sums, chunk_at_least};

}  // namespace DEEPWELL_ISA
}  // namespace deepwell
