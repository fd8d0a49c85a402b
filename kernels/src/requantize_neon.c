/* The epilogue's common cases, 8 columns at a time: int32, float32, R4 and R1 to bytes. Others run the plain reading.
 * R4's clamp is by compare and select, since fmax would keep a NaN that the contract sends to lo. */
#include "isa.h"

#if HWQ_ARM
#include "epilogue.h"
#include "fixedpoint.h"

#include <arm_neon.h>
#include <string.h>

#include "fixedpoint_neon.h"

typedef struct {
    const hwq_epilogue *e;
    const float *scales, *bias; /* of the block's first column; [0] for all when step is 0 */
    const int32_t *multipliers, *shifts;
    int64_t step;
    float32x4_t lo, hi;
} constants;

static inline int32x4_t by_float(const constants *c, const int32_t *acc, int64_t i)
{
    float32x4_t v = vcvtq_f32_s32(vld1q_s32(acc + i));
    if (c->bias) v = vaddq_f32(v, vld1q_f32(c->bias + i));
    v = vmulq_f32(v, c->step ? vld1q_f32(c->scales + i) : vdupq_n_f32(c->scales[0]));
    v = vbslq_f32(vcgtq_f32(v, c->lo), v, c->lo);
    v = vbslq_f32(vcltq_f32(v, c->hi), v, c->hi);
    return vaddq_s32(vcvtnq_s32_f32(v), vdupq_n_s32(c->e->zero_point));
}

static inline int32x4_t by_fixed_point(const constants *c, const int32_t *acc, int64_t i)
{
    const int32x4_t m = c->step ? vld1q_s32(c->multipliers + i) : vdupq_n_s32(c->multipliers[0]);
    const int32x4_t shift = c->step ? vld1q_s32(c->shifts + i) : vdupq_n_s32(c->shifts[0]);
    int32x4_t v = hwq_round_gemmlowp_s32x4(vld1q_s32(acc + i), m, shift);
    v = vminq_s32(vmaxq_s32(v, vdupq_n_s32(c->e->lo - c->e->zero_point)), vdupq_n_s32(c->e->hi - c->e->zero_point));
    return vaddq_s32(v, vdupq_n_s32(c->e->zero_point));
}

static void to_bytes(const constants *c, const int fixed, int64_t columns, const int32_t *acc, uint8_t *out)
{
    const hwq_epilogue *e = c->e;
    int64_t i = 0;
    for (; i + 8 <= columns; i += 8) {
        const int32x4_t low = fixed ? by_fixed_point(c, acc, i) : by_float(c, acc, i);
        const int32x4_t high = fixed ? by_fixed_point(c, acc, i + 4) : by_float(c, acc, i + 4);
        vst1_s8((int8_t *)out + i, vmovn_s16(vcombine_s16(vmovn_s32(low), vmovn_s32(high)))); /* clamped: the low byte is all */
    }
    for (; i < columns; i++) {
        const int64_t at = c->step ? i : 0;
        if (fixed) {
            out[i] = (uint8_t)hwq_clamp_shifted(hwq_round_gemmlowp(acc[i], c->multipliers[at], c->shifts[at]), e->zero_point, e->lo, e->hi);
        } else {
            float v = (float)acc[i];
            if (c->bias) v += c->bias[i];
            out[i] = (uint8_t)hwq_round_fp32(v, c->scales[at], e->zero_point, e->lo, e->hi);
        }
    }
}

static void to_floats(const constants *c, int64_t columns, const int32_t *acc, float *out)
{
    int64_t i = 0;
    for (; i + 4 <= columns; i += 4) {
        float32x4_t v = vmulq_f32(vcvtq_f32_s32(vld1q_s32(acc + i)), c->step ? vld1q_f32(c->scales + i) : vdupq_n_f32(c->scales[0]));
        if (c->bias) v = vaddq_f32(v, vld1q_f32(c->bias + i));
        vst1q_f32(out + i, v);
    }
    for (; i < columns; i++) {
        const float v = (float)acc[i] * c->scales[c->step ? i : 0];
        out[i] = c->bias ? v + c->bias[i] : v;
    }
}

void hwq_requantize__neon(const hwq_epilogue *e, int64_t rows, int64_t columns, int64_t first_column, const void *acc, int32_t acc_type,
                          int64_t acc_stride, void *out, int64_t out_stride)
{
    const int bytes = e->out_type <= HWQ_S8 && (e->rounding == HWQ_ROUND_FP32 || e->rounding == HWQ_ROUND_GEMMLOWP);
    if (acc_type != HWQ_S32 || (e->kind == HWQ_KIND_REQUANT && !bytes)) {
        hwq_requantize__ref(e, rows, columns, first_column, acc, acc_type, acc_stride, out, out_stride);
        return;
    }
    const int64_t first = e->channel_step ? first_column : 0, size = hwq_type_size(e->out_type);
    const constants c = {.e = e, .scales = e->scales_f32 ? e->scales_f32 + first : NULL,
                         .bias = e->float_bias ? e->float_bias + first_column : NULL,
                         .multipliers = e->multipliers ? e->multipliers + first : NULL, .shifts = e->shifts ? e->shifts + first : NULL,
                         .step = e->channel_step, .lo = vdupq_n_f32((float)(e->lo - e->zero_point)),
                         .hi = vdupq_n_f32((float)(e->hi - e->zero_point))};
    for (int64_t row = 0; row < rows; row++) {
        const int32_t *from = (const int32_t *)acc + row * acc_stride;
        char *line = (char *)out + row * out_stride * size;
        if (e->kind == HWQ_KIND_S32) memcpy(line, from, (size_t)columns * 4);
        else if (e->kind == HWQ_KIND_F32) to_floats(&c, columns, from, (float *)line);
        else if (e->rounding == HWQ_ROUND_FP32) to_bytes(&c, 0, columns, from, (uint8_t *)line);
        else to_bytes(&c, 1, columns, from, (uint8_t *)line);
        hwq_finish_row(e, row, columns, line);
    }
}
#endif
