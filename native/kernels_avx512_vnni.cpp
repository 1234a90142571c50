#define DEEPWELL_ISA avx512_vnni
#define DEEPWELL_USE_AVX512
#include "kernels_table.h"
