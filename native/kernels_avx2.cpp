#define DEEPWELL_ISA avx2
#define DEEPWELL_USE_AVX2
#include "kernels_table.h"
