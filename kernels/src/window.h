/* Windows over up to three spatial dimensions: what convolution and pooling share. */
#ifndef HWQ_WINDOW_H
#define HWQ_WINDOW_H
#include "hwq/kernels.h"

static inline int64_t hwq_window_taps(const hwq_window *w) { return w->kernel[0] * w->kernel[1] * w->kernel[2]; }
static inline int64_t hwq_window_inputs(const hwq_window *w) { return w->in[0] * w->in[1] * w->in[2]; }
static inline int64_t hwq_window_outputs(const hwq_window *w) { return w->out[0] * w->out[1] * w->out[2]; }

/* The first input coordinate of the window at an output position (row-major index over out), maybe negative. */
static inline void hwq_window_origin(const hwq_window *w, int64_t position, int64_t origin[3])
{
    for (int d = 2; d >= 0; d--) {
        origin[d] = position % w->out[d] * w->stride[d] - w->pad[d];
        position /= w->out[d];
    }
}

/* Pixel index of one tap, or -1 where it lies in the padding. */
static inline int64_t hwq_window_pixel(const hwq_window *w, const int64_t origin[3], int64_t t0, int64_t t1, int64_t t2)
{
    const int64_t i0 = origin[0] + t0 * w->dilation[0], i1 = origin[1] + t1 * w->dilation[1], i2 = origin[2] + t2 * w->dilation[2];
    if (i0 < 0 || i1 < 0 || i2 < 0 || i0 >= w->in[0] || i1 >= w->in[1] || i2 >= w->in[2]) return -1;
    return (i0 * w->in[1] + i1) * w->in[2] + i2;
}

#endif
