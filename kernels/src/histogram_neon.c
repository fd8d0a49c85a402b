/* What calibration gathers, with Advanced SIMD: the compiler vectorizes statistics.h and scale_sums.h; bins are found two at a time and counted one by one. */
#include "isa.h"

#if HWQ_ARM
#include "scale_sums.h"
#include "statistics.h"

#include <arm_neon.h>

int32_t hwq_ranges__neon(int64_t outer, int64_t channels, int64_t inner, const float *x, float *minima, float *maxima, double *totals)
{
    return ranges_all(outer, channels, inner, x, minima, maxima, totals);
}

void hwq_scale_sums__neon(const hwq_row_scales *scale, const void *acc, const float *scales, const void *points, float *out)
{
    scale_rows(scale, acc, scales, points, out);
}

/* floor(scaled) + half, or what no histogram has: fcvtms rounds down, saturates what does not fit and makes NaN 0, which the comparison undoes. */
static inline uint64x2_t bins_of(float64x2_t value, double inverse, int64_t half)
{
    const float64x2_t scaled = vmulq_n_f64(value, inverse);
    const int64x2_t bins = vaddq_s64(vcvtmq_s64_f64(scaled), vdupq_n_s64(half));
    return vornq_u64(vreinterpretq_u64_s64(bins), vceqq_f64(scaled, scaled));
}

/* The square of a float32 has 48 bits, so the fused sum rounds as the separate one does. */
void hwq_histogram__neon(int64_t n, const float *x, double inverse, int64_t half, int64_t *counts, double *squares)
{
    const uint64_t bins = 2 * (uint64_t)half;
    float64x2_t low = vld1q_f64(squares), high = vld1q_f64(squares + 2);
    int64_t *odd = counts + 2 * half, i = 0;
    for (; i + 4 <= n; i += 4) {
        const float32x4_t four = vld1q_f32(x + i);
        const float64x2_t first = vcvt_f64_f32(vget_low_f32(four)), second = vcvt_high_f64_f32(four);
        const uint64x2_t at = bins_of(first, inverse, half), next = bins_of(second, inverse, half);
        low = vfmaq_f64(low, first, first), high = vfmaq_f64(high, second, second);
        if (vgetq_lane_u64(at, 0) < bins) counts[vgetq_lane_u64(at, 0)]++;
        if (vgetq_lane_u64(at, 1) < bins) odd[vgetq_lane_u64(at, 1)]++;
        if (vgetq_lane_u64(next, 0) < bins) counts[vgetq_lane_u64(next, 0)]++;
        if (vgetq_lane_u64(next, 1) < bins) odd[vgetq_lane_u64(next, 1)]++;
    }
    vst1q_f64(squares, low), vst1q_f64(squares + 2, high);
    hwq_histogram__ref(n - i, x + i, inverse, half, counts, squares); /* i is a multiple of 4: the tail's values keep their sums and tables */
}
#endif
