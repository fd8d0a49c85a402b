/* hwq_scale_sums as loops over a row, compiled once per path: the compiler vectorizes them. */
#ifndef HWQ_SCALE_SUMS_H
#define HWQ_SCALE_SUMS_H
#include "hwq/kernels.h"

#include <math.h>

static inline __attribute__((always_inline)) void scale_row(const int pointed, const int biased, const hwq_row_scales *s, float scale, uint32_t point,
                                                            const int32_t *restrict acc, float *restrict out)
{
    const float *restrict factors = s->factors, *restrict bias = s->bias, lo = s->lo, hi = s->hi;
    const int32_t *restrict sums = s->sums;
    for (int64_t j = 0; j < s->columns; j++) {
        const int32_t sum = (int32_t)((uint32_t)acc[j] - (pointed ? point * (uint32_t)sums[j] : 0));
        const float y = fmaf((float)sum * scale, factors[j], biased ? bias[j] : 0.0f), above = y < lo ? lo : y;
        out[j] = above > hi ? hi : above;
    }
}

static inline __attribute__((always_inline)) void scale_rows(const hwq_row_scales *s, const int32_t *acc, const float *scales, const int8_t *points, float *out)
{
    for (int64_t r = 0; r < s->rows; r++, acc += s->columns, out += s->columns) {
        const float scale = scales[r / s->each];
        const uint32_t point = points ? (uint32_t)points[r / s->each] : 0;
        if (point && s->bias) scale_row(1, 1, s, scale, point, acc, out);
        else if (point) scale_row(1, 0, s, scale, point, acc, out);
        else if (s->bias) scale_row(0, 1, s, scale, point, acc, out);
        else scale_row(0, 0, s, scale, point, acc, out);
    }
}

#endif
