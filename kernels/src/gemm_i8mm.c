/* Exact int8 GEMM by SMMLA: 2 rows x 8 k times 2 columns x 8 k into 2 x 2 int32. Two quads of a panel and of the weights,
 * zipped by 32 bits, are the 8 k that it wants; an odd last quad is zipped with 0.
 * 4 rows x 16 columns: 16 accumulators; per 8 k 16 SMMLA (512 MACs) of 36 instructions, 10 of them zips. */
#include "isa.h"

#if HWQ_ARM
#include "gemm_arm.h"

#include <arm_neon.h>

HWQ_TARGET("arch=armv8.6-a+i8mm")

static inline __attribute__((always_inline)) void step(int32x4_t acc[2][8], const int8_t *a, const int8_t *b, const int whole)
{
    const int32x4_t none = vdupq_n_s32(0), a0 = vreinterpretq_s32_s8(vld1q_s8(a));
    const int32x4_t a1 = whole ? vreinterpretq_s32_s8(vld1q_s8(a + 4 * HWQ_ARM_PANEL)) : none;
    const int8x16_t low = vreinterpretq_s8_s32(vzip1q_s32(a0, a1)), high = vreinterpretq_s8_s32(vzip2q_s32(a0, a1));
    for (int j = 0; j < 4; j++) {
        const int32x4_t b0 = vreinterpretq_s32_s8(vld1q_s8(b + 16 * j));
        const int32x4_t b1 = whole ? vreinterpretq_s32_s8(vld1q_s8(b + HWQ_STRIP * HWQ_QUAD + 16 * j)) : none;
        const int8x16_t left = vreinterpretq_s8_s32(vzip1q_s32(b0, b1)), right = vreinterpretq_s8_s32(vzip2q_s32(b0, b1));
        acc[0][2 * j] = vmmlaq_s32(acc[0][2 * j], low, left);
        acc[0][2 * j + 1] = vmmlaq_s32(acc[0][2 * j + 1], low, right);
        acc[1][2 * j] = vmmlaq_s32(acc[1][2 * j], high, left);
        acc[1][2 * j + 1] = vmmlaq_s32(acc[1][2 * j + 1], high, right);
    }
}

static void tile(int64_t quads, const int8_t *a, const int8_t *b, int32_t *c, int64_t stride)
{
    int32x4_t acc_s32x4[2][8]; /* rows 2i, 2i + 1 x columns 2j, 2j + 1 */
    for (int r = 0; r < 2; r++)
        for (int j = 0; j < 8; j++) acc_s32x4[r][j] = vdupq_n_s32(0);
    int64_t q = 0;
    for (; q + 2 <= quads; q += 2, a += 8 * HWQ_ARM_PANEL, b += 2 * HWQ_STRIP * HWQ_QUAD) step(acc_s32x4, a, b, 1);
    if (q < quads) step(acc_s32x4, a, b, 0);
    for (int r = 0; r < 2; r++, c += 2 * stride)
        for (int j = 0; j < 4; j++) {
            const int64x2_t left = vreinterpretq_s64_s32(acc_s32x4[r][2 * j]), right = vreinterpretq_s64_s32(acc_s32x4[r][2 * j + 1]);
            vst1q_s32(c + 4 * j, vreinterpretq_s32_s64(vzip1q_s64(left, right)));
            vst1q_s32(c + stride + 4 * j, vreinterpretq_s32_s64(vzip2q_s64(left, right)));
        }
}

/* A single row would waste half of every SMMLA: SDOT does as much without the zips. */
void hwq_gemm_u8s8__i8mm(const hwq_gemm_args *args)
{
    if (args->m == 1) hwq_gemm_u8s8__neondot(args);
    else hwq_arm_multiply(args, 0x80, args->a_zero_point - 128, tile, tile);
}

void hwq_gemm_s8s8__i8mm(const hwq_gemm_args *args)
{
    if (args->m == 1) hwq_gemm_s8s8__neondot(args);
    else hwq_arm_multiply(args, 0, args->a_zero_point, tile, tile);
}

HWQ_TARGET_END
#endif
