/* Integer softmax: the scalar steps that its paths share. Formulas: kernels/README.md. */
#ifndef HWQ_SOFTMAX_H
#define HWQ_SOFTMAX_H
#include "fixedpoint.h"
#include "hwq/kernels.h"

static inline int hwq_leading_zeros(uint32_t v) /* v > 0 */
{
    int n = 0;
    while (!(v & UINT32_C(0x80000000))) v <<= 1, n++;
    return n;
}

static inline int32_t hwq_shl_saturated(int32_t v, int shift) { return hwq_clamp_s64((int64_t)v * (INT64_C(1) << shift), INT32_MIN, INT32_MAX); }

/* 1 / (1 + a) in Q0.31 for a in [0, 1): three steps of Newton's iteration on 2 / (1 + a) in Q2.29. (s + 1) / 2 < 2^31. */
static inline int32_t hwq_one_over_one_plus(int32_t a)
{
    const int32_t half = (int32_t)(((int64_t)a + INT32_MAX + 1) >> 1);
    int32_t x = 1515870810 + hwq_srdhm(half, -1010580540); /* 48/17 - 32/17 half */
    for (int i = 0; i < 3; i++) x = hwq_wrap_add(x, hwq_shl_saturated(hwq_srdhm(x, (1 << 29) - hwq_srdhm(half, x)), 2));
    return hwq_shl_saturated(x, 1);
}

/* T3: the reciprocal of a row's sum (12 integer bits), and the right shift that its products take: value = away(srdhm(r, e) / 2^shift).
 * The sum wraps modulo 2^32, as the runtime's does; up to 4095 columns it cannot (each term is at most 2^19). */
static inline int32_t hwq_softmax_reciprocal(uint32_t sum, int bits, int *shift)
{
    const int headroom = sum ? hwq_leading_zeros(sum) : 0;
    *shift = 12 - headroom + 31 - bits;
    return hwq_one_over_one_plus((int32_t)((sum << headroom) & INT32_MAX));
}

/* Interpolation between 513 samples, 128 apart: slope * fraction <= 2^16 * 2^7, then rounded halves up. The result passes int16
 * only where the samples do. */
static inline int32_t hwq_interpolate(const int16_t *table, int32_t v)
{
    const int32_t i = 256 + (v >> 7), base = table[i];
    return base + (((table[i + 1] - base) * (v & 127) + 64) >> 7);
}

/* int16: position of the sum's reciprocal in its table, and the right shift of the products. sum > 0. */
static inline int32_t hwq_softmax_position(uint32_t sum, int *shift)
{
    const int headroom = hwq_leading_zeros(sum);
    const int64_t shifted = (int64_t)((((uint64_t)sum << (headroom > 0 ? headroom - 1 : 0)) + (1 << 13)) >> 14);
    *shift = 31 - headroom;
    return hwq_clamp_s64(shifted - (1 << 15) - (1 << 16), INT16_MIN, INT16_MAX);
}

/* RECIPROCAL: ties away of power / (sum * scale), in [0, 2^20]: a power is at most 1, a sum at least 1, the scale at least 2^-20. */
static inline int32_t hwq_softmax_away(float v)
{
    const int32_t whole = (int32_t)v;
    return whole + (v - (float)whole >= 0.5f);
}

static inline int32_t hwq_type_least(int32_t type) { return type == HWQ_S8 ? -128 : type == HWQ_S16 ? -32768 : 0; }
static inline int32_t hwq_type_most(int32_t type) { return type == HWQ_S8 ? 127 : type == HWQ_S16 ? 32767 : 255; }

static inline void hwq_store_small(void *out, int32_t type, int64_t i, int32_t v)
{
    if (type == HWQ_S16) ((int16_t *)out)[i] = (int16_t)v;
    else ((uint8_t *)out)[i] = (uint8_t)v;
}

#endif
