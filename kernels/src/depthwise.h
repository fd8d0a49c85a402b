/* Depthwise convolution of bytes: the workspace of its drivers. */
#ifndef HWQ_DEPTHWISE_H
#define HWQ_DEPTHWISE_H
#include "conv.h"
#include "window.h"

/* Channels, padded to what the widest path takes at once. Bytes of 3 x 3's constants for each (depthwise_3x3_avx2.c). */
enum { HWQ_DEPTHWISE_LANES = 32, HWQ_DEPTHWISE_CONSTANTS = 36 };

static inline int64_t hwq_depthwise_padded(int64_t channels)
{
    return (channels + HWQ_DEPTHWISE_LANES - 1) / HWQ_DEPTHWISE_LANES * HWQ_DEPTHWISE_LANES;
}

/* 3 x 3 of images, with strides of 1 or 2, in at least 8 channels. */
static inline int hwq_depthwise_is_3x3(const hwq_conv *c)
{
    const hwq_window *w = &c->window;
    int is = c->channels >= 8 && w->in[0] == 1 && w->out[0] == 1 && w->kernel[0] == 1 && w->pad[0] == 0;
    for (int d = 1; d < 3; d++) is &= w->kernel[d] == 3 && w->stride[d] <= 2 && w->dilation[d] == 1;
    return is;
}
void hwq_depthwise_3x3__avx2(const hwq_conv *conv);

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
    s.weights = hwq_align(padded * (s.pairs * 4 > HWQ_DEPTHWISE_CONSTANTS ? s.pairs * 4 : HWQ_DEPTHWISE_CONSTANTS));
    s.constants = padded * 8;
    s.padding = hwq_align(padded);
    s.acc = hwq_depthwise_rows(c->channels) * padded * 4;
    if (s.acc < HWQ_DEPTHWISE_BLOCK * 4) s.acc = HWQ_DEPTHWISE_BLOCK * 4;
    s.tile = c->layout == HWQ_NCHW ? s.acc : 0;
    s.taps = hwq_align(2 * (s.pairs * 2 + 1) * 8);
    return s;
}

/* The same of the driver that takes taps by fours (depthwise_quads.h), in vectors of 64 bytes: bytes of a block's constants and of all; a line of
 * padding; a line of results; then as above. */
enum { HWQ_DEPTHWISE_VECTOR = 64, HWQ_DEPTHWISE_SLIDING = 24 /* vectors */, HWQ_DEPTHWISE_POSITIONS = 4 };

typedef struct {
    int64_t quads, padded, block, constants, padding, unused, acc, tile, pointers, offsets;
} hwq_depthwise_quads;

static inline hwq_depthwise_quads hwq_depthwise_measure_quads(const hwq_conv *c)
{
    const int64_t quads = (hwq_window_taps(&c->window) + 3) / 4, weights = 4 * quads > HWQ_DEPTHWISE_SLIDING ? 4 * quads : HWQ_DEPTHWISE_SLIDING;
    hwq_depthwise_quads s;
    s.quads = quads;
    s.padded = hwq_depthwise_padded(c->channels);
    s.block = (8 + weights) * HWQ_DEPTHWISE_VECTOR;
    s.constants = (c->channels / HWQ_DEPTHWISE_VECTOR + 2) * s.block;
    s.padding = hwq_align((c->window.in[2] ? c->window.in[2] : 1) * c->channels);
    s.unused = hwq_align(c->window.out[2] * c->channels);
    s.acc = (hwq_depthwise_rows(c->channels) + HWQ_DEPTHWISE_POSITIONS) * s.padded * 4;
    s.tile = c->layout == HWQ_NCHW ? s.acc : 0;
    s.pointers = hwq_align(HWQ_DEPTHWISE_POSITIONS * 4 * quads * (int64_t)sizeof(char *));
    s.offsets = hwq_align(4 * quads * (int64_t)sizeof(int64_t));
    return s;
}

static inline int64_t hwq_depthwise_workspace(const hwq_conv *c)
{
    const hwq_depthwise_shape s = hwq_depthwise_measure(c);
    const hwq_depthwise_quads q = hwq_depthwise_measure_quads(c);
    const int64_t pairs = s.weights + s.constants + s.padding + s.acc + s.tile + s.taps;
    const int64_t quads = q.constants + q.padding + q.unused + q.acc + q.tile + q.pointers + q.offsets;
    return pairs > quads ? pairs : quads;
}

#endif
