#define DEEPWELL_ISA avx512_bf16
#define DEEPWELL_USE_AVX512
#include "kernels_table.h"
