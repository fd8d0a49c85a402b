/* int16 activations times int8 weights: what its paths share. Accumulators are int64 and never overflow: |a - za| < 2^17,
 * |w - zw| < 2^9, so K would have to pass 2^37. sum a, and K za zw, are taken only where a zero point asks for them. */
#ifndef HWQ_GEMM_S16_H
#define HWQ_GEMM_S16_H
#include "epilogue.h"
#include "isa.h"

/* Turn sums of a * w of one row and strip into outputs. */
static inline void hwq_s16_finish(const hwq_gemm_s16_args *args, int64_t row, int64_t column, int64_t sum, const int64_t *sums)
{
    const hwq_packed *w = args->weights;
    const int64_t base = args->group * w->n, width = w->n - column < HWQ_STRIP ? w->n - column : HWQ_STRIP, za = args->a_zero_point;
    int64_t wide[HWQ_STRIP];
    int32_t narrow[HWQ_STRIP];
    for (int64_t j = 0; j < width; j++) {
        const int64_t at = base + column + j, zw = w->zero_points ? w->zero_points[at] : 0;
        wide[j] = (args->bias ? args->bias[at] : 0) + sums[j] - za * w->column_sums[at] - zw * sum + w->k * za * zw;
        narrow[j] = (int32_t)(uint32_t)(uint64_t)wide[j];
    }
    const hwq_epilogue tile = hwq_epilogue_at(args->epilogue, row, column);
    char *out = (char *)args->out + (row * args->out_stride + column) * hwq_type_size(tile.out_type);
    hwq_requantize(&tile, 1, width, base + column, args->acc_type == HWQ_S64 ? (const void *)wide : narrow, args->acc_type, HWQ_STRIP, out,
                   args->out_stride);
}

static inline int64_t hwq_s16_sum(const hwq_gemm_s16_args *args, const int16_t *a)
{
    int64_t sum = 0;
    if (args->weights->zero_points)
        for (int64_t i = 0; i < args->weights->k; i++) sum += a[i];
    return sum;
}

static inline int64_t hwq_s16_end(const hwq_gemm_s16_args *args)
{
    const int64_t wanted = (args->first_strip + args->strips) * HWQ_STRIP;
    return wanted < args->weights->n ? wanted : args->weights->n;
}

#endif
