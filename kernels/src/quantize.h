/* Quantize and dequantize as loops with constant formula and type, compiled once per path: the compiler vectorizes them.
 * Each file that includes this wraps the two functions at the end under its path's names. */
#ifndef HWQ_QUANTIZE_H
#define HWQ_QUANTIZE_H
#include "fixedpoint.h"
#include "hwq/kernels.h"

#define HWQ_INLINE static inline __attribute__((always_inline))

/* torch clamps after adding the zero point and sends NaN to the top. */
HWQ_INLINE int32_t torch_clamp(float v, int32_t lo, int32_t hi)
{
    v = v < (float)hi ? v : (float)hi; /* also NaN */
    v = v > (float)lo ? v : (float)lo;
    return (int32_t)v;
}

HWQ_INLINE int32_t quantize_one(const int formula, float x, float scale, float reciprocal, int32_t zp, int32_t lo, int32_t hi)
{
    switch (formula) {
    case HWQ_QUANTIZE_ONNX: return hwq_rint_clamped(x / scale, zp, lo, hi);
    case HWQ_QUANTIZE_RECIPROCAL: return hwq_rint_clamped(x * reciprocal, zp, lo, hi);
    case HWQ_QUANTIZE_TFLITE: return hwq_clamp_shifted(hwq_wrap_add(hwq_away_s32(x / scale), zp), 0, lo, hi);
    case HWQ_QUANTIZE_TORCH_TENSOR: return torch_clamp(rintf(fmaf(x, reciprocal, (float)zp)), lo, hi);
    case HWQ_QUANTIZE_TORCH_CHANNEL: return torch_clamp(rintf((float)zp + x * reciprocal), lo, hi);
    case HWQ_QUANTIZE_ORT_POOL: return hwq_rint_clamped(x / scale + (float)zp, 0, lo, hi);
    default: return torch_clamp(rintf(x * reciprocal) + (float)zp, lo, hi);
    }
}

HWQ_INLINE void quantize_line(const int formula, int64_t n, const float *x, float scale, int32_t zp, int32_t lo, int32_t hi, void *out,
                              int32_t out_type)
{
    const float reciprocal = 1.0f / scale;
    if (out_type <= HWQ_S8)
        for (int64_t i = 0; i < n; i++) ((uint8_t *)out)[i] = (uint8_t)quantize_one(formula, x[i], scale, reciprocal, zp, lo, hi);
    else
        for (int64_t i = 0; i < n; i++) ((uint16_t *)out)[i] = (uint16_t)quantize_one(formula, x[i], scale, reciprocal, zp, lo, hi);
}

HWQ_INLINE void quantize_all(int32_t formula, int64_t outer, int64_t channels, int64_t inner, const float *x, const float *scales,
                             const int32_t *zero_points, int32_t lo, int32_t hi, void *out, int32_t out_type)
{
    for (int64_t line = 0; line < outer * channels; line++, x += inner, out = (char *)out + inner * (out_type <= HWQ_S8 ? 1 : 2)) {
        const float s = scales[line % channels];
        const int32_t z = zero_points[line % channels];
        switch (formula) {
        case HWQ_QUANTIZE_ONNX: quantize_line(HWQ_QUANTIZE_ONNX, inner, x, s, z, lo, hi, out, out_type); break;
        case HWQ_QUANTIZE_RECIPROCAL: quantize_line(HWQ_QUANTIZE_RECIPROCAL, inner, x, s, z, lo, hi, out, out_type); break;
        case HWQ_QUANTIZE_TFLITE: quantize_line(HWQ_QUANTIZE_TFLITE, inner, x, s, z, lo, hi, out, out_type); break;
        case HWQ_QUANTIZE_TORCH_TENSOR: quantize_line(HWQ_QUANTIZE_TORCH_TENSOR, inner, x, s, z, lo, hi, out, out_type); break;
        case HWQ_QUANTIZE_TORCH_CHANNEL: quantize_line(HWQ_QUANTIZE_TORCH_CHANNEL, inner, x, s, z, lo, hi, out, out_type); break;
        case HWQ_QUANTIZE_ORT_POOL: quantize_line(HWQ_QUANTIZE_ORT_POOL, inner, x, s, z, lo, hi, out, out_type); break;
        default: quantize_line(HWQ_QUANTIZE_TORCH_FAKE, inner, x, s, z, lo, hi, out, out_type);
        }
    }
}

/* quantize_one's integer lies in [lo, hi], so storing and reading it back would change nothing. */
HWQ_INLINE void fake_quantize_all(int64_t n, const float *x, float scale, int32_t zp, int32_t lo, int32_t hi, float *out)
{
    for (int64_t i = 0; i < n; i++) out[i] = (float)(quantize_one(HWQ_QUANTIZE_ONNX, x[i], scale, 0.0f, zp, lo, hi) - zp) * scale;
}

#define HWQ_DEQUANTIZE(type, wide)                                                                                            \
    for (int64_t i = 0; i < inner; i++) out[i] = (float)((wide)((const type *)q)[i] - z) * s;                                 \
    q = (const type *)q + inner;                                                                                              \
    break

/* q - zp fits int32 for 16-bit types and their zero points; int32 itself takes 64 bits. */
HWQ_INLINE void dequantize_all(int64_t outer, int64_t channels, int64_t inner, const void *q, int32_t type, const float *scales,
                               const int32_t *zero_points, float *out)
{
    for (int64_t line = 0; line < outer * channels; line++, out += inner) {
        const float s = scales[line % channels];
        const int32_t z = zero_points[line % channels];
        switch (type) {
        case HWQ_U8: HWQ_DEQUANTIZE(uint8_t, int32_t);
        case HWQ_S8: HWQ_DEQUANTIZE(int8_t, int32_t);
        case HWQ_U16: HWQ_DEQUANTIZE(uint16_t, int32_t);
        case HWQ_S16: HWQ_DEQUANTIZE(int16_t, int32_t);
        default: HWQ_DEQUANTIZE(int32_t, int64_t);
        }
    }
}

#endif
