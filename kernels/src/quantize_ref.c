/* Quantize, dequantize and the multiplier of fixed-point scales, the plain reading. */
#include "isa.h"
#include "quantize.h"

void hwq_quantize_multiplier(double real, int32_t *multiplier, int32_t *shift)
{
    int exponent = 0;
    double fraction = frexp(real, &exponent); /* 0 -> 0, 0 */
    int64_t rounded = (int64_t)round(fraction * 2147483648.0);
    if (rounded == INT64_C(1) << 31) { rounded /= 2; exponent++; }
    if (exponent < -31) { rounded = 0; exponent = 0; }
    *multiplier = (int32_t)rounded;
    *shift = exponent;
}

void hwq_quantize__ref(int32_t formula, int64_t outer, int64_t channels, int64_t inner, const float *x, const float *scales,
                       const int32_t *zero_points, int32_t lo, int32_t hi, void *out, int32_t out_type)
{
    quantize_all(formula, outer, channels, inner, x, scales, zero_points, lo, hi, out, out_type);
}

void hwq_dequantize__ref(int64_t outer, int64_t channels, int64_t inner, const void *q, int32_t type, const float *scales,
                         const int32_t *zero_points, float *out)
{
    dequantize_all(outer, channels, inner, q, type, scales, zero_points, out);
}

void hwq_fake_quantize__ref(int64_t n, const float *x, float scale, int32_t zero_point, int32_t lo, int32_t hi, float *out)
{
    fake_quantize_all(n, x, scale, zero_point, lo, hi, out);
}
