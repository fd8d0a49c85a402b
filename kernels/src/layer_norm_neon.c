/* Layer normalization on Advanced SIMD, 4 columns at a time. The 64-bit step between: away from zero of v / 1024, |v| < 2^47. */
#include "layer_norm.h"

#if HWQ_ARM
#include <arm_neon.h>

#include "fixedpoint_neon.h"

static inline int32x4_t round_gemmlowp(int32x4_t acc, int32_t multiplier, int32_t shift)
{
    return hwq_round_gemmlowp_s32x4(acc, vdupq_n_s32(multiplier), vdupq_n_s32(shift));
}

static inline int64x2_t divide(int64x2_t v) /* srshr rounds halves up: away for what is negative means a step less */
{
    return vrshrq_n_s64(vaddq_s64(v, vshrq_n_s64(v, 63)), 10);
}

void hwq_layer_norm_s16__neon(const hwq_layer_norm *p, int64_t rows, const int16_t *x, int16_t *out)
{
    for (int64_t r = 0; p->columns && r < rows; r++, x += p->columns, out += p->columns) {
        const hwq_layer_norm_row row = hwq_layer_norm_measure(p, x);
        int64_t i = 0;
        for (; i + 4 <= p->columns; i += 4) {
            const int32x4_t centered = vsubq_s32(vshll_n_s16(vld1_s16(x + i), 10), vdupq_n_s32(row.mean));
            const int32x4_t scaled = round_gemmlowp(centered, row.root, row.shift), w = vmovl_s16(vld1_s16(p->weights + i));
            const int32x4_t bias = p->bias ? vld1q_s32(p->bias + i) : vdupq_n_s32(0);
            const int64x2_t low = vaddw_s32(vmull_s32(vget_low_s32(scaled), vget_low_s32(w)), vget_low_s32(bias));
            const int64x2_t high = vaddw_high_s32(vmull_high_s32(scaled, w), bias);
            const int32x4_t part = vcombine_s32(vmovn_s64(divide(low)), vmovn_s64(divide(high)));
            vst1_s16(out + i, vqmovn_s32(round_gemmlowp(part, p->multiplier, p->shift + 12)));
        }
        for (; i < p->columns; i++) out[i] = hwq_layer_norm_one(p, &row, i, x[i]);
    }
}
#endif
