/* FP16 and BF16, scalar: widening is exact, narrowing rounds to nearest even. A NaN stays a quiet NaN. */
#ifndef HWQ_HALF_H
#define HWQ_HALF_H
#include <stdint.h>
#include <string.h>

static inline uint32_t hwq_bits(float v)
{
    uint32_t bits;
    memcpy(&bits, &v, 4);
    return bits;
}

static inline float hwq_float(uint32_t bits)
{
    float v;
    memcpy(&v, &bits, 4);
    return v;
}

static inline float hwq_from_f16(uint16_t h)
{
    const uint32_t sign = (uint32_t)(h & 0x8000) << 16, exponent = h >> 10 & 31, mantissa = h & 0x3FF;
    if (exponent == 31) return hwq_float(sign | 0x7F800000 | mantissa << 13 | (mantissa ? 0x400000 : 0));
    if (exponent) return hwq_float(sign | (exponent + 112) << 23 | mantissa << 13); /* biases 15 and 127 */
    return hwq_float(sign | hwq_bits((float)mantissa * 0x1p-24f));
}

static inline uint16_t hwq_to_f16(float v)
{
    const uint32_t bits = hwq_bits(v), size = bits & 0x7FFFFFFF, sign = bits >> 16 & 0x8000;
    if (size > 0x7F800000) return (uint16_t)(sign | 0x7E00 | (size >> 13 & 0x1FF));
    if (size >= 0x477FF000) return (uint16_t)(sign | 0x7C00); /* 65520, the tie above the largest */
    /* Below 2^-14 the grid is 2^-24, the grid of float32 in [0.5, 1): the addition rounds. */
    if (size < 0x38800000) return (uint16_t)(sign | (hwq_bits(hwq_float(size) + 0.5f) - 0x3F000000));
    return (uint16_t)(sign | ((size - (112u << 23) + 0xFFF + (size >> 13 & 1)) >> 13));
}

static inline float hwq_from_bf16(uint16_t h)
{
    const uint32_t bits = (uint32_t)h << 16;
    return hwq_float((bits & 0x7FFFFFFF) > 0x7F800000 ? bits | 0x400000 : bits);
}

static inline uint16_t hwq_to_bf16(float v)
{
    const uint32_t bits = hwq_bits(v);
    if ((bits & 0x7FFFFFFF) > 0x7F800000) return (uint16_t)(bits >> 16 | 0x40);
    return (uint16_t)((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}

#endif
