/* The loops of dynamic.h, vectorized by the compiler with AVX2 and FMA: the same steps, so the same bits. */
#include "isa.h"

#if HWQ_X86
#include <math.h>
#include <stdint.h>

HWQ_TARGET("avx2,fma")
#include "dynamic.h"

void hwq_dynamic_quantize__avx2(int32_t formula, int64_t rows, int64_t columns, const float *x, void *out, float *scales, int32_t *zero_points)
{
    for (int64_t row = 0; row < rows; row++)
        dynamic_row(formula, columns, x + row * columns, (uint8_t *)out + row * columns, scales + row, zero_points + row);
}

HWQ_TARGET_END
#endif
