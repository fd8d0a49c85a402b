/* Convolution as blocks of GEMM: up to 64 output positions are gathered into rows (tap, channel), multiplied, and finished.
 * Channel-last. No intrinsics: the GEMM and the epilogue underneath are those of the chosen path. */
#include "conv.h"
#include "epilogue.h"
#include "isa.h"
#include "window.h"

#include <string.h>

/* Rows [first, first + count) of one group: every tap's channels, padding filled with the zero point (float: with +0). */
static void gather(const hwq_conv *c, const hwq_conv_shape *s, const char *image, int64_t group, int64_t first, int64_t count, char *rows)
{
    const hwq_window *w = &c->window;
    const int64_t pixel_bytes = c->channels * s->element, run = s->depth * s->element;
    const int fill = c->a_type == HWQ_F32 ? 0 : c->a_zero_point & 0xFF;
    const char *base = image + group * run;
    const int dense = c->groups == 1 && w->dilation[2] == 1;
    for (int64_t i = 0; i < count; i++) {
        int64_t origin[3];
        hwq_window_origin(w, first + i, origin);
        for (int64_t t0 = 0; t0 < w->kernel[0]; t0++)
            for (int64_t t1 = 0; t1 < w->kernel[1]; t1++) {
                if (dense && origin[2] >= 0 && origin[2] + w->kernel[2] <= w->in[2]) { /* neighbors in memory: one run */
                    const int64_t pixel = hwq_window_pixel(w, origin, t0, t1, 0);
                    if (pixel < 0) memset(rows, fill, (size_t)(run * w->kernel[2]));
                    else memcpy(rows, base + pixel * pixel_bytes, (size_t)(run * w->kernel[2]));
                    rows += run * w->kernel[2];
                    continue;
                }
                for (int64_t t2 = 0; t2 < w->kernel[2]; t2++, rows += run) {
                    const int64_t pixel = hwq_window_pixel(w, origin, t0, t1, t2);
                    if (pixel < 0) memset(rows, fill, (size_t)run);
                    else memcpy(rows, base + pixel * pixel_bytes, (size_t)run);
                }
            }
    }
}

/* Is the gathered matrix the image itself? */
static int pointwise(const hwq_window *w)
{
    for (int d = 0; d < 3; d++)
        if (w->kernel[d] != 1 || w->stride[d] != 1 || w->pad[d] != 0 || w->in[d] != w->out[d]) return 0;
    return 1;
}

static void multiply(const hwq_conv *c, const hwq_conv_shape *s, int64_t group, int64_t count, const char *a, int64_t a_stride,
                     const hwq_epilogue *epilogue, char *out, int64_t out_stride, void *workspace)
{
    const int64_t n = c->out_channels / c->groups;
    if (c->a_type == HWQ_F32) {
        hwq_gemm_f32_args args = {.m = count, .k = s->k, .n = n, .a = (const float *)a, .a_stride = a_stride,
                                  .weights = c->weights_f32 + group * hwq_packed_f32_floats(s->k, n),
                                  .bias = c->bias_f32 ? c->bias_f32 + group * n : NULL, .out = (float *)out, .out_stride = out_stride};
        hwq_gemm_f32(&args);
        return;
    }
    hwq_gemm_args args = {.m = count, .a = a, .a_stride = a_stride, .a_zero_point = c->a_zero_point, .weights = c->weights, .group = group,
                          .first_strip = 0, .strips = (n + HWQ_STRIP - 1) / HWQ_STRIP, .bias = c->bias, .epilogue = epilogue, .out = out,
                          .out_stride = out_stride, .workspace = workspace};
    if (c->a_type == HWQ_U8) hwq_gemm_u8s8(&args);
    else hwq_gemm_s8s8(&args);
}

static void convolve(const hwq_conv *c)
{
    const hwq_conv_shape s = hwq_conv_measure(c);
    const int64_t outputs = hwq_window_outputs(&c->window), inputs = hwq_window_inputs(&c->window), n = c->out_channels / c->groups;
    const int direct = pointwise(&c->window);
    char *rows = c->workspace, *gemm = rows + s.rows;
    hwq_epilogue epilogue = {0};
    if (c->epilogue) { epilogue = *c->epilogue; epilogue.residual_op = NULL; }
    for (int64_t at = c->first; at < c->last;) {
        const int64_t number = at / outputs, begin = at % outputs, end = c->last - at + begin < outputs ? c->last - at + begin : outputs;
        const char *image = (const char *)c->x + number * inputs * c->channels * s.element;
        const int64_t most = direct ? end - begin : HWQ_CONV_ROWS; /* the image itself is the matrix */
        for (int64_t first = begin; first < end; first += most) {
            const int64_t count = end - first < most ? end - first : most;
            for (int64_t group = 0; group < c->groups; group++) {
                const char *a = rows;
                int64_t a_stride = s.k;
                if (direct) { a = image + (first * c->channels + group * s.depth) * s.element; a_stride = c->channels; }
                else gather(c, &s, image, group, first, count, rows);
                char *out = (char *)c->out + ((number * outputs + first) * c->out_channels + group * n) * s.out_element;
                multiply(c, &s, group, count, a, a_stride, &epilogue, out, c->out_channels, gemm);
            }
        }
        if (c->epilogue && c->epilogue->residual_op) hwq_conv_residual(c, number, begin, end);
        at += end - begin;
    }
}

void hwq_conv_s32__blocked(const hwq_conv *conv) { convolve(conv); }
void hwq_conv_f32__blocked(const hwq_conv *conv) { convolve(conv); }
