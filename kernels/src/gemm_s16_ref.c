/* int16 x int8 products, the plain reading. */
#include "gemm_s16.h"

void hwq_gemm_s16s8__ref(const hwq_gemm_s16_args *args)
{
    const hwq_packed *w = args->weights;
    const int64_t k = w->k, k4 = (k + 3) / 4 * 4, end = hwq_s16_end(args);
    const int8_t *quads = w->quads + args->group * hwq_packed_bytes(k, w->n);
    for (int64_t row = 0; row < args->m; row++) {
        const int16_t *a = args->a + row * args->a_stride;
        const int64_t sum = hwq_s16_sum(args, a);
        for (int64_t column = args->first_strip * HWQ_STRIP; column < end; column += HWQ_STRIP) {
            const int8_t *strip = quads + column * k4;
            int64_t sums[HWQ_STRIP] = {0};
            for (int64_t i = 0; i < k; i++)
                for (int j = 0; j < HWQ_STRIP; j++) sums[j] += a[i] * strip[i / 4 * (4 * HWQ_STRIP) + 4 * j + i % 4];
            hwq_s16_finish(args, row, column, sum, sums);
        }
    }
}
