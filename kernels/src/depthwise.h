/* Depthwise convolution of bytes: the workspace of its drivers. */
#ifndef HWQ_DEPTHWISE_H
#define HWQ_DEPTHWISE_H
#include "conv.h"
#include "window.h"

/* Channels, padded to what the widest path takes at once. */
enum { HWQ_DEPTHWISE_LANES = 32 };

static inline int64_t hwq_depthwise_padded(int64_t channels)
{
    return (channels + HWQ_DEPTHWISE_LANES - 1) / HWQ_DEPTHWISE_LANES * HWQ_DEPTHWISE_LANES;
}

/* Bytes, each a multiple of 64: interleaved weights, then bias and scales, of every block; one pixel of padding; accumulators
 * [position][channel]; finished pixels to be turned (channel-first); the pointers and offsets of the taps. */
typedef struct {
    int64_t pairs, weights, constants, padding, acc, tile, taps;
} hwq_depthwise_shape;

static inline hwq_depthwise_shape hwq_depthwise_measure(const hwq_conv *c)
{
    const int64_t taps = hwq_window_taps(&c->window), padded = hwq_depthwise_padded(c->channels);
    hwq_depthwise_shape s;
    s.pairs = (taps + 1) / 2;
    s.weights = s.pairs * padded * 4;
    s.constants = padded * 8;
    s.padding = hwq_align(padded);
    s.acc = hwq_depthwise_rows(c->channels) * padded * 4;
    s.tile = c->layout == HWQ_NCHW ? s.acc : 0;
    s.taps = hwq_align(2 * (s.pairs * 2 + 1) * 8);
    return s;
}

static inline int64_t hwq_depthwise_workspace(const hwq_conv *c)
{
    const hwq_depthwise_shape s = hwq_depthwise_measure(c);
    return s.weights + s.constants + s.padding + s.acc + s.tile + s.taps;
}

#endif
