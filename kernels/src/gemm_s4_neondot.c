/* INT4 x INT8 by SDOT: nibbles of 0..15 as int8 against the 4 k of a row, straight into int32. 4 rows x 16 columns: 32 SDOT (512 MACs) of 44
 * instructions, of 55 where nibbles are parted in registers. One row: 8 SDOT, and low and high nibbles in sums of their own, so that 8 chains are in flight. */
#include "isa.h"

#if HWQ_ARM
#include <arm_neon.h>

HWQ_TARGET("arch=armv8.2-a+dotprod")

enum { ZIPPED = 0 };
#include "gemm_s4_arm.h"

static inline __attribute__((always_inline)) void dots(const int rows, const int packed, int64_t pairs, const int8_t *a, const uint8_t *b, int32x4_t acc[4][4])
{
    int32x4_t high[4];
    for (int v = 0; v < 4; v++) high[v] = vdupq_n_s32(0);
    for (int64_t p = 0; p < pairs; p++, a += 32, b += packed ? 64 : 128) {
        const int8x16_t x = vld1q_s8(a), y = vld1q_s8(a + 16);
        for (int v = 0; v < 4; v++) {
            int8x16_t u[2];
            weights_of(packed, b, v, u);
            acc[0][v] = vdotq_laneq_s32(acc[0][v], u[0], x, 0);
            if (rows == 1) {
                high[v] = vdotq_laneq_s32(high[v], u[1], y, 0);
                continue;
            }
            acc[1][v] = vdotq_laneq_s32(acc[1][v], u[0], x, 1);
            acc[2][v] = vdotq_laneq_s32(acc[2][v], u[0], x, 2);
            acc[3][v] = vdotq_laneq_s32(acc[3][v], u[0], x, 3);
            acc[0][v] = vdotq_laneq_s32(acc[0][v], u[1], y, 0);
            acc[1][v] = vdotq_laneq_s32(acc[1][v], u[1], y, 1);
            acc[2][v] = vdotq_laneq_s32(acc[2][v], u[1], y, 2);
            acc[3][v] = vdotq_laneq_s32(acc[3][v], u[1], y, 3);
        }
    }
    for (int v = 0; v < 4 && rows == 1; v++) acc[0][v] = vaddq_s32(acc[0][v], high[v]);
}

void hwq_gemm_s4__neondot(const hwq_gemm_s4_args *args) { multiply(args); }

HWQ_TARGET_END
#endif
