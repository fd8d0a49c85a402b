/* Dynamic quantization: a row's range, then scale and zero point in the arithmetic of the runtime that the formula names, then
 * the row. Compiled once per path; the range is held in 16 lanes that the compiler turns into registers. Lanes start at +0, which
 * every range contains, and a comparison with NaN keeps what was there: neither order nor path shows. */
#ifndef HWQ_DYNAMIC_H
#define HWQ_DYNAMIC_H
#include "quantize.h"

enum { HWQ_RANGE_LANES = 16 };

HWQ_INLINE void range_of(int64_t n, const float *x, float *lo, float *hi)
{
    float low[HWQ_RANGE_LANES] = {0}, high[HWQ_RANGE_LANES] = {0};
    int64_t i = 0;
    for (; i + HWQ_RANGE_LANES <= n; i += HWQ_RANGE_LANES)
        for (int j = 0; j < HWQ_RANGE_LANES; j++) {
            low[j] = x[i + j] < low[j] ? x[i + j] : low[j];
            high[j] = x[i + j] > high[j] ? x[i + j] : high[j];
        }
    for (int j = 0; i < n; i++, j++) {
        low[j] = x[i] < low[j] ? x[i] : low[j];
        high[j] = x[i] > high[j] ? x[i] : high[j];
    }
    *lo = low[0], *hi = high[0];
    for (int j = 1; j < HWQ_RANGE_LANES; j++) {
        *lo = low[j] < *lo ? low[j] : *lo;
        *hi = high[j] > *hi ? high[j] : *hi;
    }
}

/* XNNPACK: quantize by `inverse`, whose reciprocal is the scale; the zero point from the end with the smaller error. */
HWQ_INLINE int32_t xnnpack_point(float low, float high)
{
    const float point = (-128.0f + low) + (127.0f + high) > 0 ? -128.0f - low : 127.0f - high;
    return (int32_t)rintf(hwq_clamp_f32(point, -128.0f, 127.0f));
}

HWQ_INLINE int32_t tflite_point(float low, float high)
{
    const float point = 128.0f + fabsf(low) < 127.0f + fabsf(high) ? -128.0f - low : 127.0f - high;
    const int32_t away = hwq_away_s32(hwq_clamp_f32(point, -1000.0f, 1000.0f)); /* clamped further below: only a cast is kept safe */
    return away < -128 ? -128 : away > 127 ? 127 : away;
}

/* torch (ATen/native/quantized/cpu/QuantUtils.h), doubles and a least scale; `most` is 255, or 127 for a reduced range. */
HWQ_INLINE void torch_parameters(float low, float high, int32_t most, float *scale, int32_t *zero_point)
{
    const float least = 6.1e-5f;
    double s = ((double)high - low) / most;
    if ((float)s == 0.0f || isinf(1.0f / (float)s)) s = 0.1;
    if (s < least) {
        const float before = (float)s;
        s = least;
        if (low == 0) high = least * (float)most;
        else if (high == 0) low = -least * (float)most;
        else { const float amplifier = least / before; low *= amplifier; high *= amplifier; }
    }
    const double from_low = 0 - low / s, from_high = most - high / s;
    const double low_error = 0 - fabs(low / s), high_error = most - fabs(high / s);
    const double point = low_error < high_error ? from_low : from_high;
    *zero_point = !(point > 0) ? 0 : point > most ? most : (int32_t)rint(point);
    *scale = (float)s;
}

HWQ_INLINE void dynamic_row(int32_t formula, int64_t n, const float *x, uint8_t *out, float *scale, int32_t *zero_point)
{
    float low, high;
    range_of(n, x, &low, &high);
    switch (formula) {
    case HWQ_DYNAMIC_ONNX: { /* NaN as a zero point (an infinite range) becomes 0 */
        const float s = high == low ? 1.0f : (high - low) / 255.0f;
        *scale = s;
        *zero_point = (int32_t)hwq_clamp_f32(rintf(-(low / s)), 0.0f, 255.0f);
        quantize_line(HWQ_QUANTIZE_ONNX, n, x, s, *zero_point, 0, 255, out, HWQ_U8);
        break;
    }
    case HWQ_DYNAMIC_TFLITE_SYMMETRIC: {
        const float reach = -low > high ? -low : high, by = reach == 0 ? 0.0f : 127.0f / reach;
        *scale = reach == 0 ? 1.0f : reach / 127.0f;
        *zero_point = 0;
        for (int64_t i = 0; i < n; i++) out[i] = (uint8_t)hwq_clamp_shifted(hwq_away_s32(x[i] * by), 0, -127, 127);
        break;
    }
    case HWQ_DYNAMIC_TFLITE_ASYMMETRIC: {
        const int flat = low == high;
        const float s = flat ? 1.0f : (high - low) / 255.0f, by = 1.0f / s;
        const int32_t z = flat ? 0 : tflite_point(low / s, high / s);
        *scale = s;
        *zero_point = z;
        for (int64_t i = 0; i < n; i++) out[i] = (uint8_t)(flat ? 0 : hwq_clamp_shifted(hwq_away_s32((float)z + x[i] * by), 0, -128, 127));
        break;
    }
    case HWQ_DYNAMIC_XNNPACK: {
        const float by = high == low ? 1.0f : 255.0f / (high - low);
        const int32_t z = xnnpack_point(low * by, high * by);
        *scale = 1.0f / by;
        *zero_point = z;
        for (int64_t i = 0; i < n; i++) out[i] = (uint8_t)hwq_rint_clamped(x[i] * by, z, -128, 127);
        break;
    }
    case HWQ_DYNAMIC_SYMMETRIC: {
        const float reach = -low > high ? -low : high;
        *scale = reach == 0 ? 1.0f : reach / 127.0f;
        *zero_point = 0;
        quantize_line(HWQ_QUANTIZE_ONNX, n, x, *scale, 0, -127, 127, out, HWQ_S8);
        break;
    }
    default:
        torch_parameters(low, high, formula == HWQ_DYNAMIC_TORCH_REDUCED ? 127 : 255, scale, zero_point);
        quantize_line(HWQ_QUANTIZE_TORCH_TENSOR, n, x, *scale, *zero_point, 0, 255, out, HWQ_U8);
    }
}

#endif
