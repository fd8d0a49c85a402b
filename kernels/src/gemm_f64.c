/* Float64 products: every element is one chain of fused multiply-adds, so any tile gives the same bits. */
#include "isa.h"

#include <math.h>

void hwq_gemm_f64__ref(const hwq_gemm_f64_args *args)
{
    for (int64_t row = 0; row < args->m; row++) {
        const double *a = args->a + row * args->a_row;
        for (int64_t column = 0; column < args->n; column++) {
            double y = args->accumulate ? args->out[row * args->out_stride + column] : 0.0;
            for (int64_t i = 0; i < args->k; i++) y = fma(a[i * args->a_step], args->b[i * args->b_stride + column], y);
            args->out[row * args->out_stride + column] = y;
        }
    }
}
