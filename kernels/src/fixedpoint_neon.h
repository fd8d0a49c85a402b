/* fixedpoint.h for 4 lanes of int32: the same steps, so the same bits. After <arm_neon.h>. */
#ifndef HWQ_FIXEDPOINT_NEON_H
#define HWQ_FIXEDPOINT_NEON_H

/* R1: hwq_round_gemmlowp, shift in [-31, 31]. sqrdmulh is its first stage, INT32_MIN^2 included; srshl rounds halves up, so negative values are nudged by
 * one first, which turns their halves away from zero (INT32_MIN, saturated there, is no half for any shift). */
static inline int32x4_t hwq_round_gemmlowp_s32x4(int32x4_t acc, int32x4_t multiplier, int32x4_t shift)
{
    const int32x4_t none = vdupq_n_s32(0), right = vminq_s32(shift, none);
    const int32x4_t v = vqrdmulhq_s32(vshlq_s32(acc, vmaxq_s32(shift, none)), multiplier);
    return vrshlq_s32(vqaddq_s32(v, vshrq_n_s32(vandq_s32(v, right), 31)), right);
}

#endif
