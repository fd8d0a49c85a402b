/* Depthwise convolution on Advanced SIMD, 8 channels at a time, channel-last (channel-first images are turned in the workspace).
 * Integers: smlal of x - za and w - zw, both at most 255 in size: a product is below 2^16, and every sum is modulo 2^32.
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

static inline int16x8_t bytes8(const hwq_conv *c, const uint8_t *x, int64_t left)
{
    uint8_t space[8];
    const uint8x8_t bytes = vld1_u8(eight(x, left, 1, space));
    const int16x8_t words = c->a_type == HWQ_U8 ? vreinterpretq_s16_u16(vmovl_u8(bytes)) : vmovl_s8(vreinterpret_s8_u8(bytes));
    return vsubq_s16(words, vdupq_n_s16((int16_t)c->a_zero_point));
}

static void row_s32(const hwq_conv *c, const char *image, const int64_t origin[3], void *out)
{
    const hwq_window *w = &c->window;
    const int64_t channels = c->channels;
    for (int64_t at = 0; at < channels; at += 8) {
        const int64_t left = channels - at;
        int32_t space[8];
        int16_t taps[8];
        const int32_t *bias = c->bias ? eight(c->bias + at, left, 4, space) : memset(space, 0, sizeof space);
        int32x4_t low = vld1q_s32(bias), high = vld1q_s32(bias + 4);
        int64_t tap = 0;
        for (int64_t t0 = 0; t0 < w->kernel[0]; t0++)
            for (int64_t t1 = 0; t1 < w->kernel[1]; t1++)
                for (int64_t t2 = 0; t2 < w->kernel[2]; t2++, tap++) {
                    const int64_t pixel = hwq_window_pixel(w, origin, t0, t1, t2);
                    if (pixel < 0) continue;
                    const int16x8_t x = bytes8(c, (const uint8_t *)image + pixel * channels + at, left);
                    const int16x8_t v = vld1q_s16(eight(c->taps_s16 + tap * channels + at, left, 2, taps));
                    low = vmlal_s16(low, vget_low_s16(x), vget_low_s16(v));
                    high = vmlal_high_s16(high, x, v);
                }
        int32_t values[8];
        vst1q_s32(values, low);
        vst1q_s32(values + 4, high);
        memcpy((int32_t *)out + at, values, (size_t)(left < 8 ? left : 8) * 4);
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

static void row_f32(const hwq_conv *c, const char *image, const int64_t origin[3], void *out)
{
    const hwq_window *w = &c->window;
    const int64_t channels = c->channels, taps = hwq_window_taps(w), whole = (taps + HWQ_LANES - 1) / HWQ_LANES * HWQ_LANES;
    for (int64_t at = 0; at < channels; at += 8) {
        const int64_t left = channels - at;
        const float32x4_t zero = vdupq_n_f32(0);
        float32x4x2_t lane[HWQ_LANES];
        for (int j = 0; j < HWQ_LANES; j++) lane[j].val[0] = lane[j].val[1] = zero;
        for (int64_t tap = 0; tap < whole; tap++) { /* past the last tap: +0 x +0, which a lane of -0 would notice */
            float32x4x2_t x = {{zero, zero}}, v = x;
            if (tap < taps) {
                const int64_t t2 = tap % w->kernel[2], rest = tap / w->kernel[2];
                const int64_t pixel = hwq_window_pixel(w, origin, rest / w->kernel[1], rest % w->kernel[1], t2);
                if (pixel >= 0) x = floats8((const float *)image + pixel * channels + at, left);
                v = floats8(c->weights_f32 + tap * channels + at, left);
            }
            float32x4x2_t *to = &lane[tap % HWQ_LANES];
            to->val[0] = vfmaq_f32(to->val[0], x.val[0], v.val[0]);
            to->val[1] = vfmaq_f32(to->val[1], x.val[1], v.val[1]);
        }
        float values[8];
        float32x4_t low = tree(lane, 0), high = tree(lane, 1);
        if (c->bias_f32) {
            const float32x4x2_t bias = floats8(c->bias_f32 + at, left);
            low = vaddq_f32(low, bias.val[0]), high = vaddq_f32(high, bias.val[1]);
        }
        vst1q_f32(values, low);
        vst1q_f32(values + 4, high);
        memcpy((float *)out + at, values, (size_t)(left < 8 ? left : 8) * 4);
    }
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
