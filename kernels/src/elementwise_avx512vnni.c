/* The loops of quantize.h, dynamic.h and pool_lines.h, vectorized by the compiler in registers of 512 bits: the same
 * steps, so the same bits. */
#include "isa.h"

#if HWQ_X86
#include <math.h>
#include <stdint.h>

HWQ_TARGET("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,fma,f16c,prefer-vector-width=512")
#include "dynamic.h"
#include "pool_lines.h"

void hwq_pool_run__avx512vnni(const hwq_pool *p) { pool_lines(p); }

void hwq_quantize__avx512vnni(int32_t formula, int64_t outer, int64_t channels, int64_t inner, const float *x, const float *scales,
                              const int32_t *zero_points, int32_t lo, int32_t hi, void *out, int32_t out_type)
{
    quantize_all(formula, outer, channels, inner, x, scales, zero_points, lo, hi, out, out_type);
}

void hwq_dequantize__avx512vnni(int64_t outer, int64_t channels, int64_t inner, const void *q, int32_t type, const float *scales,
                                const int32_t *zero_points, float *out)
{
    dequantize_all(outer, channels, inner, q, type, scales, zero_points, out);
}

void hwq_fake_quantize__avx512vnni(int64_t n, const float *x, float scale, int32_t zero_point, int32_t lo, int32_t hi, float *out)
{
    fake_quantize_all(n, x, scale, zero_point, lo, hi, out);
}

void hwq_dynamic_quantize__avx512vnni(int32_t formula, int64_t rows, int64_t columns, const float *x, void *out, float *scales,
                                      int32_t *zero_points)
{
    for (int64_t row = 0; row < rows; row++)
        dynamic_row(formula, columns, x + row * columns, (uint8_t *)out + row * columns, scales + row, zero_points + row);
}

HWQ_TARGET_END
#endif
