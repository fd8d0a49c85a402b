/* hwq_scale_sums as loops over a row, compiled once per path: the compiler vectorizes them. */
#ifndef HWQ_SCALE_SUMS_H
#define HWQ_SCALE_SUMS_H
#include "hwq/kernels.h"

#include <math.h>

static inline __attribute__((always_inline)) void scale_row(const int formula, const int pointed, const int biased, const hwq_row_scales *s, float scale,
                                                            uint32_t point, const int32_t *restrict acc, float *restrict out)
{
    const float *restrict factors = s->factors, *restrict bias = s->bias, *restrict floats = (const float *)(const void *)acc, lo = s->lo, hi = s->hi;
    const int32_t *restrict sums = s->sums;
    for (int64_t j = 0; j < s->columns; j++) {
        const int32_t sum = (int32_t)((uint32_t)acc[j] - (pointed ? point * (uint32_t)sums[j] : 0));
        float y;
        if (formula == HWQ_SCALE_XNNPACK) y = fmaf((float)sum * scale, factors[j], biased ? bias[j] : 0.0f);
        else y = formula == HWQ_SCALE_ONNX ? (float)sum * (scale * factors[j]) : floats[j] * scale;
        if (formula != HWQ_SCALE_XNNPACK && biased) y += bias[j];
        const float above = y < lo ? lo : y;
        out[j] = above > hi ? hi : above;
    }
}

static inline __attribute__((always_inline)) void scale_by(const int formula, const hwq_row_scales *s, float scale, uint32_t point, const int32_t *acc, float *out)
{
    if (point && formula != HWQ_SCALE_FLOATS && s->bias) scale_row(formula, 1, 1, s, scale, point, acc, out);
    else if (point && formula != HWQ_SCALE_FLOATS) scale_row(formula, 1, 0, s, scale, point, acc, out);
    else if (s->bias) scale_row(formula, 0, 1, s, scale, point, acc, out);
    else scale_row(formula, 0, 0, s, scale, point, acc, out);
}

static inline __attribute__((always_inline)) void scale_rows(const hwq_row_scales *s, const void *given, const float *scales, const void *points, float *out)
{
    const int32_t *acc = given;
    for (int64_t r = 0; r < s->rows; r++, acc += s->columns, out += s->columns) {
        const int64_t at = r / s->each;
        const uint32_t point = !points ? 0 : s->point_type == HWQ_U8 ? ((const uint8_t *)points)[at] : (uint32_t)((const int8_t *)points)[at];
        if (s->formula == HWQ_SCALE_XNNPACK) scale_by(HWQ_SCALE_XNNPACK, s, scales[at], point, acc, out);
        else if (s->formula == HWQ_SCALE_ONNX) scale_by(HWQ_SCALE_ONNX, s, scales[at], point, acc, out);
        else scale_by(HWQ_SCALE_FLOATS, s, scales[at], point, acc, out);
    }
}

#endif
