#define DEEPWELL_ISA neon
#define DEEPWELL_USE_NEON
#include "kernels_table.h"
