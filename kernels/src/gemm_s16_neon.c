/* int16 x int8 products: per column of a quad, smlal of its 4 k. A lane grows by at most 2^22 a quad, so 256 quads stay within
 * 2^30; then the 4 lanes go to int64. One row x 16 columns: 16 accumulators. */
#include "gemm_s16.h"

#if HWQ_ARM
#include <arm_neon.h>
#include <string.h>

enum { RUN = 256 };

static void line(int64_t k, const int16_t *a, const int8_t *b, int64_t *sums)
{
    memset(sums, 0, HWQ_STRIP * sizeof(int64_t));
    for (int64_t first = 0; first < k; first += 4 * RUN) {
        const int64_t last = first + 4 * RUN < k ? first + 4 * RUN : k;
        int32x4_t acc_s32x4[HWQ_STRIP];
        for (int j = 0; j < HWQ_STRIP; j++) acc_s32x4[j] = vdupq_n_s32(0);
        for (int64_t i = first; i < last; i += 4, b += 4 * HWQ_STRIP) {
            int16_t tail[4] = {0};
            const int16x4_t quad = vld1_s16(k - i >= 4 ? a + i : memcpy(tail, a + i, (size_t)(k - i) * 2));
            for (int j = 0; j < HWQ_STRIP; j += 2) {
                const int16x8_t w = vmovl_s8(vld1_s8(b + 4 * j));
                acc_s32x4[j] = vmlal_s16(acc_s32x4[j], vget_low_s16(w), quad);
                acc_s32x4[j + 1] = vmlal_s16(acc_s32x4[j + 1], vget_high_s16(w), quad);
            }
        }
        for (int j = 0; j < HWQ_STRIP; j++) sums[j] += vaddlvq_s32(acc_s32x4[j]);
    }
}

void hwq_gemm_s16s8__neon(const hwq_gemm_s16_args *args)
{
    const hwq_packed *w = args->weights;
    const int64_t k = w->k, k4 = (k + 3) / 4 * 4, end = hwq_s16_end(args);
    const int8_t *quads = w->quads + args->group * hwq_packed_bytes(k, w->n);
    for (int64_t row = 0; row < args->m; row++) {
        const int16_t *a = args->a + row * args->a_stride;
        const int64_t sum = hwq_s16_sum(args, a);
        for (int64_t column = args->first_strip * HWQ_STRIP; column < end; column += HWQ_STRIP) {
            int64_t sums[HWQ_STRIP];
            line(k, a, quads + column * k4, sums);
            hwq_s16_finish(args, row, column, sum, sums);
        }
    }
}
#endif
