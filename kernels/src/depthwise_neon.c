/* Depthwise convolution on Advanced SIMD, 16 or 8 channels at a time, channel-last (channel-first images are turned in the workspace).
 * Integers: smlal of x - za and w - zw, both at most 255 in size: a product is below 2^16, and every sum is modulo 2^32. 4 smlal (16 MACs) of 22 instructions.
 * Floats: lane j of 8 takes taps j, j + 8, ..., as the fixed order says; padding takes part as +0. */
#include "isa.h"

#if HWQ_ARM
#include "conv.h"
#include "epilogue.h"
#include "window.h"

#include <arm_neon.h>
#include <string.h>

/* Eight elements, of which `left` exist; the others read as 0. */
static inline const void *eight(const void *from, int64_t left, size_t size, void *space)
{
    if (left >= 8) return from;
    memset(space, 0, 8 * size);
    return memcpy(space, from, (size_t)left * size);
}

enum { TAPS = 64 /* whose pixels are found once for all channels; those of more are found again for every 8 or 16 */ };

/* The pixels of taps from `first` on, -1 in the padding. */
static void find_pixels(const hwq_window *w, const int64_t origin[3], int64_t first, int64_t count, int64_t *pixels)
{
    for (int64_t i = 0; i < count; i++) {
        const int64_t tap = first + i, rest = tap / w->kernel[2];
        pixels[i] = hwq_window_pixel(w, origin, rest / w->kernel[1], rest % w->kernel[1], tap % w->kernel[2]);
    }
}

/* x - za of 8 bytes, in one operation. */
static inline __attribute__((always_inline)) int16x8_t centered(const int is_signed, uint8x8_t x, uint8x8_t zero_point)
{
    return is_signed ? vsubl_s8(vreinterpret_s8_u8(x), vreinterpret_s8_u8(zero_point)) : vreinterpretq_s16_u16(vsubl_u8(x, zero_point));
}

/* `count` taps of 8 * vectors channels, of which `left` exist. */
static inline __attribute__((always_inline)) void some_taps(const int is_signed, const int vectors, const hwq_conv *c, const uint8_t *image, int64_t at,
                                                            int64_t left, const int64_t *pixels, int64_t first, int64_t count, int32x4_t acc[4])
{
    const uint8x8_t zero_point = vdup_n_u8((uint8_t)c->a_zero_point);
    for (int64_t i = 0; i < count; i++) {
        if (pixels[i] < 0) continue;
        const uint8_t *from = image + pixels[i] * c->channels + at;
        const int16_t *weights = c->taps_s16 + (first + i) * c->channels + at;
        uint8_t space[8];
        int16_t words[8];
        if (vectors == 1) from = eight(from, left, 1, space), weights = eight(weights, left, 2, words);
#pragma GCC unroll 2
        for (int v = 0; v < vectors; v++) {
            const int16x8_t x = centered(is_signed, vld1_u8(from + 8 * v), zero_point), w = vld1q_s16(weights + 8 * v);
            acc[2 * v] = vmlal_s16(acc[2 * v], vget_low_s16(x), vget_low_s16(w));
            acc[2 * v + 1] = vmlal_high_s16(acc[2 * v + 1], x, w);
        }
    }
}

static void row_s32(const hwq_conv *c, const char *image, const int64_t origin[3], void *out)
{
    const hwq_window *w = &c->window;
    const int64_t channels = c->channels, taps = hwq_window_taps(w);
    int64_t pixels[TAPS];
    if (taps <= TAPS) find_pixels(w, origin, 0, taps, pixels);
    for (int64_t at = 0, step; at < channels; at += step) {
        const int64_t left = channels - at;
        int32_t values[16] = {0};
        int32x4_t acc[4];
        step = left >= 16 ? 16 : 8;
        if (c->bias) memcpy(values, c->bias + at, (size_t)(left < step ? left : step) * 4);
#pragma GCC unroll 4
        for (int v = 0; v < 4; v++) acc[v] = vld1q_s32(values + 4 * v);
        for (int64_t first = 0; first < taps; first += TAPS) {
            const int64_t count = taps - first < TAPS ? taps - first : TAPS;
            if (taps > TAPS) find_pixels(w, origin, first, count, pixels);
#define TILE(is_signed, vectors) some_taps(is_signed, vectors, c, (const uint8_t *)image, at, left, pixels, first, count, acc)
            if (c->a_type == HWQ_U8 && step == 16) TILE(0, 2);
            else if (c->a_type == HWQ_U8) TILE(0, 1);
            else if (step == 16) TILE(1, 2);
            else TILE(1, 1);
#undef TILE
        }
#pragma GCC unroll 4
        for (int v = 0; v < 4; v++) vst1q_s32(values + 4 * v, acc[v]);
        memcpy((int32_t *)out + at, values, (size_t)(left < step ? left : step) * 4);
    }
}

static inline float32x4x2_t floats8(const float *x, int64_t left)
{
    float space[8];
    const float *from = eight(x, left, 4, space);
    return (float32x4x2_t){{vld1q_f32(from), vld1q_f32(from + 4)}};
}

static inline float32x4_t tree(const float32x4x2_t *lane, int half)
{
    const float32x4_t a = vaddq_f32(vaddq_f32(lane[0].val[half], lane[1].val[half]), vaddq_f32(lane[2].val[half], lane[3].val[half]));
    const float32x4_t b = vaddq_f32(vaddq_f32(lane[4].val[half], lane[5].val[half]), vaddq_f32(lane[6].val[half], lane[7].val[half]));
    return vaddq_f32(a, b);
}

/* 8 channels, of which `left` exist. */
static inline __attribute__((always_inline)) void eight_f32(const hwq_conv *c, const char *image, const int64_t origin[3], int64_t at, int64_t left,
                                                            int64_t *pixels, float *out)
{
    const hwq_window *w = &c->window;
    const int64_t channels = c->channels, taps = hwq_window_taps(w), whole = (taps + HWQ_LANES - 1) / HWQ_LANES * HWQ_LANES;
    const float32x4_t zero = vdupq_n_f32(0);
    float32x4x2_t lane[HWQ_LANES];
    for (int j = 0; j < HWQ_LANES; j++) lane[j].val[0] = lane[j].val[1] = zero;
    for (int64_t first = 0; first < whole; first += HWQ_LANES) {
        if (taps > TAPS && first % TAPS == 0) find_pixels(w, origin, first, taps - first < TAPS ? taps - first : TAPS, pixels);
#pragma GCC unroll 8
        for (int j = 0; j < HWQ_LANES; j++) { /* past the last tap: +0 x +0, which a lane of -0 would notice */
            float32x4x2_t x = {{zero, zero}}, v = x;
            if (first + j < taps) {
                const int64_t pixel = pixels[(first + j) % TAPS];
                if (pixel >= 0) x = floats8((const float *)image + pixel * channels + at, left);
                v = floats8(c->weights_f32 + (first + j) * channels + at, left);
            }
            lane[j].val[0] = vfmaq_f32(lane[j].val[0], x.val[0], v.val[0]);
            lane[j].val[1] = vfmaq_f32(lane[j].val[1], x.val[1], v.val[1]);
        }
    }
    float values[8];
    float32x4_t low = tree(lane, 0), high = tree(lane, 1);
    if (c->bias_f32) {
        const float32x4x2_t bias = floats8(c->bias_f32 + at, left);
        low = vaddq_f32(low, bias.val[0]), high = vaddq_f32(high, bias.val[1]);
    }
    vst1q_f32(values, low);
    vst1q_f32(values + 4, high);
    memcpy(out + at, values, (size_t)left * 4);
}

static void row_f32(const hwq_conv *c, const char *image, const int64_t origin[3], void *out)
{
    int64_t pixels[TAPS], at = 0;
    if (hwq_window_taps(&c->window) <= TAPS) find_pixels(&c->window, origin, 0, hwq_window_taps(&c->window), pixels);
    for (; at + 8 <= c->channels; at += 8) eight_f32(c, image, origin, at, 8, pixels, out);
    if (at < c->channels) eight_f32(c, image, origin, at, c->channels - at, pixels, out);
}

static void drive(const hwq_conv *c, void (*row)(const hwq_conv *, const char *, const int64_t *, void *))
{
    const hwq_conv_shape s = hwq_conv_measure(c);
    const int64_t channels = c->channels, outputs = hwq_window_outputs(&c->window), inputs = hwq_window_inputs(&c->window);
    const int64_t step = hwq_depthwise_rows(channels);
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
            for (int64_t i = 0; i < count; i++) {
                int64_t origin[3];
                hwq_window_origin(&c->window, first + i, origin);
                row(c, image, origin, acc + i * channels * 4);
            }
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

void hwq_depthwise_s32__neon(const hwq_conv *c) { drive(c, row_s32); }
void hwq_depthwise_f32__neon(const hwq_conv *c) { drive(c, row_f32); }
#endif
