/* Depthwise convolution with several outputs a channel: the image with each channel as often as it has outputs, then one output a channel. */
#include "conv.h"
#include "epilogue.h"
#include "isa.h"
#include "window.h"

#include <string.h>

/* A constant number of times is a loop that compilers turn into interleaving. */
static inline __attribute__((always_inline)) void repeat_times(const int64_t times, int64_t n, const uint8_t *restrict from, uint8_t *restrict to)
{
    for (int64_t i = 0; i < n; i++)
        for (int64_t j = 0; j < times; j++) to[i * times + j] = from[i];
}

static void repeat(const hwq_conv *c, int64_t times, const uint8_t *image, uint8_t *to)
{
    const int64_t inputs = hwq_window_inputs(&c->window);
    if (c->layout == HWQ_NCHW)
        for (int64_t i = 0; i < c->out_channels; i++) memcpy(to + i * inputs, image + i / times * inputs, (size_t)inputs);
    else if (times == 2) repeat_times(2, inputs * c->channels, image, to);
    else if (times == 4) repeat_times(4, inputs * c->channels, image, to);
    else repeat_times(times, inputs * c->channels, image, to);
}

static hwq_conv repeated(const hwq_conv *c)
{
    hwq_conv one = *c;
    one.channels = one.groups = c->out_channels;
    return one;
}

static int64_t image_bytes(const hwq_conv *c) { return hwq_align(hwq_window_inputs(&c->window) * c->out_channels); }

int64_t hwq_depthwise_repeat_workspace(const hwq_conv *c)
{
    const hwq_conv one = repeated(c);
    return image_bytes(c) + hwq_conv_workspace(&one);
}

void hwq_depthwise_repeat(const hwq_conv *c)
{
    const int64_t outputs = hwq_window_outputs(&c->window), inputs = hwq_window_inputs(&c->window), out_size = hwq_type_size(c->epilogue->out_type);
    hwq_epilogue e = *c->epilogue;
    hwq_conv one = repeated(c);
    one.batch = 1, one.x = c->workspace, one.workspace = (char *)c->workspace + image_bytes(c), one.epilogue = &e;
    for (int64_t i = c->first; i < c->last; i += one.last - one.first) {
        const int64_t number = i / outputs, at = number * outputs * c->out_channels;
        one.first = i % outputs, one.last = c->last - i < outputs - one.first ? one.first + c->last - i : outputs;
        repeat(c, c->out_channels / c->channels, (const uint8_t *)c->x + number * inputs * c->channels, c->workspace);
        one.out = (char *)c->out + at * out_size;
        if (e.residual_op) e.residual = (const char *)c->epilogue->residual + at * hwq_type_size(e.residual_op->b_type);
        hwq_depthwise_s32(&one);
    }
}
