#define DEEPWELL_ISA scalar
#include "kernels_table.h"
