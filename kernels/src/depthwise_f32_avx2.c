/* Depthwise convolution of floats, 8 channels at a time, channel-last (channel-first images are turned in the workspace).
 * Accumulator j of 8 takes taps j, j + 8, ..., as the fixed order says; padding takes part as +0. */
#include "conv.h"
#include "epilogue.h"
#include "isa.h"
#include "window.h"

#if HWQ_X86
#include <immintrin.h>
#include <string.h>

HWQ_TARGET("avx2,fma")

static inline __m256 floats8(const float *x, int64_t left)
{
    float tail[8] = {0};
    if (left >= 8) return _mm256_loadu_ps(x);
    memcpy(tail, x, (size_t)left * 4);
    return _mm256_loadu_ps(tail);
}

static void rows_f32(const hwq_conv *c, const char *image, int64_t first, int64_t count, void *out)
{
    const hwq_window *w = &c->window;
    const int64_t channels = c->channels;
    for (int64_t row = 0; row < count; row++) {
        int64_t origin[3];
        float *to = (float *)out + row * channels;
        hwq_window_origin(w, first + row, origin);
        for (int64_t at = 0; at < channels; at += 8) {
            const int64_t left = channels - at;
            __m256 lane[HWQ_LANES];
            for (int j = 0; j < HWQ_LANES; j++) lane[j] = _mm256_setzero_ps();
            int64_t tap = 0;
            for (int64_t t0 = 0; t0 < w->kernel[0]; t0++)
                for (int64_t t1 = 0; t1 < w->kernel[1]; t1++)
                    for (int64_t t2 = 0; t2 < w->kernel[2]; t2++, tap++) {
                        const int64_t pixel = hwq_window_pixel(w, origin, t0, t1, t2);
                        const __m256 x = pixel < 0 ? _mm256_setzero_ps() : floats8((const float *)image + pixel * channels + at, left);
                        lane[tap % HWQ_LANES] = _mm256_fmadd_ps(x, floats8(c->weights_f32 + tap * channels + at, left), lane[tap % HWQ_LANES]);
                    }
            for (; tap % HWQ_LANES; tap++)
                lane[tap % HWQ_LANES] = _mm256_fmadd_ps(_mm256_setzero_ps(), _mm256_setzero_ps(), lane[tap % HWQ_LANES]);
            const __m256 a = _mm256_add_ps(_mm256_add_ps(lane[0], lane[1]), _mm256_add_ps(lane[2], lane[3]));
            const __m256 b = _mm256_add_ps(_mm256_add_ps(lane[4], lane[5]), _mm256_add_ps(lane[6], lane[7]));
            __m256 y = _mm256_add_ps(a, b);
            if (c->bias_f32) y = _mm256_add_ps(y, floats8(c->bias_f32 + at, left));
            float values[8];
            _mm256_storeu_ps(values, y);
            memcpy(to + at, values, (size_t)(left < 8 ? left : 8) * 4);
        }
    }
}

static void drive(const hwq_conv *c)
{
    const hwq_conv_shape s = hwq_conv_measure(c);
    const int64_t channels = c->channels, outputs = hwq_window_outputs(&c->window), inputs = hwq_window_inputs(&c->window);
    const int64_t step = channels < HWQ_DEPTHWISE_BLOCK ? HWQ_DEPTHWISE_BLOCK / channels : 1;
    char *image_space = c->workspace, *acc = image_space + s.image, *tile = acc + s.rows;
    hwq_epilogue epilogue = {.kind = HWQ_KIND_S32, .out_type = HWQ_S32}; /* float results pass as they are */
    if (c->epilogue) { epilogue = *c->epilogue; epilogue.residual_op = NULL; }
    for (int64_t at = c->first; at < c->last;) {
        const int64_t number = at / outputs, begin = at % outputs, end = c->last - at + begin < outputs ? c->last - at + begin : outputs;
        const char *image = (const char *)c->x + number * inputs * channels * s.element;
        if (c->layout == HWQ_NCHW) {
            hwq_transpose(s.element, channels, inputs, image, inputs, image_space, channels);
            image = image_space;
        }
        for (int64_t first = begin; first < end; first += step) {
            const int64_t count = end - first < step ? end - first : step;
            rows_f32(c, image, first, count, acc);
            if (c->layout == HWQ_NHWC) {
                char *out = (char *)c->out + (number * outputs + first) * channels * s.out_element;
                hwq_requantize(&epilogue, count, channels, 0, acc, HWQ_S32, channels, out, channels);
            } else {
                hwq_requantize(&epilogue, count, channels, 0, acc, HWQ_S32, channels, tile, channels);
                char *out = (char *)c->out + (number * channels * outputs + first) * s.out_element;
                hwq_transpose(s.out_element, count, channels, tile, channels, out, outputs);
            }
        }
        if (c->epilogue && c->epilogue->residual_op) hwq_conv_residual(c, number, begin, end);
        at += end - begin;
    }
}

void hwq_depthwise_f32__avx2(const hwq_conv *c) { drive(c); }

HWQ_TARGET_END
#endif
