/* Products with weights of 1 to 3 bits, by bit planes: the truth that lookups must equal. */
#include "isa.h"

void hwq_gemm_planes__ref(const hwq_gemm_planes_args *args)
{
    const int64_t pairs = (args->k + 7) / 8, plane = (args->n + 31) / 32 * pairs * 32;
    for (int64_t i = 0; i < args->m; i++)
        for (int64_t j = 0; j < args->n; j++) {
            const uint8_t *a = args->a + i * args->a_stride, *bytes = args->planes + j / 32 * pairs * 32 + j % 32;
            uint32_t sum = 0; /* modulo 2^32 */
            for (int64_t k = 0; k < args->k; k++)
                for (int32_t bit = 0; bit < args->bits; bit++)
                    sum += (uint32_t)a[k] << bit & (0u - (uint32_t)(bytes[bit * plane + k / 8 * 32] >> k % 8 & 1));
            args->out[i * args->out_stride + j] = (int32_t)sum;
        }
}
