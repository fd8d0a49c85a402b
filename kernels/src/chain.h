/* Convolutions in the order of one chain: their workspace, and where their weights lie. */
#ifndef HWQ_CHAIN_H
#define HWQ_CHAIN_H
#include "conv.h"
#include "window.h"

/* Bytes: the image with its padding, the runs' offsets. columns: pixels of an image row, with its padding. */
typedef struct {
    int64_t image, offsets, columns, k;
    int padded;
} hwq_chain_shape;

static inline int64_t hwq_chain_columns(int64_t n) { return (n + HWQ_CHAIN_STRIP - 1) / HWQ_CHAIN_STRIP * HWQ_CHAIN_STRIP; }

/* Floats that the whole weights of a convolution take. */
static inline int64_t hwq_chain_floats(const hwq_conv *c)
{
    const int64_t taps = hwq_window_taps(&c->window);
    return c->depthwise ? taps * c->channels : c->groups * hwq_chain_columns(c->out_channels / c->groups) * taps * (c->channels / c->groups);
}

static inline hwq_chain_shape hwq_chain_measure(const hwq_conv *c)
{
    const hwq_window *w = &c->window;
    const int64_t rows = (w->out[1] - 1) * w->stride[1] + (w->kernel[1] - 1) * w->dilation[1] + 1;
    const int64_t columns = (w->out[2] - 1) * w->stride[2] + (w->kernel[2] - 1) * w->dilation[2] + 1;
    hwq_chain_shape s;
    s.padded = w->pad[1] || w->pad[2] || rows > w->in[1] || columns > w->in[2];
    s.columns = s.padded ? columns : w->in[2];
    s.image = s.padded ? hwq_align(rows * columns * c->channels * (int64_t)sizeof(float)) : 0;
    s.offsets = hwq_align(hwq_window_taps(w) * (int64_t)sizeof(int64_t));
    s.k = hwq_window_taps(w) * (c->channels / c->groups);
    return s;
}

/* Two dimensions, channels last; anything else is the plain reading's. */
static inline int hwq_chain_fits(const hwq_conv *c)
{
    const hwq_window *w = &c->window;
    return c->layout == HWQ_NHWC && w->in[0] == 1 && w->out[0] == 1 && w->kernel[0] == 1 && w->pad[0] == 0 && c->channels > 0;
}

#endif
