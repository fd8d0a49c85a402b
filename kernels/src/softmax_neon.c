/* Integer softmax and interpolated tables on Advanced SIMD. There is no gather: entries are loaded one by one into lanes, what follows is 4 lanes at a
 * time. Sums of the float table keep their order: they stay scalar. srshl shifts by a register, rounds halves up without overflow, and gives 0 past 32. */
#include "isa.h"
#include "softmax.h"

#if HWQ_ARM
#include <arm_neon.h>
#include <string.h>

#include "fixedpoint_neon.h"

static int32_t largest(int64_t n, const uint8_t *x, uint8_t flip)
{
    uint8x16_t v = vdupq_n_u8(0);
    int64_t i = 0;
    for (; i + 16 <= n; i += 16) v = vmaxq_u8(v, veorq_u8(vld1q_u8(x + i), vdupq_n_u8(flip)));
    int32_t top = vmaxvq_u8(v);
    for (; i < n; i++) top = (x[i] ^ flip) > top ? x[i] ^ flip : top;
    return top;
}

static inline void store4(void *out, int32_t type, int64_t i, int32x4_t v) /* the low halves or bytes of 4 values */
{
    const int16x4_t halves = vmovn_s32(v);
    if (type == HWQ_S16) {
        vst1_s16((int16_t *)out + i, halves);
    } else {
        const uint32_t bytes = vget_lane_u32(vreinterpret_u32_s8(vmovn_s16(vcombine_s16(halves, halves))), 0);
        memcpy((uint8_t *)out + i, &bytes, 4);
    }
}

static inline float32x4_t entries_f32(const float *table, const uint8_t *x, uint8_t flip)
{
    return (float32x4_t){table[x[0] ^ flip], table[x[1] ^ flip], table[x[2] ^ flip], table[x[3] ^ flip]};
}

static inline int32x4_t entries_s32(const int32_t *top, const uint8_t *x, uint8_t flip) /* by their distance below */
{
    return (int32x4_t){top[-(x[0] ^ flip)], top[-(x[1] ^ flip)], top[-(x[2] ^ flip)], top[-(x[3] ^ flip)]};
}

static void row_table(const hwq_softmax *s, int64_t n, const uint8_t *x, uint8_t *out)
{
    const uint8_t flip = s->type == HWQ_S8 ? 0x80 : 0;
    const float *table = s->table + 255 - largest(n, x, flip);
    float sum = 0;
    int64_t i = 0;
    for (; i < n; i++) sum += table[x[i] ^ flip];
    for (i = 0; i + 4 <= n; i += 4) {
        const float32x4_t v = vdivq_f32(vmulq_n_f32(entries_f32(table, x + i, flip), s->inverse), vdupq_n_f32(sum));
        const int32x4_t fits = vbslq_s32(vcltq_f32(v, vdupq_n_f32(2147483648.0f)), vcvtnq_s32_f32(v), vdupq_n_s32(INT32_MIN));
        store4(out, HWQ_U8, i, vminq_s32(vaddq_s32(fits, vdupq_n_s32(s->zero_point)), vdupq_n_s32(255)));
    }
    for (; i < n; i++) {
        const float v = rintf(table[x[i] ^ flip] * s->inverse / sum);
        const int32_t steps = hwq_wrap_add(v < 2147483648.0f ? (int32_t)v : INT32_MIN, s->zero_point);
        out[i] = (uint8_t)(steps > 255 ? 255 : steps);
    }
}

static void row_reciprocal(const hwq_softmax *s, int64_t n, const uint8_t *x, uint8_t *out)
{
    const uint8_t flip = s->type == HWQ_S8 ? 0x80 : 0;
    const float *table = s->table + 255 - largest(n, x, flip);
    const int32_t most = hwq_type_most(s->out_type);
    float sum = 0;
    int64_t i = 0;
    for (; i < n; i++) sum += table[x[i] ^ flip];
    const float inverse = 1.0f / (sum * s->scale);
    for (i = 0; i + 4 <= n; i += 4) { /* fcvtas rounds halves away */
        const int32x4_t v = vcvtaq_s32_f32(vmulq_n_f32(entries_f32(table, x + i, flip), inverse));
        store4(out, HWQ_U8, i, vminq_s32(vaddq_s32(v, vdupq_n_s32(s->zero_point)), vdupq_n_s32(most)));
    }
    for (; i < n; i++) {
        const int32_t v = hwq_softmax_away(table[x[i] ^ flip] * inverse) + s->zero_point;
        out[i] = (uint8_t)(v > most ? most : v);
    }
}

static void row_gemmlowp(const hwq_softmax *s, int64_t n, const uint8_t *x, void *out)
{
    const uint8_t flip = s->type == HWQ_S8 ? 0x80 : 0;
    const int32_t *top = s->exponentials + largest(n, x, flip), least = hwq_type_least(s->out_type), most = hwq_type_most(s->out_type);
    uint32x4_t sums = vdupq_n_u32(0);
    int64_t i = 0;
    int shift;
    for (; i + 4 <= n; i += 4) sums = vaddq_u32(sums, vrshrq_n_u32(vreinterpretq_u32_s32(entries_s32(top, x + i, flip)), 12)); /* nothing is negative */
    uint32_t sum = vaddvq_u32(sums);
    for (; i < n; i++) sum += (uint32_t)hwq_rdbpot(top[-(x[i] ^ flip)], 12);
    const int32_t r = hwq_softmax_reciprocal(sum, s->out_type == HWQ_S16 ? 16 : 8, &shift);
    const int32x4_t right = vdupq_n_s32(shift > 0 ? -shift : 0);
    for (i = 0; i + 4 <= n; i += 4) {
        const int32x4_t v = vrshlq_s32(vqrdmulhq_n_s32(entries_s32(top, x + i, flip), r), right);
        store4(out, s->out_type, i, vminq_s32(vaddq_s32(v, vdupq_n_s32(least)), vdupq_n_s32(most)));
    }
    for (; i < n; i++) {
        const int64_t v = hwq_up(hwq_srdhm(r, top[-(x[i] ^ flip)]), shift) + least;
        hwq_store_small(out, s->out_type, i, hwq_clamp_s64(v, least, most));
    }
}

/* Samples i and i + 1 are neighbors in memory: one load brings both. */
static inline int32x4_t interpolate(int shift, const int16_t *table, int32x4_t v)
{
    const int32x4_t at = vshlq_s32(vaddq_s32(v, vdupq_n_s32(32768)), vdupq_n_s32(-shift));
    int32_t pair[4];
    memcpy(pair, table + vgetq_lane_s32(at, 0), 4), memcpy(pair + 1, table + vgetq_lane_s32(at, 1), 4);
    memcpy(pair + 2, table + vgetq_lane_s32(at, 2), 4), memcpy(pair + 3, table + vgetq_lane_s32(at, 3), 4);
    const int32x4_t both = vld1q_s32(pair), base = vshrq_n_s32(vshlq_n_s32(both, 16), 16), slope = vsubq_s32(vshrq_n_s32(both, 16), base);
    return vaddq_s32(base, vrshlq_s32(vmulq_s32(slope, vandq_s32(v, vdupq_n_s32((1 << shift) - 1))), vdupq_n_s32(-shift)));
}

static void row_s16(const hwq_softmax *s, int64_t n, const int16_t *x, int16_t *out)
{
    int32_t top = -32768;
    int32x4_t sums = vdupq_n_s32(0);
    const int32x4_t limit = vdupq_n_s32(32767), m = vdupq_n_s32(s->multiplier), e = vdupq_n_s32(s->shift);
    int64_t i = 0;
    int shift;
    for (; i < n; i++) top = x[i] > top ? x[i] : top;
    for (i = 0; i + 4 <= n; i += 4) { /* scaled is not positive, so adding 32767 cannot overflow; nor can it pass 32767 */
        const int32x4_t scaled = hwq_round_gemmlowp_s32x4(vsubq_s32(vmovl_s16(vld1_s16(x + i)), vdupq_n_s32(top)), m, e);
        const int32x4_t at = vaddq_s32(vminq_s32(scaled, vdupq_n_s32(0)), limit);
        const int32x4_t power = interpolate(7, s->powers, vmaxq_s32(at, vdupq_n_s32(-32768)));
        store4(out, HWQ_S16, i, power);
        sums = vaddq_s32(sums, power);
    }
    uint32_t sum = (uint32_t)vaddvq_s32(sums);
    for (; i < n; i++) {
        const int64_t scaled = (int64_t)hwq_round_gemmlowp(x[i] - top, s->multiplier, s->shift) + 32767;
        out[i] = (int16_t)hwq_interpolate(s->powers, hwq_clamp_s64(scaled, INT16_MIN, INT16_MAX));
        sum += (uint32_t)out[i];
    }
    const int32_t r = hwq_interpolate(s->reciprocals, hwq_softmax_position(sum, &shift));
    for (i = 0; i + 4 <= n; i += 4) {
        const int32x4_t v = vrshlq_s32(vmulq_n_s32(vmovl_s16(vld1_s16(out + i)), r), vdupq_n_s32(-shift));
        store4(out, HWQ_S16, i, vmaxq_s32(vminq_s32(v, limit), vdupq_n_s32(0)));
    }
    for (; i < n; i++) out[i] = (int16_t)hwq_clamp_s64(hwq_up((int64_t)out[i] * r, shift), 0, 32767);
}

#include "softmax_rows.h"

void hwq_softmax_run__neon(const hwq_softmax *s, int64_t rows, int64_t columns, const void *x, void *out) { each_row(s, rows, columns, x, out); }

void hwq_lut_s16__neon(int64_t n, int32_t shift, const int16_t *x, const int16_t *table, int16_t *out)
{
    int64_t i = 0;
    for (; i + 4 <= n; i += 4) vst1_s16(out + i, vmovn_s32(interpolate(shift, table, vmovl_s16(vld1_s16(x + i)))));
    hwq_lut_s16__ref(n - i, shift, x + i, table, out + i);
}
#endif
