/* The loop of scale_sums.h, vectorized by the compiler with AVX2 and FMA: the same steps, so the same bits. */
#include "isa.h"

#if HWQ_X86
#include <math.h>
#include <stdint.h>

HWQ_TARGET("avx2,fma")
#include "scale_sums.h"

void hwq_scale_sums__avx2(const hwq_row_scales *scale, const void *acc, const float *scales, const void *points, float *out)
{
    scale_rows(scale, acc, scales, points, out);
}

HWQ_TARGET_END
#endif
