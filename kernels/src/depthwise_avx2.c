/* Depthwise convolution, 16 channels at a time, channel-last (channel-first images are turned in the workspace).
 * Integers: two taps at once by vpmaddwd; |x - za| <= 255 and |w - zw| <= 255, so a pair is below 2^17.
 * Floats: accumulator j of 8 takes taps j, j + 8, ..., as the fixed order says; padding takes part as +0. */
#include "conv.h"
#include "epilogue.h"
#include "isa.h"
#include "window.h"

#if HWQ_X86
#include <immintrin.h>
#include <string.h>

HWQ_TARGET("avx2,fma")

typedef void rows_fn(const hwq_conv *c, const char *image, int64_t first, int64_t count, void *acc);

static inline __m256i load16(const hwq_conv *c, const uint8_t *x, int64_t left)
{
    uint8_t tail[16] = {0};
    __m128i bytes;
    if (left >= 16) bytes = _mm_loadu_si128((const __m128i *)x);
    else bytes = (memcpy(tail, x, (size_t)left), _mm_loadu_si128((const __m128i *)tail));
    const __m256i words = c->a_type == HWQ_U8 ? _mm256_cvtepu8_epi16(bytes) : _mm256_cvtepi8_epi16(bytes);
    return _mm256_sub_epi16(words, _mm256_set1_epi16((short)c->a_zero_point));
}

static inline __m256i weights16(const int16_t *w, int64_t left)
{
    int16_t tail[16] = {0};
    if (left >= 16) return _mm256_loadu_si256((const __m256i *)w);
    memcpy(tail, w, (size_t)left * 2);
    return _mm256_loadu_si256((const __m256i *)tail);
}

/* Taps inside the image at one position: pixel and tap index, in chunks that fit the stack. */
enum { TAPS = 64 };
typedef struct {
    int64_t tap, t0, t1, t2;
    int64_t pixel[TAPS], index[TAPS];
} cursor;

static inline int collect(const hwq_window *w, const int64_t origin[3], cursor *s)
{
    int n = 0;
    for (; s->t0 < w->kernel[0]; s->t0++, s->t1 = 0)
        for (; s->t1 < w->kernel[1]; s->t1++, s->t2 = 0)
            for (; s->t2 < w->kernel[2]; s->t2++, s->tap++) {
                if (n == TAPS) return n;
                const int64_t pixel = hwq_window_pixel(w, origin, s->t0, s->t1, s->t2);
                if (pixel < 0) continue;
                s->pixel[n] = pixel;
                s->index[n++] = s->tap;
            }
    return n;
}

static void rows_s32(const hwq_conv *c, const char *image, int64_t first, int64_t count, void *out)
{
    const int64_t channels = c->channels;
    for (int64_t row = 0; row < count; row++) {
        int64_t origin[3];
        int32_t *acc = (int32_t *)out + row * channels;
        cursor s = {0};
        hwq_window_origin(&c->window, first + row, origin);
        if (c->bias) memcpy(acc, c->bias, (size_t)channels * 4);
        else memset(acc, 0, (size_t)channels * 4);
        for (int n; (n = collect(&c->window, origin, &s)) > 0;)
            for (int64_t at = 0; at < channels; at += 16) {
                const int64_t left = channels - at;
                __m256i low = _mm256_setzero_si256(), high = low;
                for (int i = 0; i < n; i += 2) {
                    const __m256i xa = load16(c, (const uint8_t *)image + s.pixel[i] * channels + at, left);
                    const __m256i wa = weights16(c->taps_s16 + s.index[i] * channels + at, left);
                    __m256i xb = _mm256_setzero_si256(), wb = xb;
                    if (i + 1 < n) {
                        xb = load16(c, (const uint8_t *)image + s.pixel[i + 1] * channels + at, left);
                        wb = weights16(c->taps_s16 + s.index[i + 1] * channels + at, left);
                    }
                    low = _mm256_add_epi32(low, _mm256_madd_epi16(_mm256_unpacklo_epi16(xa, xb), _mm256_unpacklo_epi16(wa, wb)));
                    high = _mm256_add_epi32(high, _mm256_madd_epi16(_mm256_unpackhi_epi16(xa, xb), _mm256_unpackhi_epi16(wa, wb)));
                }
                int32_t sums[16]; /* unpack works in halves of 128 bits: low holds channels 0-3, 8-11 */
                _mm256_storeu_si256((__m256i *)sums, _mm256_permute2x128_si256(low, high, 0x20));
                _mm256_storeu_si256((__m256i *)(sums + 8), _mm256_permute2x128_si256(low, high, 0x31));
                for (int64_t j = 0; j < (left < 16 ? left : 16); j++) acc[at + j] = (int32_t)((uint32_t)acc[at + j] + (uint32_t)sums[j]);
            }
    }
}

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

static void drive(const hwq_conv *c, rows_fn *rows)
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
            rows(c, image, first, count, acc);
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

void hwq_depthwise_s32__avx2(const hwq_conv *c) { drive(c, rows_s32); }
void hwq_depthwise_f32__avx2(const hwq_conv *c) { drive(c, rows_f32); }

HWQ_TARGET_END
#endif
