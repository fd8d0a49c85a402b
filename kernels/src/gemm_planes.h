/* Products with weights of 1 to 3 bits by table lookup (T-MAC, Wei et al. 2024; LUT-GEMM, Park et al. 2022), exact.
 *
 * Four consecutive activations have 16 sums of subsets, at most 4 * 255 = 1020, kept as two tables of 16 bytes, low and high. They are built once a row, K / 4
 * of them, and serve every column and plane: that is why it wins where rows are few (reports/lut). */
#ifndef HWQ_GEMM_PLANES_H
#define HWQ_GEMM_PLANES_H
#include "hwq/kernels.h"

static void build(int64_t k, const uint8_t *a, uint8_t *tables)
{
    for (int64_t g = 0; g < (k + 7) / 8 * 2; g++) {
        uint16_t sums[16] = {0};
        for (int bit = 0; bit < 4; bit++)
            for (int low = 0; low < 1 << bit; low++) sums[(1 << bit) + low] = (uint16_t)(sums[low] + (4 * g + bit < k ? a[4 * g + bit] : 0));
        for (int i = 0; i < 16; i++) {
            tables[32 * g + i] = (uint8_t)sums[i];
            tables[32 * g + 16 + i] = (uint8_t)(sums[i] >> 8);
        }
    }
}

#endif
