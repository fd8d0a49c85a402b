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

/* The epilogue of float accumulators: y takes the place of f32(acc). */
static inline void hwq_finish_floats(const hwq_epilogue *e, int64_t rows, int64_t columns, int64_t column, const float *y, int64_t y_stride,
                                     void *out, int64_t out_stride)
{
    const float *scales = e->scales_f32 + (e->channel_step ? column : 0);
    for (int64_t r = 0; r < rows; r++, y += y_stride)
        for (int64_t j = 0; j < columns; j++) {
            const float scale = scales[e->channel_step ? j : 0];
            if (e->kind == HWQ_KIND_F32) {
                const float v = y[j] * scale;
                ((float *)out)[r * out_stride + j] = e->float_bias ? v + e->float_bias[column + j] : v;
            } else {
                const float v = e->float_bias ? y[j] + e->float_bias[column + j] : y[j];
                ((uint8_t *)out)[r * out_stride + j] = (uint8_t)hwq_round_fp32(v, scale, e->zero_point, e->lo, e->hi);
            }
        }
}

#endif
