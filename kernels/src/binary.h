/* Elementwise operators as loops with a constant formula, compiled once per path: the compiler vectorizes most of them. */
#ifndef HWQ_BINARY_H
#define HWQ_BINARY_H
#include "fixedpoint.h"
#include "hwq/kernels.h"

#define HWQ_INLINE static inline __attribute__((always_inline))

HWQ_INLINE int32_t combine(const int formula, const hwq_binary *p, int32_t a, int32_t b)
{
    const int32_t ca = a - p->a_zero_point, cb = b - p->b_zero_point; /* 17 bits each at most: products fit with bytes, and
                                                                         with 16-bit tensors, whose zero points are 0 */
    const int32_t zp = p->zero_point, lo = p->lo, hi = p->hi;
    switch (formula) {
    case HWQ_BINARY_ORT_ADD: {
        float v = fmaf((float)a, p->a_factor, fmaf((float)b, p->b_factor, p->a_offset));
        return (int32_t)rintf(hwq_clamp_f32(v, (float)lo, (float)hi));
    }
    case HWQ_BINARY_ORT_MUL: {
        float v = (float)(ca * cb) * p->factor + (float)zp; /* the zero point before rounding: it decides ties */
        return (int32_t)rintf(hwq_clamp_f32(v, (float)lo, (float)hi));
    }
    case HWQ_BINARY_TORCH_ADD: {
        float fa = fmaf((float)a, p->a_scale, p->a_offset), fb = fmaf((float)b, p->b_scale, p->b_offset);
        return hwq_rint_clamped((fa + fb) * p->factor, zp, lo, hi);
    }
    case HWQ_BINARY_TFLITE_ADD: case HWQ_BINARY_TFLITE_SUB: {
        int32_t sa = hwq_round_gemmlowp(hwq_wrap_shl(ca, p->left), p->a_multiplier, p->a_shift);
        int32_t sb = hwq_round_gemmlowp(hwq_wrap_shl(cb, p->left), p->b_multiplier, p->b_shift);
        return hwq_clamp_shifted(hwq_round_gemmlowp(hwq_wrap_add(sa, sb), p->multiplier, p->shift), zp, lo, hi);
    }
    case HWQ_BINARY_TFLITE_MUL:
        return hwq_clamp_shifted(hwq_round_gemmlowp(ca * cb, p->multiplier, p->shift), zp, lo, hi);
    case HWQ_BINARY_XNN_ADD: case HWQ_BINARY_XNN_SUB:
        return hwq_clamp_s64(hwq_up((int64_t)ca * p->a_multiplier + (int64_t)cb * p->b_multiplier, p->shift) + zp, lo, hi);
    default: /* XNN_MUL, TORCH_MUL */
        return hwq_round_fp32((float)(ca * cb), p->factor, zp, lo, hi);
    }
}

enum { HWQ_BINARY_CHUNK = 256 };

HWQ_INLINE void load_chunk(int64_t n, const void *x, int32_t type, int64_t first, int64_t step, int32_t *to)
{
    if (step) first *= step;
    else first = 0;
    if (type == HWQ_U8)
        for (int64_t i = 0; i < n; i++) to[i] = ((const uint8_t *)x)[first + i * step];
    else if (type == HWQ_S8)
        for (int64_t i = 0; i < n; i++) to[i] = ((const int8_t *)x)[first + i * step];
    else
        for (int64_t i = 0; i < n; i++) to[i] = ((const int16_t *)x)[first + i * step];
}

#define HWQ_COMBINE(name)                                                                                                     \
    case HWQ_BINARY_##name:                                                                                                   \
        for (int64_t i = 0; i < count; i++) x[i] = combine(HWQ_BINARY_##name, p, x[i], y[i]);                                 \
        break

/* In place is safe: a chunk is read whole before it is written. */
HWQ_INLINE void combine_all(const hwq_binary *binary, int64_t n, const void *a, int64_t a_step, const void *b, int64_t b_step, void *out)
{
    const hwq_binary copy = *binary, *p = &copy; /* the output cannot alias it */
    int32_t x[HWQ_BINARY_CHUNK], y[HWQ_BINARY_CHUNK];
    for (int64_t first = 0; first < n; first += HWQ_BINARY_CHUNK) {
        const int64_t count = n - first < HWQ_BINARY_CHUNK ? n - first : HWQ_BINARY_CHUNK;
        if (a_step) load_chunk(count, a, p->a_type, first, 1, x);
        else load_chunk(count, a, p->a_type, first, 0, x);
        if (b_step) load_chunk(count, b, p->b_type, first, 1, y);
        else load_chunk(count, b, p->b_type, first, 0, y);
        switch (p->formula) {
        HWQ_COMBINE(ORT_ADD);
        HWQ_COMBINE(ORT_MUL);
        HWQ_COMBINE(TFLITE_ADD);
        HWQ_COMBINE(TFLITE_SUB);
        HWQ_COMBINE(TFLITE_MUL);
        HWQ_COMBINE(XNN_ADD);
        HWQ_COMBINE(XNN_SUB);
        HWQ_COMBINE(XNN_MUL);
        HWQ_COMBINE(TORCH_ADD);
        HWQ_COMBINE(TORCH_MUL);
        default: break;
        }
        if (p->out_type == HWQ_S16)
            for (int64_t i = 0; i < count; i++) ((int16_t *)out)[first + i] = (int16_t)x[i];
        else
            for (int64_t i = 0; i < count; i++) ((uint8_t *)out)[first + i] = (uint8_t)x[i];
    }
}

#endif
