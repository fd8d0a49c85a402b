/* INT4 x INT8 by SMMLA: 2 rows x 8 k times 2 columns x 8 k into 2 x 2 int32. Nibbles are parted so that the 8 k of a column lie together; two quads of a
 * panel are zipped as in gemm_i8mm.c. 4 rows x 16 columns: 16 SMMLA (512 MACs) of 29 instructions, of 42 from nibbles. A single row would waste half of every
 * SMMLA: SDOT does as much without the zips. */
#include "isa.h"

#if HWQ_ARM
#include <arm_neon.h>

HWQ_TARGET("arch=armv8.6-a+i8mm")

enum { ZIPPED = 1 };
#include "gemm_s4_arm.h"

static inline __attribute__((always_inline)) void dots(const int rows, const int packed, int64_t pairs, const int8_t *a, const uint8_t *b, int32x4_t acc[4][4])
{
    int32x4_t squares[2][8]; /* rows 2i, 2i + 1 x columns 2j, 2j + 1 */
    for (int i = 0; i < 2; i++)
        for (int j = 0; j < 8; j++) squares[i][j] = vdupq_n_s32(0);
    for (int64_t p = 0; p < pairs; p++, a += 32, b += packed ? 64 : 128) {
        const int32x4_t x = vreinterpretq_s32_s8(vld1q_s8(a)), y = vreinterpretq_s32_s8(vld1q_s8(a + 16));
        const int8x16_t low = vreinterpretq_s8_s32(vzip1q_s32(x, y)), high = vreinterpretq_s8_s32(vzip2q_s32(x, y));
        for (int v = 0; v < 4; v++) {
            int8x16_t u[2];
            weights_of(packed, b, v, u);
            for (int j = 0; j < 2; j++) {
                squares[0][2 * v + j] = vmmlaq_s32(squares[0][2 * v + j], low, u[j]);
                if (rows > 2) squares[1][2 * v + j] = vmmlaq_s32(squares[1][2 * v + j], high, u[j]);
            }
        }
    }
    for (int i = 0; 2 * i < rows; i++)
        for (int v = 0; v < 4; v++) {
            const int64x2_t left = vreinterpretq_s64_s32(squares[i][2 * v]), right = vreinterpretq_s64_s32(squares[i][2 * v + 1]);
            acc[2 * i][v] = vaddq_s32(acc[2 * i][v], vreinterpretq_s32_s64(vzip1q_s64(left, right)));
            if (2 * i + 1 < rows) acc[2 * i + 1][v] = vaddq_s32(acc[2 * i + 1][v], vreinterpretq_s32_s64(vzip2q_s64(left, right)));
        }
}

void hwq_gemm_s4__i8mm(const hwq_gemm_s4_args *args)
{
    if (args->m == 1) hwq_gemm_s4__neondot(args);
    else multiply(args);
}

HWQ_TARGET_END
#endif
