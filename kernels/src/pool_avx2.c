/* pool_lines.h with AVX2. */
#include "isa.h"

#if HWQ_X86
#include <math.h>
#include <stdint.h>

HWQ_TARGET("avx2,fma")
#include "pool_lines.h"

void hwq_pool_run__avx2(const hwq_pool *p) { pool_lines(p); }

HWQ_TARGET_END
#endif
