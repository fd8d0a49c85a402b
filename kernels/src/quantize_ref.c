/* Quantize, dequantize and the multiplier of fixed-point scales, the plain reading. */
#include "fixedpoint.h"
#include "isa.h"

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

/* torch clamps after adding the zero point and sends NaN to the top. */
static inline int32_t torch_clamp(float v, int32_t lo, int32_t hi)
{
    if (!(v < (float)hi)) return hi;
    return v > (float)lo ? (int32_t)v : lo;
}

static inline int32_t quantize_one(int32_t formula, float x, float scale, float reciprocal, int32_t zp, int32_t lo, int32_t hi)
{
    switch (formula) {
    case HWQ_QUANTIZE_ONNX: return hwq_rint_clamped(x / scale, zp, lo, hi);
    case HWQ_QUANTIZE_RECIPROCAL: return hwq_rint_clamped(x * reciprocal, zp, lo, hi);
    case HWQ_QUANTIZE_TFLITE: return hwq_clamp_s64(hwq_wrap_add(hwq_away_s32(x / scale), zp), lo, hi);
    case HWQ_QUANTIZE_TORCH_TENSOR: return torch_clamp(rintf(fmaf(x, reciprocal, (float)zp)), lo, hi);
    case HWQ_QUANTIZE_TORCH_CHANNEL: return torch_clamp(rintf((float)zp + x * reciprocal), lo, hi);
    default: return torch_clamp(rintf(x * reciprocal) + (float)zp, lo, hi);
    }
}

void hwq_quantize__ref(int32_t formula, int64_t outer, int64_t channels, int64_t inner, const float *x, const float *scales,
                       const int32_t *zero_points, int32_t lo, int32_t hi, void *out, int32_t out_type)
{
    for (int64_t o = 0; o < outer; o++)
        for (int64_t c = 0; c < channels; c++) {
            const float reciprocal = 1.0f / scales[c];
            const int64_t base = (o * channels + c) * inner;
            for (int64_t i = base; i < base + inner; i++) {
                int32_t q = quantize_one(formula, x[i], scales[c], reciprocal, zero_points[c], lo, hi);
                if (out_type <= HWQ_S8) ((uint8_t *)out)[i] = (uint8_t)q;
                else if (out_type <= HWQ_S16) ((uint16_t *)out)[i] = (uint16_t)q;
                else ((int32_t *)out)[i] = q;
            }
        }
}

static inline int32_t load(const void *q, int32_t type, int64_t i)
{
    switch (type) {
    case HWQ_U8: return ((const uint8_t *)q)[i];
    case HWQ_S8: return ((const int8_t *)q)[i];
    case HWQ_U16: return ((const uint16_t *)q)[i];
    case HWQ_S16: return ((const int16_t *)q)[i];
    default: return ((const int32_t *)q)[i];
    }
}

void hwq_dequantize__ref(int64_t outer, int64_t channels, int64_t inner, const void *q, int32_t type, const float *scales,
                         const int32_t *zero_points, float *out)
{
    for (int64_t o = 0; o < outer; o++)
        for (int64_t c = 0; c < channels; c++) {
            const int64_t base = (o * channels + c) * inner;
            for (int64_t i = base; i < base + inner; i++)
                out[i] = (float)((int64_t)load(q, type, i) - zero_points[c]) * scales[c];
        }
}
