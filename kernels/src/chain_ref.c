/* Convolutions in the order of one chain, the plain reading: one output at a time. */
#include "chain.h"
#include "isa.h"

#include <math.h>

static inline int64_t at(int32_t layout, int64_t image, int64_t pixel, int64_t channel, int64_t pixels, int64_t channels)
{
    return layout == HWQ_NHWC ? (image * pixels + pixel) * channels + channel : (image * channels + channel) * pixels + pixel;
}

/* The tap that comes `order`-th, as (t0, t1, t2). */
static void tap_at(const hwq_conv *c, int64_t order, int64_t tap[3])
{
    const int64_t *kernel = c->window.kernel;
    const int inner = c->order == HWQ_ORDER_CHAIN_COLUMNS ? 1 : 2, outer = 3 - inner;
    tap[inner] = order % kernel[inner], order /= kernel[inner];
    tap[outer] = order % kernel[outer], tap[0] = order / kernel[outer];
}

static void chain(const hwq_conv *c, int64_t i, int64_t channel, const float *weights, int64_t step, int64_t depth, int64_t from)
{
    const hwq_window *w = &c->window;
    const int64_t outputs = hwq_window_outputs(w), inputs = hwq_window_inputs(w), image = i / outputs, position = i % outputs;
    int64_t origin[3], tap[3];
    hwq_window_origin(w, position, origin);
    float y = c->bias_f32 ? c->bias_f32[channel] : 0.0f;
    for (int64_t t = 0; t < hwq_window_taps(w); t++) {
        tap_at(c, t, tap);
        const int64_t pixel = hwq_window_pixel(w, origin, tap[0], tap[1], tap[2]);
        for (int64_t d = 0; d < depth; d++, weights += step)
            y = fmaf(pixel < 0 ? 0.0f : ((const float *)c->x)[at(c->layout, image, pixel, from + d, inputs, c->channels)], *weights, y);
    }
    y = y < c->lo_f32 ? c->lo_f32 : y > c->hi_f32 ? c->hi_f32 : y;
    ((float *)c->out)[at(c->layout, image, position, channel, outputs, c->out_channels)] = y;
}

void hwq_conv_chain__ref(const hwq_conv *c)
{
    const int64_t depth = c->channels / c->groups, n = c->out_channels / c->groups, k = hwq_window_taps(&c->window) * depth;
    for (int64_t i = c->first; i < c->last; i++)
        for (int64_t channel = 0; channel < c->out_channels; channel++) {
            const int64_t group = channel / n, column = channel % n, strip = group * hwq_chain_columns(n) + column / HWQ_CHAIN_STRIP * HWQ_CHAIN_STRIP;
            chain(c, i, channel, c->weights_f32 + strip * k + column % HWQ_CHAIN_STRIP, HWQ_CHAIN_STRIP, depth, group * depth);
        }
}

void hwq_depthwise_chain__ref(const hwq_conv *c)
{
    for (int64_t i = c->first; i < c->last; i++)
        for (int64_t channel = 0; channel < c->channels; channel++) chain(c, i, channel, c->weights_f32 + channel, c->channels, 1, channel);
}
