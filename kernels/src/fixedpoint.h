/* Every rounding, inline scalar: the truth that each vector path is tested against. kernels/README.md tells who uses which.
 * No undefined behavior for any input: wrapping sums are unsigned, shifts of negative numbers are arithmetic (all supported
 * compilers), casts from float happen after clamping. */
#ifndef HWQ_FIXEDPOINT_H
#define HWQ_FIXEDPOINT_H
#include <math.h>
#include <stdint.h>

static inline int32_t hwq_wrap_add(int32_t a, int32_t b) { return (int32_t)((uint32_t)a + (uint32_t)b); }
static inline int32_t hwq_wrap_mul(int32_t a, int32_t b) { return (int32_t)((uint32_t)a * (uint32_t)b); }
static inline int32_t hwq_wrap_shl(int32_t a, int shift) { return (int32_t)((uint32_t)a << shift); } /* shift 0..31 */

/* Nearest of a * b / 2^31, exact halves up; INT32_MIN^2 saturates (gemmlowp SaturatingRoundingDoublingHighMul, whose nudge
 * by sign and truncating division come to the same). The result is bits 31..62, which a logical shift gives too. */
static inline int32_t hwq_srdhm(int32_t a, int32_t b)
{
    uint64_t product = (uint64_t)((int64_t)a * b) + (UINT64_C(1) << 30);
    return a == INT32_MIN && b == INT32_MIN ? INT32_MAX : (int32_t)(uint32_t)(product >> 31);
}

/* Nearest of x / 2^e, halves away from zero, e in 0..31 (gemmlowp RoundingDivideByPOT). */
static inline int32_t hwq_rdbpot(int32_t x, int e)
{
    int32_t mask = (int32_t)((UINT32_C(1) << e) - 1);
    int32_t threshold = (mask >> 1) + (x < 0);
    return (x >> e) + ((x & mask) > threshold);
}

/* floor(v / 2^e + 1/2), e in 0..62. Bound: |v| < 2^62 where e = 62, so that the sum fits. */
static inline int64_t hwq_up(int64_t v, int e) { return e > 0 ? (v + (INT64_C(1) << (e - 1))) >> e : v; }

/* R1. shift in [-31, 31], positive to the left; the left shift wraps as the reference's int32 does. */
static inline int32_t hwq_round_gemmlowp(int32_t acc, int32_t multiplier, int32_t shift)
{
    int left = shift > 0 ? shift : 0, right = shift > 0 ? 0 : -shift;
    return hwq_rdbpot(hwq_srdhm(hwq_wrap_shl(acc, left), multiplier), right);
}

/* R3. The first stage keeps the low 32 bits (only INT32_MIN^2 notices). */
static inline int64_t hwq_round_ruy(int32_t acc, int32_t multiplier, int32_t shift)
{
    int left = shift > 0 ? shift : 0, right = shift > 0 ? 0 : -shift;
    int32_t high = (int32_t)(uint32_t)(uint64_t)hwq_up((int64_t)hwq_wrap_shl(acc, left) * multiplier, 31);
    return hwq_up(high, right);
}

/* R5. m16 is the multiplier rounded to 16 bits; |acc| < 2^47 and shift in [-31, 7], as the runtime demands. */
static inline int64_t hwq_round_mbqm64(int64_t acc, int32_t multiplier, int32_t shift)
{
    int64_t m16 = multiplier < 0x7FFF0000 ? (multiplier + (1 << 15)) >> 16 : 0x7FFF;
    return hwq_up((int64_t)((uint64_t)acc * (uint64_t)m16), 15 - shift);
}

/* R6. shift is the right shift, 1..31: |acc * m| < 2^62. */
static inline int64_t hwq_round_xnn_fixed(int32_t acc, int32_t multiplier, int32_t shift)
{
    return hwq_up((int64_t)acc * multiplier, shift);
}

/* R7. shift in [-31, 30]. |acc * m| <= 2^62 and half of 2^(31 - shift) <= 2^61: the sum fits. */
static inline int64_t hwq_round_single(int32_t acc, int32_t multiplier, int32_t shift)
{
    return hwq_up((int64_t)acc * multiplier, 31 - shift);
}

static inline int32_t hwq_clamp_s64(int64_t v, int32_t lo, int32_t hi) { return (int32_t)(v < lo ? lo : v > hi ? hi : v); }

/* clamp(v + zero_point, lo, hi) without overflow: |lo - zp| and |hi - zp| are below 2^17. */
static inline int32_t hwq_clamp_shifted(int32_t v, int32_t zero_point, int32_t lo, int32_t hi)
{
    const int32_t low = lo - zero_point, high = hi - zero_point;
    v = v < low ? low : v;
    return (v > high ? high : v) + zero_point;
}

/* NaN becomes lo, as maxps(v, lo) does. */
static inline float hwq_clamp_f32(float v, float lo, float hi)
{
    v = v > lo ? v : lo;
    return v < hi ? v : hi;
}

/* Clamped float to int, ties to even. Bound: lo - zp and hi - zp are at most 2^17 in size, exact in float32. */
static inline int32_t hwq_rint_clamped(float v, int32_t zero_point, int32_t lo, int32_t hi)
{
    return (int32_t)rintf(hwq_clamp_f32(v, (float)(lo - zero_point), (float)(hi - zero_point))) + zero_point;
}

/* R4, with fbgemm's float bias already inside v. */
static inline int32_t hwq_round_fp32(float v, float scale, int32_t zero_point, int32_t lo, int32_t hi)
{
    return hwq_rint_clamped(v * scale, zero_point, lo, hi);
}

/* R2: ties away. Clamping first changes nothing, because rounding is monotone and the bounds are integers; what is left of v is exact. */
static inline int32_t hwq_round_f64(double acc, double scale, int32_t zero_point, int32_t lo, int32_t hi)
{
    const double low = (double)lo - zero_point, high = (double)hi - zero_point;
    double v = acc * scale;
    v = v > low ? v : low;
    v = v < high ? v : high;
    const int32_t whole = (int32_t)v;
    const double rest = v - whole;
    return whole + (rest >= 0.5) - (rest <= -0.5) + zero_point;
}

/* Ties away from zero to int32; what does not fit, NaN included, becomes INT32_MIN, as x86's conversion does.
 * Adding the float below one half and truncating is exact: no float below a tie reaches it. */
static inline int32_t hwq_away_s32(float v)
{
    const int fits = v >= -2147483648.0f && v < 2147483648.0f;
    const float safe = fits ? v : 0.0f;
    const int32_t rounded = (int32_t)(safe + copysignf(0.49999997f, safe));
    return fits ? rounded : INT32_MIN;
}

#endif
