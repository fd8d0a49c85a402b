/* hwq_scale_sums as one loop over a row, compiled once per path: the compiler vectorizes it. */
#ifndef HWQ_SCALE_SUMS_H
#define HWQ_SCALE_SUMS_H
#include "hwq/kernels.h"

#include <math.h>

static inline __attribute__((always_inline)) void scale_rows(const hwq_row_scales *s, const int32_t *acc, const float *scales, const int8_t *points, float *out)
{
    const int64_t columns = s->columns;
    const float *factors = s->factors, *bias = s->bias, lo = s->lo, hi = s->hi;
    for (int64_t r = 0; r < s->rows; r++, acc += columns, out += columns) {
        const float scale = scales[r / s->each];
        const uint32_t point = points ? (uint32_t)points[r / s->each] : 0;
        for (int64_t j = 0; j < columns; j++) {
            const int32_t sum = (int32_t)((uint32_t)acc[j] - (point ? point * (uint32_t)s->sums[j] : 0));
            const float y = fmaf((float)sum * scale, factors[j], bias ? bias[j] : 0.0f), above = y < lo ? lo : y;
            out[j] = above > hi ? hi : above;
        }
    }
}

#endif
