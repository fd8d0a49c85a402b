/* FP16 and BF16 as float32: the plain reading of widen and narrow, and the product that stands on them. */
#include "half.h"

#include "isa.h"

void hwq_widen__ref(int32_t type, int64_t n, const uint16_t *x, float *out)
{
    if (type == HWQ_F16)
        for (int64_t i = 0; i < n; i++) out[i] = hwq_from_f16(x[i]);
    else
        for (int64_t i = 0; i < n; i++) out[i] = hwq_from_bf16(x[i]);
}

void hwq_narrow__ref(int32_t type, int64_t n, const float *x, uint16_t *out)
{
    if (type == HWQ_F16)
        for (int64_t i = 0; i < n; i++) out[i] = hwq_to_f16(x[i]);
    else
        for (int64_t i = 0; i < n; i++) out[i] = hwq_to_bf16(x[i]);
}

enum { ROWS = 24 }; /* rows held as float32 at once: a multiple of every tile's */

int64_t hwq_gemm_half_workspace(int64_t k, int64_t n) { return ROWS * (k + n) * 4; }

/* No intrinsics: the products below are those of the chosen path, in the one order. */
void hwq_gemm_half(const hwq_gemm_half_args *args)
{
    float *rows = args->workspace, *sums = rows + ROWS * args->k;
    for (int64_t top = 0; top < args->m; top += ROWS) {
        const int64_t count = args->m - top < ROWS ? args->m - top : ROWS;
        for (int64_t r = 0; r < count; r++) hwq_widen(args->type, args->k, args->a + (top + r) * args->a_stride, rows + r * args->k);
        const hwq_gemm_f32_args block = {.m = count, .k = args->k, .n = args->n, .a = rows, .a_stride = args->k, .weights = args->weights,
                                         .bias = args->bias, .out = sums, .out_stride = args->n};
        hwq_gemm_f32(&block);
        for (int64_t r = 0; r < count; r++) hwq_narrow(args->type, args->n, sums + r * args->n, args->out + (top + r) * args->out_stride);
    }
}
