/* Float32 products in sequential order: every element is one chain of fused multiply-adds over k, cut into blocks whose sums
 * are added to the result one after the other. Any tile gives the same bits, since a chain never leaves its lane. */
#include "isa.h"

#include <math.h>

void hwq_gemm_sequential__ref(const hwq_gemm_sequential_args *args)
{
    for (int64_t row = 0; row < args->m; row++) {
        const float *a = args->a + row * args->a_stride;
        for (int64_t column = 0; column < args->n; column++) {
            float y = args->accumulate ? args->out[row * args->out_stride + column] : 0.0f;
            for (int64_t first = 0; first < args->k; first += args->block) {
                const int64_t last = args->k - first < args->block ? args->k : first + args->block;
                float chain = 0.0f;
                for (int64_t i = first; i < last; i++) chain = fmaf(a[i], args->b[i * args->b_stride + column], chain);
                y = first || args->accumulate ? y + chain : chain;
            }
            args->out[row * args->out_stride + column] = y;
        }
    }
}
