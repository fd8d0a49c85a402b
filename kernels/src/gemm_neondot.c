/* Exact int8 GEMM by SDOT: 4 columns x 4 k of the weights against the 4 k of one row, straight into int32, nothing between.
 * 4 rows x 16 columns: 16 accumulators, 4 vectors of weights, 1 of the panel; 16 SDOT (256 MACs) of 24 instructions. */
#include "isa.h"

#if HWQ_ARM
#include "gemm_arm.h"

#include <arm_neon.h>

HWQ_TARGET("arch=armv8.2-a+dotprod")

static inline __attribute__((always_inline)) void some(const int rows, int64_t quads, const int8_t *a, const int8_t *b, int32_t *c, int64_t stride)
{
    int32x4_t acc_s32x4[4][4];
    for (int r = 0; r < rows; r++)
        for (int j = 0; j < 4; j++) acc_s32x4[r][j] = vdupq_n_s32(0);
    for (int64_t q = 0; q < quads; q++, a += 4 * HWQ_ARM_PANEL, b += HWQ_STRIP * HWQ_QUAD) {
        const int8x16_t x = vld1q_s8(a);
        for (int j = 0; j < 4; j++) {
            const int8x16_t w = vld1q_s8(b + 16 * j);
            acc_s32x4[0][j] = vdotq_laneq_s32(acc_s32x4[0][j], w, x, 0);
            if (rows == 1) continue;
            acc_s32x4[1][j] = vdotq_laneq_s32(acc_s32x4[1][j], w, x, 1);
            acc_s32x4[2][j] = vdotq_laneq_s32(acc_s32x4[2][j], w, x, 2);
            acc_s32x4[3][j] = vdotq_laneq_s32(acc_s32x4[3][j], w, x, 3);
        }
    }
    for (int r = 0; r < rows; r++, c += stride)
        for (int j = 0; j < 4; j++) vst1q_s32(c + 4 * j, acc_s32x4[r][j]);
}

static void tile(int64_t quads, const int8_t *a, const int8_t *b, int32_t *c, int64_t stride) { some(4, quads, a, b, c, stride); }
static void single(int64_t quads, const int8_t *a, const int8_t *b, int32_t *c, int64_t stride) { some(1, quads, a, b, c, stride); }

void hwq_gemm_u8s8__neondot(const hwq_gemm_args *args) { hwq_arm_multiply(args, 0x80, args->a_zero_point - 128, tile, single); }
void hwq_gemm_s8s8__neondot(const hwq_gemm_args *args) { hwq_arm_multiply(args, 0, args->a_zero_point, tile, single); }

HWQ_TARGET_END
#endif
