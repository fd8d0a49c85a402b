/* What the paths of layer normalization share: the statistics of a row, and one element. */
#ifndef HWQ_LAYER_NORM_H
#define HWQ_LAYER_NORM_H
#include "isa.h"
#include "softmax.h"

typedef struct {
    int32_t mean;        /* in 1/1024 */
    int32_t root, shift; /* 1 / sqrt(variance), for R1 */
} hwq_layer_norm_row;
hwq_layer_norm_row hwq_layer_norm_measure(const hwq_layer_norm *p, const int16_t *x);

/* |1024 x - mean| < 2^27; the product with a 16-bit weight takes 64 bits, and 32 again after / 1024. */
static inline int16_t hwq_layer_norm_one(const hwq_layer_norm *p, const hwq_layer_norm_row *row, int64_t i, int32_t x)
{
    const int64_t v = (int64_t)hwq_round_gemmlowp(1024 * x - row->mean, row->root, row->shift) * p->weights[i] + (p->bias ? p->bias[i] : 0);
    const int32_t part = (int32_t)((v > 0 ? v + 512 : v - 512) / 1024);
    return (int16_t)hwq_clamp_s64(hwq_round_gemmlowp(part, p->multiplier, p->shift + 12), INT16_MIN, INT16_MAX);
}

#endif
