#define DEEPWELL_ISA neon_dot
#define DEEPWELL_USE_NEON
#include "kernels_table.h"
