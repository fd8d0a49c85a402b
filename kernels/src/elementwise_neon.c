/* Elementwise loops on AArch64. Advanced SIMD is the baseline, so the compiler vectorizes the loops of binary.h, quantize.h,
 * dynamic.h and pool_lines.h with it; tables and nibbles are spelled out. */
#include "isa.h"

#if HWQ_ARM
#include "binary.h"
#include "dynamic.h"
#include "pool_lines.h"
#include "quantize.h"

#include <arm_neon.h>

void hwq_binary_run__neon(const hwq_binary *p, int64_t n, const void *a, int64_t a_step, const void *b, int64_t b_step, void *out)
{
    combine_all(p, n, a, a_step, b, b_step, out);
}

void hwq_pool_run__neon(const hwq_pool *p) { pool_lines(p); }

void hwq_quantize__neon(int32_t formula, int64_t outer, int64_t channels, int64_t inner, const float *x, const float *scales,
                        const int32_t *zero_points, int32_t lo, int32_t hi, void *out, int32_t out_type)
{
    quantize_all(formula, outer, channels, inner, x, scales, zero_points, lo, hi, out, out_type);
}

void hwq_dequantize__neon(int64_t outer, int64_t channels, int64_t inner, const void *q, int32_t type, const float *scales,
                          const int32_t *zero_points, float *out)
{
    dequantize_all(outer, channels, inner, q, type, scales, zero_points, out);
}

void hwq_fake_quantize__neon(int64_t n, const float *x, float scale, int32_t zero_point, int32_t lo, int32_t hi, float *out)
{
    fake_quantize_all(n, x, scale, zero_point, lo, hi, out);
}

void hwq_dynamic_quantize__neon(int32_t formula, int64_t rows, int64_t columns, const float *x, void *out, float *scales, int32_t *zero_points)
{
    for (int64_t row = 0; row < rows; row++)
        dynamic_row(formula, columns, x + row * columns, (uint8_t *)out + row * columns, scales + row, zero_points + row);
}

/* tbl reads 64 entries, 0 beyond them; each tbx replaces what falls into its 64. */
void hwq_lut__neon(int64_t n, const uint8_t *x, uint8_t flip, const uint8_t *table, uint8_t *out)
{
    uint8x16x4_t quarter[4];
    for (int q = 0; q < 4; q++)
        for (int i = 0; i < 4; i++) quarter[q].val[i] = vld1q_u8(table + 64 * q + 16 * i);
    int64_t i = 0;
    for (; i + 16 <= n; i += 16) {
        const uint8x16_t at = veorq_u8(vld1q_u8(x + i), vdupq_n_u8(flip));
        uint8x16_t y = vqtbl4q_u8(quarter[0], at);
        y = vqtbx4q_u8(y, quarter[1], vsubq_u8(at, vdupq_n_u8(64)));
        y = vqtbx4q_u8(y, quarter[2], vsubq_u8(at, vdupq_n_u8(128)));
        vst1q_u8(out + i, vqtbx4q_u8(y, quarter[3], vsubq_u8(at, vdupq_n_u8(192))));
    }
    for (; i < n; i++) out[i] = table[x[i] ^ flip];
}

void hwq_unpack_int4__neon(int64_t n, const uint8_t *packed, int32_t is_signed, int8_t *x)
{
    int64_t i = 0;
    for (; i + 32 <= n; i += 32) {
        const uint8x16_t bytes = vld1q_u8(packed + i / 2);
        int8x16x2_t pair;
        if (is_signed) {
            pair.val[0] = vshrq_n_s8(vshlq_n_s8(vreinterpretq_s8_u8(bytes), 4), 4);
            pair.val[1] = vshrq_n_s8(vreinterpretq_s8_u8(bytes), 4);
        } else {
            pair.val[0] = vreinterpretq_s8_u8(vandq_u8(bytes, vdupq_n_u8(15)));
            pair.val[1] = vreinterpretq_s8_u8(vshrq_n_u8(bytes, 4));
        }
        vst2q_s8(x + i, pair);
    }
    hwq_unpack_int4__ref(n - i, packed + i / 2, is_signed, x + i);
}
#endif
