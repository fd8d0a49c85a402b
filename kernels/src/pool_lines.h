/* Pooling by lines, vectorized by the compiler, compiled once per path: channel-last walks the channels of one position (bytes
 * stay bytes for the maximum), channel-first walks the positions of one row. Each tap then adds a run of elements to a run of
 * outputs, in window order, as the plain reading does. */
#ifndef HWQ_POOL_LINES_H
#define HWQ_POOL_LINES_H
#include "fixedpoint.h"
#include "isa.h"
#include "window.h"

enum { LINE = 256 };

typedef struct {
    int32_t acc[LINE];
    float acc_f32[LINE];
    int32_t taps[LINE]; /* inside the image; at most 2^31 */
} line;

#define HWQ_EACH(type, member, expression)                                                                                    \
    {                                                                                                                         \
        const type *from = (const type *)p->x + at;                                                                           \
        if (step == 1)                                                                                                        \
            for (int64_t i = first; i < last; i++) { const type v = from[i]; l->member[i] = expression; }                     \
        else                                                                                                                  \
            for (int64_t i = first; i < last; i++) { const type v = from[i * step]; l->member[i] = expression; }              \
    }

/* Elements [first, last) of the line meet input elements at + i * step. Sums of bytes: below 2^31 for windows of 2^23 taps
 * (int16: 2^15), which pool_lines checks. */
static void take(const hwq_pool *p, line *l, int64_t at, int64_t step, int64_t first, int64_t last)
{
    for (int64_t i = first; i < last; i++) l->taps[i]++;
    if (p->type == HWQ_F32) {
        if (p->kind == HWQ_POOL_MAX) HWQ_EACH(float, acc_f32, v > l->acc_f32[i] || v != v ? v : l->acc_f32[i])
        else HWQ_EACH(float, acc_f32, l->acc_f32[i] + v)
    } else if (p->kind == HWQ_POOL_MAX) {
        if (p->type == HWQ_U8) HWQ_EACH(uint8_t, acc, v > l->acc[i] ? v : l->acc[i])
        else HWQ_EACH(int8_t, acc, v > l->acc[i] ? v : l->acc[i])
    } else {
        if (p->type == HWQ_U8) HWQ_EACH(uint8_t, acc, l->acc[i] + v)
        else if (p->type == HWQ_S8) HWQ_EACH(int8_t, acc, l->acc[i] + v)
        else HWQ_EACH(int16_t, acc, l->acc[i] + v)
    }
}

static int64_t inside(const hwq_pool *p, int d, int64_t origin, int64_t lo, int64_t hi)
{
    int64_t n = 0;
    for (int64_t t = 0; t < p->window.kernel[d]; t++) {
        const int64_t i = origin + t * p->window.dilation[d];
        n += i >= lo && i < hi;
    }
    return n;
}

static void finish(const hwq_pool *p, const line *l, int64_t count, const int64_t origin[3], int64_t origin_step, void *out, int64_t at)
{
    const hwq_window *w = &p->window;
    int64_t planes = 1;
    if (p->count_padding)
        for (int d = 0; d < 2; d++) planes *= inside(p, d, origin[d], -w->pad[d], w->in[d] + p->pad_end[d]);
    for (int64_t i = 0; i < count; i++) {
        const int64_t n = p->count_padding && p->kind != HWQ_POOL_MAX
                              ? planes * inside(p, 2, origin[2] + i * origin_step, -w->pad[2], w->in[2] + p->pad_end[2])
                              : l->taps[i];
        if (p->kind == HWQ_POOL_MAX) {
            if (p->type == HWQ_F32) ((float *)out)[at + i] = l->acc_f32[i];
            else ((uint8_t *)out)[at + i] = (uint8_t)hwq_clamp_s64(l->acc[i], p->lo, p->hi);
        } else if (p->type == HWQ_F32) {
            ((float *)out)[at + i] = n ? l->acc_f32[i] / (float)n : 0.0f;
        } else {
            const int64_t sum = l->acc[i], v = n ? (sum > 0 ? sum + n / 2 : sum - n / 2) / n : 0;
            if (p->type == HWQ_S16) ((int16_t *)out)[at + i] = (int16_t)hwq_clamp_s64(v, p->lo, p->hi);
            else ((uint8_t *)out)[at + i] = (uint8_t)hwq_clamp_s64(v, p->lo, p->hi);
        }
    }
}

/* One run of outputs: `count` elements from input channel or row position `start`, each `origin_step` input columns apart. */
static void run(const hwq_pool *p, int64_t base, int64_t element_step, const int64_t origin[3], int64_t origin_step, int64_t count, int64_t out)
{
    const hwq_window *w = &p->window;
    line l;
    const int32_t lowest = p->kind != HWQ_POOL_MAX || p->type == HWQ_U8 ? 0 : -128;
    for (int64_t i = 0; i < count; i++) {
        l.acc[i] = lowest;
        l.acc_f32[i] = p->kind == HWQ_POOL_MAX ? -INFINITY : 0.0f;
        l.taps[i] = 0;
    }
    for (int64_t t0 = 0; t0 < w->kernel[0]; t0++)
        for (int64_t t1 = 0; t1 < w->kernel[1]; t1++) {
            const int64_t i0 = origin[0] + t0 * w->dilation[0], i1 = origin[1] + t1 * w->dilation[1];
            if (i0 < 0 || i1 < 0 || i0 >= w->in[0] || i1 >= w->in[1]) continue;
            for (int64_t t2 = 0; t2 < w->kernel[2]; t2++) {
                const int64_t i2 = origin[2] + t2 * w->dilation[2];
                int64_t first = 0, last = count;
                if (origin_step) { /* outputs i whose column i2 + i * origin_step lies in the image */
                    if (i2 < 0) first = (-i2 + origin_step - 1) / origin_step;
                    const int64_t end = i2 < w->in[2] ? (w->in[2] - 1 - i2) / origin_step + 1 : 0;
                    last = end < count ? end : count;
                } else if (i2 < 0 || i2 >= w->in[2]) continue;
                if (first < last) take(p, &l, base + ((i0 * w->in[1] + i1) * w->in[2] + i2) * element_step, origin_step ? origin_step : 1, first, last);
            }
        }
    finish(p, &l, count, origin, origin_step, p->out, out);
}

/* Taps of a window inside the image, channel-last: first(tap) of the run of channels, then op on every other. */
#define HWQ_EACH_TAP(type, statement)                                                                                         \
    for (int64_t t0 = 0; t0 < w->kernel[0]; t0++)                                                                             \
        for (int64_t t1 = 0; t1 < w->kernel[1]; t1++)                                                                         \
            for (int64_t t2 = 0; t2 < w->kernel[2]; t2++) {                                                                   \
                const int64_t pixel = hwq_window_pixel(w, origin, t0, t1, t2);                                                \
                if (pixel < 0) continue;                                                                                      \
                const type *from = (const type *)p->x + base + pixel * p->channels;                                           \
                taps++;                                                                                                       \
                for (int64_t i = 0; i < count; i++) statement;                                                                \
            }

#define HWQ_GREATEST(type, lowest)                                                                                            \
    {                                                                                                                         \
        type top[LINE], *to = (type *)p->out + out;                                                                           \
        const type lo = (type)p->lo, hi = (type)p->hi;                                                                        \
        for (int64_t i = 0; i < count; i++) top[i] = lowest;                                                                  \
        HWQ_EACH_TAP(type, top[i] = from[i] > top[i] ? from[i] : top[i])                                                      \
        for (int64_t i = 0; i < count; i++) { const type v = top[i] > lo ? top[i] : lo; to[i] = v < hi ? v : hi; }            \
    }

/* Ties away by C's truncating division; in float64 the quotient of an int32 by n is below 2^16, so that it stays on its side of
 * every integer: they are at least 1 / n > 2^-32 apart. */
#define HWQ_MEAN(type)                                                                                                        \
    {                                                                                                                         \
        int32_t sums[LINE];                                                                                                   \
        type *to = (type *)p->out + out;                                                                                      \
        for (int64_t i = 0; i < count; i++) sums[i] = 0;                                                                      \
        HWQ_EACH_TAP(type, sums[i] += from[i])                                                                                \
        const int32_t n = (int32_t)(p->count_padding ? padded : taps), half = n / 2;                                          \
        const double divisor = n ? n : 1;                                                                                     \
        for (int64_t i = 0; i < count; i++) {                                                                                 \
            const int32_t away = sums[i] > 0 ? sums[i] + half : sums[i] - half;                                               \
            const int32_t v = n ? (int32_t)((double)away / divisor) : 0, low = v > p->lo ? v : p->lo;                         \
            to[i] = (type)(low < p->hi ? low : p->hi);                                                                        \
        }                                                                                                                     \
    }

/* Floats, in window order. */
static void mean_floats(const hwq_pool *p, int64_t base, const int64_t origin[3], int64_t count, int64_t padded, int64_t out)
{
    const hwq_window *w = &p->window;
    float sums[LINE], *to = (float *)p->out + out;
    int64_t taps = 0;
    for (int64_t i = 0; i < count; i++) sums[i] = 0.0f;
    HWQ_EACH_TAP(float, sums[i] += from[i])
    const int64_t n = p->count_padding ? padded : taps;
    for (int64_t i = 0; i < count; i++) to[i] = n ? sums[i] / (float)n : 0.0f;
}

/* All but greatest floats, channel-last: `count` channels of one position. Sums: at most 32768 taps of 16 bits, below 2^31. */
static void run_last(const hwq_pool *p, int64_t base, const int64_t origin[3], int64_t count, int64_t out)
{
    const hwq_window *w = &p->window;
    int64_t taps = 0, padded = 1;
    for (int d = 0; d < 3 && p->count_padding; d++) padded *= inside(p, d, origin[d], -w->pad[d], w->in[d] + p->pad_end[d]);
    if (p->kind == HWQ_POOL_MAX) {
        if (p->type == HWQ_U8) HWQ_GREATEST(uint8_t, 0)
        else HWQ_GREATEST(int8_t, -128)
    } else if (p->type == HWQ_F32) mean_floats(p, base, origin, count, padded, out);
    else if (p->type == HWQ_U8) HWQ_MEAN(uint8_t)
    else if (p->type == HWQ_S8) HWQ_MEAN(int8_t)
    else HWQ_MEAN(int16_t)
}

static void pool_lines(const hwq_pool *p)
{
    const hwq_window *w = &p->window;
    const int64_t inputs = hwq_window_inputs(w), outputs = hwq_window_outputs(w), c = p->channels;
    if (hwq_window_taps(w) > 32768) {
        hwq_pool_run__ref(p);
        return;
    }
    if (p->layout == HWQ_NHWC) {
        for (int64_t n = 0; n < p->batch; n++)
            for (int64_t position = 0; position < outputs; position++) {
                int64_t origin[3];
                hwq_window_origin(w, position, origin);
                for (int64_t at = 0; at < c; at += LINE)
                    if (p->type != HWQ_F32 || p->kind != HWQ_POOL_MAX)
                        run_last(p, n * inputs * c + at, origin, c - at < LINE ? c - at : LINE, (n * outputs + position) * c + at);
                    else run(p, n * inputs * c + at, c, origin, 0, c - at < LINE ? c - at : LINE, (n * outputs + position) * c + at);
            }
        return;
    }
    for (int64_t image = 0; image < p->batch * c; image++)
        for (int64_t row = 0; row < w->out[0] * w->out[1]; row++)
            for (int64_t at = 0; at < w->out[2]; at += LINE) {
                int64_t origin[3];
                hwq_window_origin(w, row * w->out[2] + at, origin);
                run(p, image * inputs, 1, origin, w->stride[2], w->out[2] - at < LINE ? w->out[2] - at : LINE,
                    image * outputs + row * w->out[2] + at);
            }
}

#endif
