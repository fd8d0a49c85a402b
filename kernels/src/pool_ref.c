/* Pooling, the plain reading. Channel-first input is read as more images with one channel. */
#include "fixedpoint.h"
#include "isa.h"
#include "window.h"

static inline int32_t load(const void *x, int32_t type, int64_t i)
{
    return type == HWQ_U8 ? ((const uint8_t *)x)[i] : type == HWQ_S8 ? ((const int8_t *)x)[i] : ((const int16_t *)x)[i];
}

static inline void store(void *out, int32_t type, int64_t i, int32_t v)
{
    if (type <= HWQ_S8) ((uint8_t *)out)[i] = (uint8_t)v;
    else ((int16_t *)out)[i] = (int16_t)v;
}

/* Taps that an average divides by: inside the input, or inside the padded input. */
static int64_t count(const hwq_pool *p, const int64_t origin[3])
{
    const hwq_window *w = &p->window;
    int64_t total = 1;
    for (int d = 0; d < 3; d++) {
        const int64_t lo = p->count_padding ? -w->pad[d] : 0, hi = w->in[d] + (p->count_padding ? p->pad_end[d] : 0);
        int64_t inside = 0;
        for (int64_t t = 0; t < w->kernel[d]; t++) {
            const int64_t i = origin[d] + t * w->dilation[d];
            inside += i >= lo && i < hi;
        }
        total *= inside;
    }
    return total;
}

static void pool_one(const hwq_pool *p, int64_t image, int64_t channel, int64_t channels, const int64_t origin[3], int64_t out)
{
    const hwq_window *w = &p->window;
    const int64_t base = image * hwq_window_inputs(w);
    int64_t sum = 0, taps = 0; /* at most 2^47 taps of 16 bits */
    int32_t top = p->type == HWQ_U8 ? 0 : p->type == HWQ_S8 ? -128 : -32768;
    float top_f32 = -INFINITY, sum_f32 = 0.0f;
    for (int64_t t0 = 0; t0 < w->kernel[0]; t0++)
        for (int64_t t1 = 0; t1 < w->kernel[1]; t1++)
            for (int64_t t2 = 0; t2 < w->kernel[2]; t2++) {
                const int64_t pixel = hwq_window_pixel(w, origin, t0, t1, t2);
                if (pixel < 0) continue;
                const int64_t i = (base + pixel) * channels + channel;
                taps++;
                if (p->type == HWQ_F32) {
                    const float v = ((const float *)p->x)[i];
                    sum_f32 += v;
                    top_f32 = v > top_f32 || v != v ? v : top_f32; /* NaN wins and stays */
                } else {
                    const int32_t v = load(p->x, p->type, i);
                    sum += v;
                    top = v > top ? v : top;
                }
            }
    if (p->kind == HWQ_POOL_AVERAGE) {
        const int64_t n = count(p, origin);
        ((float *)p->out)[out] = n ? sum_f32 / (float)n : 0.0f;
    } else if (p->type == HWQ_F32) {
        ((float *)p->out)[out] = top_f32;
    } else if (p->kind == HWQ_POOL_MAX) {
        store(p->out, p->type, out, hwq_clamp_s64(top, p->lo, p->hi));
    } else { /* ties away, by C's truncating division */
        const int64_t n = p->count_padding ? count(p, origin) : taps;
        store(p->out, p->type, out, hwq_clamp_s64(n ? (sum > 0 ? sum + n / 2 : sum - n / 2) / n : 0, p->lo, p->hi));
    }
}

void hwq_pool_run__ref(const hwq_pool *p)
{
    const int64_t outputs = hwq_window_outputs(&p->window);
    const int64_t channels = p->layout == HWQ_NHWC ? p->channels : 1, images = p->layout == HWQ_NHWC ? p->batch : p->batch * p->channels;
    for (int64_t image = 0; image < images; image++)
        for (int64_t position = 0; position < outputs; position++) {
            int64_t origin[3];
            hwq_window_origin(&p->window, position, origin);
            for (int64_t channel = 0; channel < channels; channel++)
                pool_one(p, image, channel, channels, origin, (image * outputs + position) * channels + channel);
        }
}
