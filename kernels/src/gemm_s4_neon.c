/* INT4 x INT8 on plain Advanced SIMD: smlal adds products to int16 sums, |a u| <= 128 * 15 = 1920. 16 of them, 30,720, stay below 2^15, so 64 k
 * pass before the sums are widened: an instruction for 8 MACs where full bytes (gemm_neon.c) need two. 2 rows x 16 columns at a time: 16 sums;
 * 32 smlal of 51 instructions, 58 where nibbles are parted in registers. */
#include "isa.h"

#if HWQ_ARM
#include <arm_neon.h>

enum { ZIPPED = 0, RUN = 8 /* pairs of quads: 16 products a lane */ };
#include "gemm_s4_arm.h"

/* Rows are `4 bytes` apart in a panel. */
static inline __attribute__((always_inline)) void run(const int rows, const int packed, int64_t pairs, const int8_t *a, const uint8_t *b, int32x4_t acc[][4])
{
    int16x8_t sums[2][8]; /* [row]: 2 columns x 4 of k */
    for (int r = 0; r < rows; r++)
        for (int j = 0; j < 8; j++) sums[r][j] = vdupq_n_s16(0);
    for (int64_t p = 0; p < pairs; p++, a += 32, b += packed ? 64 : 128)
        for (int v = 0; v < 4; v++) {
            int8x16_t u[2];
            weights_of(packed, b, v, u);
            for (int half = 0; half < 2; half++)
                for (int r = 0; r < rows; r++) {
                    int32_t quad;
                    memcpy(&quad, a + 16 * half + 4 * r, 4);
                    const int8x16_t x = vreinterpretq_s8_s32(vdupq_n_s32(quad));
                    sums[r][2 * v] = vmlal_s8(sums[r][2 * v], vget_low_s8(x), vget_low_s8(u[half]));
                    sums[r][2 * v + 1] = vmlal_high_s8(sums[r][2 * v + 1], x, u[half]);
                }
        }
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < 4; v++) acc[r][v] = vaddq_s32(acc[r][v], vpaddq_s32(vpaddlq_s16(sums[r][2 * v]), vpaddlq_s16(sums[r][2 * v + 1])));
}

static inline __attribute__((always_inline)) void dots(const int rows, const int packed, int64_t pairs, const int8_t *a, const uint8_t *b, int32x4_t acc[4][4])
{
    for (int64_t p = 0; p < pairs; p += RUN, a += 32 * RUN, b += (packed ? 64 : 128) * RUN) {
        const int64_t count = pairs - p < RUN ? pairs - p : RUN;
        run(rows < 2 ? 1 : 2, packed, count, a, b, acc);
        if (rows > 2) run(2, packed, count, a + 8, b, acc + 2);
    }
}

void hwq_gemm_s4__neon(const hwq_gemm_s4_args *args) { multiply(args); }
#endif
