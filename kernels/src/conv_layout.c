/* What every convolution driver shares: turning layouts, and the residual that has the output's layout. */
#include "conv.h"

#include "chain.h"
#include "depthwise.h"
#include "epilogue.h"
#include "isa.h"
#include "window.h"
#include "winograd.h"
#include "winograd_4x4.h"

#include <string.h>

hwq_conv_shape hwq_conv_measure(const hwq_conv *c)
{
    const int64_t block = c->channels < HWQ_DEPTHWISE_BLOCK ? HWQ_DEPTHWISE_BLOCK : c->channels;
    hwq_conv_shape s;
    s.element = hwq_type_size(c->a_type);
    s.out_element = c->a_type == HWQ_F32 ? 4 : hwq_type_size(c->epilogue->out_type);
    s.depth = c->channels / c->groups;
    s.k = hwq_window_taps(&c->window) * s.depth;
    s.image = c->layout == HWQ_NCHW ? hwq_align(hwq_window_inputs(&c->window) * c->channels * s.element) : 0;
    if (c->depthwise) {
        s.rows = block * 4;
        s.tile = c->layout == HWQ_NCHW ? block * 4 : 0;
        s.gemm = c->a_type == HWQ_F32 ? hwq_align(hwq_window_taps(&c->window) * (int64_t)sizeof(float *)) : 0; /* pixels under the taps */
    } else {
        s.rows = hwq_align(HWQ_CONV_ROWS * s.k * s.element);
        s.tile = 0;
        s.gemm = c->a_type == HWQ_F32 ? 0 : hwq_gemm_workspace(s.k);
    }
    return s;
}

hwq_conv hwq_conv_channels_last(const hwq_conv *c)
{
    hwq_conv one = *c;
    one.layout = HWQ_NHWC, one.batch = 1;
    return one;
}

static int64_t turned_outputs(const hwq_conv *c)
{
    return hwq_align(hwq_window_outputs(&c->window) * c->out_channels * (c->epilogue ? hwq_type_size(c->epilogue->out_type) : 4));
}

static int64_t greater(int64_t a, int64_t b) { return a > b ? a : b; }

int64_t hwq_conv_workspace(const hwq_conv *conv)
{
    if (conv->order != HWQ_ORDER_LANES) {
        const hwq_chain_shape chain = hwq_chain_measure(conv);
        return chain.image + chain.offsets;
    }
    if (conv->depthwise && conv->out_channels != conv->channels) return hwq_depthwise_repeat_workspace(conv);
    const hwq_conv_shape s = hwq_conv_measure(conv);
    const int64_t blocked = s.rows + s.tile + s.gemm;
    if (conv->depthwise) return s.image + greater(blocked, conv->a_type == HWQ_F32 ? 0 : hwq_depthwise_workspace(conv));
    if (conv->layout == HWQ_NCHW) {
        const hwq_conv one = hwq_conv_channels_last(conv);
        return s.image + turned_outputs(conv) + hwq_conv_workspace(&one);
    }
    const int64_t winograd = conv->a_type == HWQ_F32 ? 0 : greater(hwq_winograd_workspace(conv), hwq_winograd_4x4_workspace(conv));
    return hwq_align(greater(greater(blocked, winograd), greater(hwq_conv_inner_workspace(conv), hwq_conv_direct_workspace(conv))));
}

static inline __attribute__((always_inline)) void turn_sized(const int64_t element, int64_t rows, int64_t columns, const char *from,
                                                             int64_t from_stride, char *to, int64_t to_stride)
{
    for (int64_t j = 0; j < columns; j++)
        for (int64_t i = 0; i < rows; i++)
            memcpy(to + (j * to_stride + i) * element, from + (i * from_stride + j) * element, (size_t)element);
}

static void turn(int64_t element, int64_t rows, int64_t columns, const char *from, int64_t from_stride, char *to, int64_t to_stride)
{
    if (element == 1) turn_sized(1, rows, columns, from, from_stride, to, to_stride);
    else if (element == 2) turn_sized(2, rows, columns, from, from_stride, to, to_stride);
    else turn_sized(4, rows, columns, from, from_stride, to, to_stride);
}

#if HWQ_X86 /* SSE2 is part of x86-64 */
#include <emmintrin.h>
/* 16 x 16 bytes: four rounds that each interleave row i with row i + 8. */
static void turn16(const char *from, int64_t from_stride, char *to, int64_t to_stride)
{
    __m128i a[16], b[16];
    for (int i = 0; i < 16; i++) a[i] = _mm_loadu_si128((const __m128i *)(from + i * from_stride));
    for (int round = 0; round < 2; round++) {
        for (int i = 0; i < 8; i++) b[2 * i] = _mm_unpacklo_epi8(a[i], a[i + 8]), b[2 * i + 1] = _mm_unpackhi_epi8(a[i], a[i + 8]);
        for (int i = 0; i < 8; i++) a[2 * i] = _mm_unpacklo_epi8(b[i], b[i + 8]), a[2 * i + 1] = _mm_unpackhi_epi8(b[i], b[i + 8]);
    }
    for (int i = 0; i < 16; i++) _mm_storeu_si128((__m128i *)(to + i * to_stride), a[i]);
}
/* 4-byte elements in squares of 4, what is left one by one. */
static void turn_words(int64_t rows, int64_t columns, const char *from, int64_t from_stride, char *to, int64_t to_stride)
{
    int64_t i = 0;
    for (; i + 4 <= rows; i += 4) {
        int64_t j = 0;
        for (; j + 4 <= columns; j += 4) {
            __m128i a[4];
            for (int r = 0; r < 4; r++) a[r] = _mm_loadu_si128((const __m128i *)(from + ((i + r) * from_stride + j) * 4));
            const __m128i low = _mm_unpacklo_epi32(a[0], a[1]), high = _mm_unpackhi_epi32(a[0], a[1]);
            const __m128i low2 = _mm_unpacklo_epi32(a[2], a[3]), high2 = _mm_unpackhi_epi32(a[2], a[3]);
            char *place = to + (j * to_stride + i) * 4;
            _mm_storeu_si128((__m128i *)place, _mm_unpacklo_epi64(low, low2));
            _mm_storeu_si128((__m128i *)(place + to_stride * 4), _mm_unpackhi_epi64(low, low2));
            _mm_storeu_si128((__m128i *)(place + to_stride * 8), _mm_unpacklo_epi64(high, high2));
            _mm_storeu_si128((__m128i *)(place + to_stride * 12), _mm_unpackhi_epi64(high, high2));
        }
        turn(4, 4, columns - j, from + (i * from_stride + j) * 4, from_stride, to + (j * to_stride + i) * 4, to_stride);
    }
    turn(4, rows - i, columns, from + i * from_stride * 4, from_stride, to + i * 4, to_stride);
}
#else
static void turn16(const char *from, int64_t from_stride, char *to, int64_t to_stride) { turn(1, 16, 16, from, from_stride, to, to_stride); }
static void turn_words(int64_t rows, int64_t columns, const char *from, int64_t from_stride, char *to, int64_t to_stride)
{
    turn(4, rows, columns, from, from_stride, to, to_stride);
}
#endif

/* Three rows of bytes, as of a photograph, to dense pixels: four at a time in words, whose first byte is the lowest. */
static void turn_three(int64_t columns, const char *from, int64_t from_stride, char *to)
{
    int64_t j = 0;
    for (; j + 4 <= columns; j += 4) {
        uint32_t a, b, c;
        memcpy(&a, from + j, 4), memcpy(&b, from + from_stride + j, 4), memcpy(&c, from + 2 * from_stride + j, 4);
        const uint32_t words[3] = {(a & 0xFF) | (b & 0xFF) << 8 | (c & 0xFF) << 16 | (a >> 8 & 0xFF) << 24,
                                   (b >> 8 & 0xFF) | (c & 0xFF00) | (a & 0xFF0000) | (b >> 16 & 0xFF) << 24,
                                   (c >> 16 & 0xFF) | (a >> 24) << 8 | (b >> 24) << 16 | (c & 0xFF000000)};
        memcpy(to + 3 * j, words, 12);
    }
    turn(1, 3, columns - j, from + j, from_stride, to + 3 * j, 3);
}

/* to[column][row] = from[row][column], in squares that keep both sides in cache. */
void hwq_transpose(int64_t element, int64_t rows, int64_t columns, const char *from, int64_t from_stride, char *to, int64_t to_stride)
{
    const uint32_t one = 1;
    if (element == 1 && rows == 3 && to_stride == 3 && *(const unsigned char *)&one == 1) {
        turn_three(columns, from, from_stride, to);
        return;
    }
    enum { SIDE = 16 };
    for (int64_t top = 0; top < rows; top += SIDE)
        for (int64_t left = 0; left < columns; left += SIDE) {
            const int64_t height = rows - top < SIDE ? rows - top : SIDE, width = columns - left < SIDE ? columns - left : SIDE;
            const char *corner = from + (top * from_stride + left) * element;
            char *place = to + (left * to_stride + top) * element;
            if (element == 1 && height == SIDE && width == SIDE) turn16(corner, from_stride, place, to_stride);
            else if (element == 4) turn_words(height, width, corner, from_stride, place, to_stride);
            else turn(element, height, width, corner, from_stride, place, to_stride);
        }
}

/* The residual has the output's layout, so it joins per image (channel-first: per channel) once the outputs are there. */
void hwq_conv_residual(const hwq_conv *c, int64_t image, int64_t first, int64_t last)
{
    const hwq_binary *op = c->epilogue->residual_op;
    const int64_t outputs = hwq_window_outputs(&c->window), size = hwq_type_size(op->b_type), out_size = hwq_type_size(op->out_type);
    const int64_t lines = c->layout == HWQ_NHWC ? 1 : c->out_channels, step = c->layout == HWQ_NHWC ? c->out_channels : 1;
    for (int64_t line = 0; line < lines; line++) {
        const int64_t at = image * outputs * c->out_channels + line * outputs + first * step;
        char *out = (char *)c->out + at * out_size;
        hwq_binary_run(op, (last - first) * step, out, 1, (const char *)c->epilogue->residual + at * size, 1, out);
    }
}

void hwq_conv_images(const hwq_conv *c, hwq_image_fn *drive, const void *plan)
{
    const int64_t outputs = hwq_window_outputs(&c->window), inputs = hwq_window_inputs(&c->window), size = hwq_type_size(c->a_type);
    for (int64_t at = c->first; at < c->last;) {
        const int64_t number = at / outputs, begin = at % outputs, end = c->last - at + begin < outputs ? c->last - at + begin : outputs;
        const char *image = (const char *)c->x + number * inputs * c->channels * size;
        if (c->layout == HWQ_NCHW) {
            hwq_transpose(size, c->channels, inputs, image, inputs, c->workspace, c->channels);
            image = c->workspace;
        }
        drive(plan, (const uint8_t *)image, number, begin, end);
        if (c->epilogue && c->epilogue->residual_op) hwq_conv_residual(c, number, begin, end);
        at += end - begin;
    }
}

void hwq_conv_turned(const hwq_conv *c, void (*run)(const hwq_conv *))
{
    const int64_t outputs = hwq_window_outputs(&c->window), inputs = hwq_window_inputs(&c->window), n = c->out_channels;
    const int64_t size = hwq_type_size(c->a_type), out_size = c->epilogue ? hwq_type_size(c->epilogue->out_type) : 4;
    char *image = c->workspace, *made = image + hwq_align(inputs * c->channels * size);
    hwq_conv one = hwq_conv_channels_last(c);
    hwq_epilogue e;
    if (c->epilogue) e = *c->epilogue, e.residual_op = NULL, one.epilogue = &e;
    one.x = image, one.out = made, one.workspace = made + turned_outputs(c);
    for (int64_t at = c->first; at < c->last; at += one.last - one.first) {
        const int64_t number = at / outputs;
        one.first = at % outputs, one.last = c->last - at + one.first < outputs ? c->last - at + one.first : outputs;
        hwq_transpose(size, c->channels, inputs, (const char *)c->x + number * inputs * c->channels * size, inputs, image, c->channels);
        run(&one);
        hwq_transpose(out_size, one.last - one.first, n, made + one.first * n * out_size, n, (char *)c->out + (number * n * outputs + one.first) * out_size, outputs);
        if (c->epilogue && c->epilogue->residual_op) hwq_conv_residual(c, number, one.first, one.last);
    }
}
