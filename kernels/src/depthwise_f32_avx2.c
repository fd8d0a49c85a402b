/* Depthwise convolution of floats, 8 channels at a time, channel-last (channel-first images are turned in the workspace).
 * Accumulator j of 8 takes taps j, j + 8, ..., as the fixed order says; padding takes part as +0, from a row of zeros. A 3 x 3 window's
 * 8 outputs are 9 fused multiply-adds and 8 or 9 additions: bound by arithmetic, not by loads (18 of 2 a cycle). */
#include "conv.h"
#include "isa.h"
#include "window.h"

#if HWQ_X86
#include <immintrin.h>
#include <string.h>

HWQ_TARGET("avx2,fma")

/* 8 channels under every tap. A lane that the order pads with +0 x +0 is never -0, so neither is a sum of such lanes. */
static inline __attribute__((always_inline)) __m256 sum8(const int64_t taps, const float *const *from, int64_t at, const float *weights, int64_t step)
{
    __m256 lane[HWQ_LANES];
#pragma GCC unroll 8
    for (int j = 0; j < HWQ_LANES; j++) {
        lane[j] = _mm256_setzero_ps();
        for (int64_t t = j; t < taps; t += HWQ_LANES)
            lane[j] = _mm256_fmadd_ps(_mm256_loadu_ps(from[t] + at), _mm256_loadu_ps(weights + t * step), lane[j]);
    }
    const __m256 a = _mm256_add_ps(_mm256_add_ps(lane[0], lane[1]), _mm256_add_ps(lane[2], lane[3]));
    const __m256 y = _mm256_add_ps(a, _mm256_add_ps(_mm256_add_ps(lane[4], lane[5]), _mm256_add_ps(lane[6], lane[7])));
    return taps % HWQ_LANES ? _mm256_add_ps(y, _mm256_setzero_ps()) : y;
}

/* The last channels one by one: a tail of fewer than 8. */
static float sum1(int64_t taps, const float *const *from, int64_t at, const float *weights, int64_t step)
{
    float lane[HWQ_LANES] = {0};
    for (int64_t t = 0; t < taps; t++) lane[t % HWQ_LANES] = __builtin_fmaf(from[t][at], weights[t * step], lane[t % HWQ_LANES]);
    const float y = ((lane[0] + lane[1]) + (lane[2] + lane[3])) + ((lane[4] + lane[5]) + (lane[6] + lane[7]));
    return taps % HWQ_LANES ? y + 0.0f : y;
}

static inline __attribute__((always_inline)) void position(const int64_t taps, const hwq_conv *c, const float *const *from, float *to)
{
    const int64_t channels = c->channels;
    const float *bias = c->bias_f32;
    int64_t at = 0;
    for (; at + 8 <= channels; at += 8) {
        const __m256 y = sum8(taps, from, at, c->weights_f32 + at, channels);
        _mm256_storeu_ps(to + at, bias ? _mm256_add_ps(y, _mm256_loadu_ps(bias + at)) : y);
    }
    for (; at < channels; at++) {
        const float y = sum1(taps, from, at, c->weights_f32 + at, channels);
        to[at] = bias ? y + bias[at] : y;
    }
}

/* Pixels under every tap of the window at an output position, or the row of zeros in the padding. */
static void point(const hwq_conv *c, const float *image, const float *zeros, int64_t where, const float **from)
{
    const hwq_window *w = &c->window;
    int64_t origin[3];
    hwq_window_origin(w, where, origin);
    for (int64_t t0 = 0; t0 < w->kernel[0]; t0++)
        for (int64_t t1 = 0; t1 < w->kernel[1]; t1++) {
            const int64_t line = hwq_window_pixel(w, (int64_t[3]){origin[0], origin[1], 0}, t0, t1, 0);
            for (int64_t t2 = 0; t2 < w->kernel[2]; t2++) {
                const int64_t x = origin[2] + t2 * w->dilation[2];
                *from++ = line < 0 || x < 0 || x >= w->in[2] ? zeros : image + (line + x) * c->channels;
            }
        }
}

static void rows(const hwq_conv *c, const float *image, const float *zeros, const float **from, int64_t first, int64_t count, float *out)
{
    const int64_t taps = hwq_window_taps(&c->window);
    for (int64_t row = 0; row < count; row++, out += c->channels) {
        point(c, image, zeros, first + row, from);
        switch (taps) {
        case 9: position(9, c, from, out); break;
        case 25: position(25, c, from, out); break;
        default: position(taps, c, from, out);
        }
    }
}

void hwq_depthwise_f32__avx2(const hwq_conv *c)
{
    const hwq_conv_shape s = hwq_conv_measure(c);
    const int64_t channels = c->channels, outputs = hwq_window_outputs(&c->window), inputs = hwq_window_inputs(&c->window);
    char *turned = c->workspace, *tile = turned + s.image + s.rows;
    float *zeros = (float *)(turned + s.image);
    const float **from = (const float **)(void *)(tile + s.tile);
    memset(zeros, 0, (size_t)channels * sizeof(float));
    for (int64_t at = c->first; at < c->last;) {
        const int64_t number = at / outputs, begin = at % outputs, end = c->last - at + begin < outputs ? c->last - at + begin : outputs;
        const float *image = (const float *)c->x + number * inputs * channels;
        if (c->layout == HWQ_NHWC) {
            rows(c, image, zeros, from, begin, end - begin, (float *)c->out + (number * outputs + begin) * channels);
        } else {
            hwq_transpose(4, channels, inputs, (const char *)image, inputs, turned, channels);
            const int64_t step = hwq_depthwise_rows(channels);
            for (int64_t first = begin; first < end; first += step) {
                const int64_t count = end - first < step ? end - first : step;
                rows(c, (const float *)turned, zeros, from, first, count, (float *)tile);
                hwq_transpose(4, count, channels, tile, channels, (char *)((float *)c->out + number * channels * outputs + first), outputs);
            }
        }
        at += end - begin;
    }
}

HWQ_TARGET_END
#endif
