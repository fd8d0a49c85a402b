/* The loops of quantize.h, vectorized by the compiler with AVX2 and FMA: the same steps, so the same bits. */
#include "isa.h"

#if HWQ_X86
#include <math.h>
#include <stdint.h>

HWQ_TARGET("avx2,fma")
#include "quantize.h"

void hwq_quantize__avx2(int32_t formula, int64_t outer, int64_t channels, int64_t inner, const float *x, const float *scales,
                        const int32_t *zero_points, int32_t lo, int32_t hi, void *out, int32_t out_type)
{
    quantize_all(formula, outer, channels, inner, x, scales, zero_points, lo, hi, out, out_type);
}

void hwq_dequantize__avx2(int64_t outer, int64_t channels, int64_t inner, const void *q, int32_t type, const float *scales,
                          const int32_t *zero_points, float *out)
{
    dequantize_all(outer, channels, inner, q, type, scales, zero_points, out);
}

void hwq_fake_quantize__avx2(int64_t n, const float *x, float scale, int32_t zero_point, int32_t lo, int32_t hi, float *out)
{
    fake_quantize_all(n, x, scale, zero_point, lo, hi, out);
}

HWQ_TARGET_END
#endif
