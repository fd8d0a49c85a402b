/* Exact int8 GEMM on plain Advanced SIMD. smull gives products of bytes in int16 (|(-128)(-128)| = 2^14 fits), sadalp adds
 * neighboring pairs of them into int32: no int16 sum, which (-128)(-128) twice would overflow by one. Per 8 MACs: one
 * smull, one sadalp. Two rows x 16 columns at a time: 16 accumulators of (column, half of the quad); 16 smull of 46 instructions (this and all counts
 * of the AArch64 files: the inner loop by gcc 12 -O3, read by objdump; no such machine was there to time them on). */
#include "isa.h"

#if HWQ_ARM
#include "gemm_arm.h"

#include <arm_neon.h>

static inline __attribute__((always_inline)) void some(const int rows, int64_t quads, const int8_t *a, const int8_t *b, int32_t *c, int64_t stride)
{
    int32x4_t acc_s32x4[2][8];
    for (int r = 0; r < rows; r++)
        for (int j = 0; j < 8; j++) acc_s32x4[r][j] = vdupq_n_s32(0);
    for (int64_t q = 0; q < quads; q++, a += 4 * HWQ_ARM_PANEL, b += HWQ_STRIP * HWQ_QUAD) {
        const int32x2_t both = vreinterpret_s32_s8(vld1_s8(a));
        const int8x8_t first = vreinterpret_s8_s32(vdup_lane_s32(both, 0)), second = vreinterpret_s8_s32(vdup_lane_s32(both, 1));
        for (int j = 0; j < 8; j++) {
            const int8x8_t w = vld1_s8(b + 8 * j);
            acc_s32x4[0][j] = vpadalq_s16(acc_s32x4[0][j], vmull_s8(first, w));
            if (rows > 1) acc_s32x4[1][j] = vpadalq_s16(acc_s32x4[1][j], vmull_s8(second, w));
        }
    }
    for (int r = 0; r < rows; r++, c += stride)
        for (int j = 0; j < 4; j++) vst1q_s32(c + 4 * j, vpaddq_s32(acc_s32x4[r][2 * j], acc_s32x4[r][2 * j + 1]));
}

static void tile(int64_t quads, const int8_t *a, const int8_t *b, int32_t *c, int64_t stride)
{
    some(2, quads, a, b, c, stride);
    some(2, quads, a + 8, b, c + 2 * stride, stride);
}

static void single(int64_t quads, const int8_t *a, const int8_t *b, int32_t *c, int64_t stride) { some(1, quads, a, b, c, stride); }

void hwq_gemm_u8s8__neon(const hwq_gemm_args *args) { hwq_arm_multiply(args, 0x80, args->a_zero_point - 128, tile, single); }
void hwq_gemm_s8s8__neon(const hwq_gemm_args *args) { hwq_arm_multiply(args, 0, args->a_zero_point, tile, single); }
#endif
