/* Float32 convolutions in the order of one chain, once per vector width: whoever includes this has named the vectors (chain_f32_avx2.c).
 *
 * y = bias, or +0; then y = fma(x, w, y) over the taps and the channels of the group, in order; padding is +0 and takes part. XNNPACK sums so, because
 * lanes are output channels: a tile holds MOST positions x two vectors of columns, and every k is two loads of weights and a broadcast a position for
 * twice as many fused multiply-adds. An image with padding is copied once, so that the bytes of a row of the kernel lie together.
 * Depthwise the lanes are the channels: a load of the image and one of weights a tap, in the order of the kernel or column by column.
 * Measured on an AMD Zen 5 (EPYC, 4.17 GHz: 133 billion fused multiply-adds a second), one thread, AVX-512, through Python: 128 at 3 x 3, 56 x 56 x 64 and
 * 14 x 14 x 256; 85 at 32 x 32 x 16, where one vector of columns leaves a load for every product; depthwise 23 at 56 x 56 x 64. */
#ifndef HWQ_CHAIN_F32_H
#define HWQ_CHAIN_F32_H
#include "chain.h"
#include "conv.h"
#include "isa.h"
#include "window.h"

#include <string.h>

enum { TILE = 2 * LANES };

typedef struct {
    const hwq_conv *conv;
    hwq_chain_shape shape;
    const int64_t *offsets; /* of the runs from an output's first tap, in floats */
    int64_t runs, run;      /* of k: how many, and their floats */
    int64_t step, line;     /* floats between neighboring outputs' first taps, and between output lines' */
} plan;

static inline float clamped(const hwq_conv *c, float y) { return y < c->lo_f32 ? c->lo_f32 : y > c->hi_f32 ? c->hi_f32 : y; }

/* NaN stays, as does a zero of either sign: where operands are equal or not ordered, the second is the result. */
static inline FLOATS clamp(FLOATS y, FLOATS lo, FLOATS hi) { return MIN(hi, MAX(lo, y)); }

/* Output lines [top, bottom) need input lines: copied with their padding, or as they lie. Returns the first tap of line `top`. */
static const float *image_of(const plan *p, const float *image, int64_t top, int64_t bottom, float *copy)
{
    const hwq_conv *c = p->conv;
    const hwq_window *w = &c->window;
    const int64_t row = w->in[2] * c->channels, wide = p->shape.columns * c->channels, before = w->pad[2] * c->channels;
    if (!p->shape.padded) return image + top * w->stride[1] * row;
    const int64_t inside = wide - before < row ? wide - before : row, rows = (bottom - 1 - top) * w->stride[1] + (w->kernel[1] - 1) * w->dilation[1] + 1;
    float *to = copy;
    for (int64_t r = 0; r < rows; r++, to += wide) {
        const int64_t y = top * w->stride[1] - w->pad[1] + r;
        if (y < 0 || y >= w->in[1] || inside <= 0) {
            memset(to, 0, (size_t)wide * sizeof(float));
            continue;
        }
        memset(to, 0, (size_t)before * sizeof(float));
        memcpy(to + before, image + y * row, (size_t)inside * sizeof(float));
        memset(to + before + inside, 0, (size_t)(wide - before - inside) * sizeof(float));
    }
    return copy;
}

/* `positions` outputs of one line x `vectors` of columns, of which `columns` exist. */
static inline __attribute__((always_inline)) void tile(const int positions, const int vectors, const plan *p, const float *a, const float *weights, const float *start,
                                                       int64_t columns, float *out)
{
    const hwq_conv *c = p->conv;
    const int64_t step = p->step;
    FLOATS chain[MOST][2];
#pragma GCC unroll 8
    for (int i = 0; i < positions; i++)
#pragma GCC unroll 2
        for (int v = 0; v < vectors; v++) chain[i][v] = LOAD(start + v * LANES);
    for (int64_t r = 0; r < p->runs; r++) {
        const float *x = a + p->offsets[r];
        for (int64_t j = 0; j < p->run; j++, x++, weights += HWQ_CHAIN_STRIP) {
            const FLOATS left = LOAD(weights), right = vectors > 1 ? LOAD(weights + NEXT(p->shape.k)) : left;
#pragma GCC unroll 8
            for (int i = 0; i < positions; i++) {
                const FLOATS factor = SET1(x[i * step]);
                chain[i][0] = FMA(factor, left, chain[i][0]);
                if (vectors > 1) chain[i][1] = FMA(factor, right, chain[i][1]);
            }
        }
    }
    const FLOATS lo = SET1(c->lo_f32), hi = SET1(c->hi_f32);
#pragma GCC unroll 8
    for (int i = 0; i < positions; i++) {
        float line[TILE];
        float *to = columns >= vectors * LANES ? out + i * c->out_channels : line;
#pragma GCC unroll 2
        for (int v = 0; v < vectors; v++) STORE(to + v * LANES, clamp(chain[i][v], lo, hi));
        if (to == line) memcpy(out + i * c->out_channels, line, (size_t)columns * sizeof(float));
    }
}

static void some_positions(int64_t count, const plan *p, const float *a, const float *weights, const float *start, int64_t columns, float *out)
{
#define CASE(n) \
    case n: \
        if (columns > LANES) tile(n, 2, p, a, weights, start, columns, out); \
        else tile(n, 1, p, a, weights, start, columns, out); \
        break;
    switch (count) {
    CASE(1) CASE(2) CASE(3) CASE(4) CASE(5)
#if MOST > 6
    CASE(6) CASE(7)
#endif
    default:
        if (columns > LANES) tile(MOST, 2, p, a, weights, start, columns, out);
        else tile(MOST, 1, p, a, weights, start, columns, out);
    }
#undef CASE
}

/* Outputs [first, last) of the line whose first tap is at a. out: of position 0. */
static void convolve_line(const plan *p, const float *a, int64_t first, int64_t last, float *out)
{
    const hwq_conv *c = p->conv;
    const int64_t n = c->out_channels / c->groups, depth = c->channels / c->groups, k = p->shape.k;
    const int64_t tiles = (last - first + MOST - 1) / MOST, each = (last - first + tiles - 1) / tiles;
    for (int64_t group = 0; group < c->groups; group++)
        for (int64_t column = 0; column < n; column += TILE) {
            float start[TILE] = {0};
            const int64_t columns = n - column < TILE ? n - column : TILE;
            const float *weights = c->weights_f32 + (group * hwq_chain_columns(n) + column) * k;
            if (c->bias_f32) memcpy(start, c->bias_f32 + group * n + column, (size_t)columns * sizeof(float));
            for (int64_t x = first, count; x < last; x += count) {
                count = last - x < each ? last - x : each;
                some_positions(count, p, a + x * p->step + group * depth, weights, start, columns, out + x * c->out_channels + group * n + column);
            }
        }
}

/* `vectors` of channels from `at` on, of one output: as many chains side by side. */
static inline __attribute__((always_inline)) void depthwise_channels(const int vectors, const plan *p, const float *from, int64_t at, float *to)
{
    const hwq_conv *c = p->conv;
    const int64_t taps = p->runs;
    const float *weights = c->weights_f32 + at;
    FLOATS y[4];
#pragma GCC unroll 4
    for (int v = 0; v < vectors; v++) y[v] = c->bias_f32 ? LOAD(c->bias_f32 + at + v * LANES) : SET1(0.0f);
    for (int64_t t = 0; t < taps; t++, weights += c->channels) {
        const float *x = from + p->offsets[t] + at;
#pragma GCC unroll 4
        for (int v = 0; v < vectors; v++) y[v] = FMA(LOAD(x + v * LANES), LOAD(weights + v * LANES), y[v]);
    }
#pragma GCC unroll 4
    for (int v = 0; v < vectors; v++) STORE(to + at + v * LANES, clamp(y[v], SET1(c->lo_f32), SET1(c->hi_f32)));
}

static void depthwise_line(const plan *p, const float *a, int64_t first, int64_t last, float *out)
{
    const hwq_conv *c = p->conv;
    const int64_t channels = c->channels, taps = p->runs;
    const float *weights = c->weights_f32, *bias = c->bias_f32;
    for (int64_t x = first; x < last; x++) {
        const float *from = a + x * p->step;
        float *to = out + x * channels;
        int64_t at = 0;
        for (; at + 4 * LANES <= channels; at += 4 * LANES) depthwise_channels(4, p, from, at, to);
        for (; at + LANES <= channels; at += LANES) depthwise_channels(1, p, from, at, to);
        for (; at < channels; at++) {
            float y = bias ? bias[at] : 0.0f;
            for (int64_t t = 0; t < taps; t++) y = __builtin_fmaf(from[p->offsets[t] + at], weights[t * channels + at], y);
            to[at] = clamped(c, y);
        }
    }
}

static void drive(const hwq_conv *c, const int depthwise)
{
    const hwq_window *w = &c->window;
    const int64_t outputs = hwq_window_outputs(w), inputs = hwq_window_inputs(w), width = w->out[2], depth = c->channels / (depthwise ? 1 : c->groups);
    plan p = {.conv = c, .shape = hwq_chain_measure(c), .step = w->stride[2] * c->channels};
    float *copy = c->workspace;
    int64_t *offsets = (int64_t *)(void *)((char *)c->workspace + p.shape.image);
    const int64_t row = p.shape.columns * c->channels;
    const int whole = !depthwise && c->groups == 1 && w->dilation[2] == 1;
    const int64_t wide = whole ? 1 : w->kernel[2], high = w->kernel[1];
    const int columns = depthwise && c->order == HWQ_ORDER_CHAIN_COLUMNS;
    for (p.runs = 0; p.runs < wide * high; p.runs++) {
        const int64_t t1 = columns ? p.runs % high : p.runs / wide, t2 = columns ? p.runs / high : p.runs % wide;
        offsets[p.runs] = t1 * w->dilation[1] * row + t2 * w->dilation[2] * c->channels;
    }
    p.offsets = offsets, p.run = whole ? w->kernel[2] * depth : depth, p.line = row * w->stride[1];
    for (int64_t i = c->first; i < c->last;) {
        const int64_t number = i / outputs, begin = i % outputs, end = c->last - i + begin < outputs ? c->last - i + begin : outputs;
        const int64_t top = begin / width, bottom = (end + width - 1) / width;
        const float *a = image_of(&p, (const float *)c->x + number * inputs * c->channels, top, bottom, copy);
        float *out = (float *)c->out + number * outputs * c->out_channels;
        for (int64_t y = top; y < bottom; y++, a += p.line) {
            const int64_t first = y * width < begin ? begin - y * width : 0, last = end - y * width < width ? end - y * width : width;
            if (depthwise) depthwise_line(&p, a, first, last, out + y * width * c->out_channels);
            else convolve_line(&p, a, first, last, out + y * width * c->out_channels);
        }
        i += end - begin;
    }
}

#endif
