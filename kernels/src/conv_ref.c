/* Convolution, depthwise convolution and pooling, the plain reading: one output at a time. */
#include "epilogue.h"
#include "isa.h"
#include "window.h"

#include <math.h>

/* Index of (image, pixel, channel) in either layout. */
static inline int64_t at(int32_t layout, int64_t image, int64_t pixel, int64_t channel, int64_t pixels, int64_t channels)
{
    return layout == HWQ_NHWC ? (image * pixels + pixel) * channels + channel : (image * channels + channel) * pixels + pixel;
}

static inline int32_t centered(const hwq_conv *c, int64_t i)
{
    return (c->a_type == HWQ_U8 ? ((const uint8_t *)c->x)[i] : ((const int8_t *)c->x)[i]) - c->a_zero_point;
}

static void finish_one(const hwq_conv *c, int64_t image, int64_t position, int64_t channel, uint32_t acc)
{
    const int64_t i = at(c->layout, image, position, channel, hwq_window_outputs(&c->window), c->out_channels);
    const int32_t value = (int32_t)(acc + (c->bias ? (uint32_t)c->bias[channel] : 0));
    hwq_epilogue e = *c->epilogue;
    if (e.residual_op) e.residual = (const char *)e.residual + i * hwq_type_size(e.residual_op->b_type);
    hwq_requantize(&e, 1, 1, channel, &value, HWQ_S32, 1, (char *)c->out + i * hwq_type_size(e.out_type), 1);
}

void hwq_conv_s32__ref(const hwq_conv *c)
{
    const hwq_window *w = &c->window;
    const hwq_packed *p = c->weights;
    const int64_t outputs = hwq_window_outputs(w), inputs = hwq_window_inputs(w), depth = c->channels / c->groups, k4 = (p->k + 3) / 4 * 4;
    for (int64_t i = c->first; i < c->last; i++) {
        const int64_t image = i / outputs, position = i % outputs;
        int64_t origin[3];
        hwq_window_origin(w, position, origin);
        for (int64_t channel = 0; channel < c->out_channels; channel++) {
            const int64_t group = channel / p->n, column = channel % p->n;
            const int8_t *quads = p->quads + group * hwq_packed_bytes(p->k, p->n) + column / HWQ_STRIP * k4 * HWQ_STRIP +
                                  column % HWQ_STRIP * HWQ_QUAD;
            const int32_t zero_point = p->zero_points ? p->zero_points[channel] : 0;
            uint32_t acc = 0; /* modulo 2^32; |term| <= 255 * 255 */
            int64_t k = 0;
            for (int64_t t0 = 0; t0 < w->kernel[0]; t0++)
                for (int64_t t1 = 0; t1 < w->kernel[1]; t1++)
                    for (int64_t t2 = 0; t2 < w->kernel[2]; t2++, k += depth) {
                        const int64_t pixel = hwq_window_pixel(w, origin, t0, t1, t2);
                        if (pixel < 0) continue;
                        for (int64_t d = 0; d < depth; d++) {
                            const int64_t from = at(c->layout, image, pixel, group * depth + d, inputs, c->channels);
                            const int8_t weight = quads[(k + d) / HWQ_QUAD * HWQ_STRIP * HWQ_QUAD + (k + d) % HWQ_QUAD];
                            acc += (uint32_t)(centered(c, from) * (weight - zero_point));
                        }
                    }
            finish_one(c, image, position, channel, acc);
        }
    }
}

void hwq_depthwise_s32__ref(const hwq_conv *c)
{
    const hwq_window *w = &c->window;
    const int64_t outputs = hwq_window_outputs(w), inputs = hwq_window_inputs(w);
    for (int64_t i = c->first; i < c->last; i++) {
        const int64_t image = i / outputs, position = i % outputs;
        int64_t origin[3];
        hwq_window_origin(w, position, origin);
        for (int64_t channel = 0; channel < c->out_channels; channel++) {
            uint32_t acc = 0;
            int64_t tap = channel;
            for (int64_t t0 = 0; t0 < w->kernel[0]; t0++)
                for (int64_t t1 = 0; t1 < w->kernel[1]; t1++)
                    for (int64_t t2 = 0; t2 < w->kernel[2]; t2++, tap += c->out_channels) {
                        const int64_t pixel = hwq_window_pixel(w, origin, t0, t1, t2);
                        if (pixel < 0) continue;
                        acc += (uint32_t)(centered(c, at(c->layout, image, pixel, channel, inputs, c->channels)) * c->taps_s16[tap]);
                    }
            finish_one(c, image, position, channel, acc);
        }
    }
}

/* The fixed order over k = (tap, channel of the group). */
static void float_one(const hwq_conv *c, int64_t i, int64_t channel, const float *weights, int64_t depth, int64_t group, int64_t step,
                      int64_t lane_step)
{
    const hwq_window *w = &c->window;
    const int64_t outputs = hwq_window_outputs(w), inputs = hwq_window_inputs(w), image = i / outputs, position = i % outputs;
    const float *x = c->x;
    float lane[HWQ_LANES] = {0};
    int64_t origin[3], k = 0;
    hwq_window_origin(w, position, origin);
    for (int64_t t0 = 0; t0 < w->kernel[0]; t0++)
        for (int64_t t1 = 0; t1 < w->kernel[1]; t1++)
            for (int64_t t2 = 0; t2 < w->kernel[2]; t2++) {
                const int64_t pixel = hwq_window_pixel(w, origin, t0, t1, t2);
                for (int64_t d = 0; d < depth; d++, k++) {
                    const float a = pixel < 0 ? 0.0f : x[at(c->layout, image, pixel, group * depth + d, inputs, c->channels)];
                    lane[k % HWQ_LANES] = fmaf(a, weights[k / HWQ_LANES * step + k % HWQ_LANES * lane_step], lane[k % HWQ_LANES]);
                }
            }
    for (; k % HWQ_LANES; k++) lane[k % HWQ_LANES] = fmaf(0.0f, 0.0f, lane[k % HWQ_LANES]);
    float y = ((lane[0] + lane[1]) + (lane[2] + lane[3])) + ((lane[4] + lane[5]) + (lane[6] + lane[7]));
    ((float *)c->out)[at(c->layout, image, position, channel, outputs, c->out_channels)] = c->bias_f32 ? y + c->bias_f32[channel] : y;
}

void hwq_conv_f32__ref(const hwq_conv *c)
{
    const int64_t depth = c->channels / c->groups, n = c->out_channels / c->groups, k = hwq_window_taps(&c->window) * depth;
    const int64_t k8 = (k + HWQ_LANES - 1) / HWQ_LANES * HWQ_LANES;
    for (int64_t i = c->first; i < c->last; i++)
        for (int64_t channel = 0; channel < c->out_channels; channel++) {
            const int64_t group = channel / n, column = channel % n;
            const float *weights = c->weights_f32 + group * hwq_packed_f32_floats(k, n) +
                                   column / HWQ_FLOAT_STRIP * HWQ_FLOAT_STRIP * k8 + column % HWQ_FLOAT_STRIP * HWQ_LANES;
            float_one(c, i, channel, weights, depth, group, HWQ_FLOAT_STRIP * HWQ_LANES, 1);
        }
}

void hwq_depthwise_f32__ref(const hwq_conv *c)
{
    for (int64_t i = c->first; i < c->last; i++)
        for (int64_t channel = 0; channel < c->out_channels; channel++)
            float_one(c, i, channel, c->weights_f32 + channel, 1, channel, HWQ_LANES * c->out_channels, c->out_channels);
}
