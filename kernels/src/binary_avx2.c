/* The loops of binary.h, vectorized by the compiler with AVX2 and FMA: the same steps, so the same bits. */
#include "isa.h"

#if HWQ_X86
#include <math.h>
#include <stdint.h>

HWQ_TARGET("avx2,fma")
#include "binary.h"

void hwq_binary_run__avx2(const hwq_binary *p, int64_t n, const void *a, int64_t a_step, const void *b, int64_t b_step, void *out)
{
    combine_all(p, n, a, a_step, b, b_step, out);
}

HWQ_TARGET_END
#endif
