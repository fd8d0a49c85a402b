/* Shared by the products with weights of at most 4 bits. */
#ifndef HWQ_GEMM_S4_H
#define HWQ_GEMM_S4_H
#include "epilogue.h"
#include "fixedpoint.h"
#include "gemm.h"

enum { HWQ_S4_STRIPS = 4 /* of 16 columns that any path prepares at once, at most */ };

/* Bytes by which weights that are read once are asked for before they are needed: the processor's own reading ahead stops at pages. */
enum { HWQ_S4_AHEAD = 1024 };

/* What products with float a know of the weights: nothing; their zero points are the middle; and they may come shifted. */
enum { ANY, SYMMETRIC, SHIFTED };

static inline int64_t hwq_s4_blocks(const hwq_packed_s4 *w) { return w->k > 0 ? (w->k + w->block - 1) / w->block : 0; }

/* Bytes of a prepared row: its u8, then one sum per block, in whole cache lines. */
static inline int64_t hwq_s4_row(int64_t k, int64_t block)
{
    return hwq_gemm_line(k) + (((k + block - 1) / block * 4 + 63) / 64 | 1) * 64;
}

/* to = y * scales (+ bias), never fused; the compiler's vectors are the caller's. */
static inline __attribute__((always_inline)) void hwq_scale_floats(int64_t n, const float *restrict y, const float *restrict scales, int step,
                                                                   const float *restrict bias, float *restrict to)
{
    if (step)
        for (int64_t j = 0; j < n; j++) to[j] = y[j] * scales[j];
    else
        for (int64_t j = 0; j < n; j++) to[j] = y[j] * scales[0];
    for (int64_t j = 0; bias && j < n; j++) to[j] += bias[j];
}

/* The epilogue of float accumulators: y takes the place of f32(acc). */
static inline __attribute__((always_inline)) void hwq_finish_floats(const hwq_epilogue *e, int64_t rows, int64_t columns, int64_t column, const float *y, int64_t y_stride,
                                     void *out, int64_t out_stride)
{
    const float *scales = e->scales_f32 + (e->channel_step ? column : 0);
    const float *bias = e->float_bias ? e->float_bias + column : NULL;
    for (int64_t r = 0; r < rows; r++, y += y_stride)
        if (e->kind == HWQ_KIND_F32) hwq_scale_floats(columns, y, scales, e->channel_step, bias, (float *)out + r * out_stride);
        else
            for (int64_t j = 0; j < columns; j++)
                ((uint8_t *)out)[r * out_stride + j] = (uint8_t)hwq_round_fp32(bias ? y[j] + bias[j] : y[j], scales[e->channel_step ? j : 0], e->zero_point,
                                                                             e->lo, e->hi);
}

#endif
