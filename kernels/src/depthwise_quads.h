#ifndef HWQ_DEPTHWISE_QUADS_H
#define HWQ_DEPTHWISE_QUADS_H
/* Depthwise convolution of bytes on vpdpbusd, once per vector width: whoever includes this has named the vector and the vocabulary
 * (depthwise_s8_avx512vnni.c). Channel-last; channel-first images are turned in the workspace. Weights less their zero points must be int8.
 *
 * Four taps meet in one dot: bytes of four pixels stand interleaved, by channel, against four weights. Interleaving 4 vectors takes 8
 * instructions and gives 4 vectors of quads, 4 channels of each 128 bits; packing the sums twice puts the channels in order again. A block
 * is as many channels as a vector has bytes, or a half or a quarter: then its parts hold different outputs (lines, or positions).
 *
 *   sum (a - za) w = sum a*w - za * sum w     (padding holds za; s8 is flipped to u8 as it is loaded)
 *
 * 3 x 3 with one stride slides along x: the quads of a column are 4 lines, which serve two lines of outputs with stride 1 (the second meets its
 * weights a byte later) or one with stride 2 (3 lines). They stay in registers for all outputs that they belong to, and a weight serves two
 * neighbors. For 128 outputs of stride 1: 24 dots, 8 interleavings, 4 flips, 40 instructions that requantize: 19 cycles of four ports; of stride
 * 2: 24, 32, 12 and 40, 27 cycles. Everything else takes its taps by fours, in order.
 *
 * Bounds: a dot adds at most 4 * 255 * 128 < 2^17 in size to an int32 lane; every sum is modulo 2^32, as ref's. R4 to bytes is finished in
 * registers where every scale is below 1 in size: then no product leaves int32, and packing with saturation may come before the clamp, whose
 * bounds are integers. What is else goes through accumulators.
 * Measured on an AMD Zen 5 (EPYC, 4.17 GHz), one thread, gcc 12, R4 to bytes, called from C: stride 1 168 GMAC/s at 28 x 28 x 192 (29 cycles for 128
 * outputs), 145 at 112 x 112 x 32 and at 14 x 14 x 512; stride 2 112 at 112 x 112 x 32; 5 x 5 71 at 14 x 14 x 672. */
#include "depthwise.h"
#include "epilogue.h"
#include "isa.h"
#include "window.h"

#include <string.h>

enum { SLIDING = HWQ_DEPTHWISE_SLIDING /* 2 lines x 3 columns x 4 */, BAND = 8 /* output lines that all blocks pass together */, AT_ONCE = HWQ_DEPTHWISE_POSITIONS };

typedef struct {
    const hwq_conv *conv;
    const hwq_epilogue *epilogue; /* the residual comes later */
    hwq_depthwise_quads shape;
    int fused, slides;          /* the epilogue is done in registers; the 3 x 3 driver runs */
    vector flip, out_flip;      /* 0x80 where inputs, outputs are s8 and u8 */
    vector zero_point;          /* int16, of an s8 result */
    vector lo, hi, nothing;     /* bytes: the clamp of an s8 result; padding as u8 */
    char *constants;            /* [block][terms 4][scales 4][weights], in vectors */
    uint8_t *padding, *unused;  /* a line of padding; one of results that nobody wants */
    int32_t *acc;
    char *tile;
    const uint8_t **pointers;   /* [position][tap] */
    int64_t *offsets;
} plan;

/* Channels of the block that starts at `at`, and its first one: a last block that hangs over moves back. */
static inline int64_t width_at(int64_t channels, int64_t at)
{
    for (int64_t width = sizeof(vector); width > 16; width /= 2)
        if (channels - at >= width || (channels >= width && channels - at > width / 2)) return width;
    return 16;
}
static inline int64_t start_at(int64_t channels, int64_t at, int64_t width) { return channels - at < width && channels >= width ? channels - width : at; }

static inline __attribute__((always_inline)) void interleave(const vector x[4], vector quads[4])
{
    const vector low = low8(x[0], x[1]), high = high8(x[0], x[1]), low2 = low8(x[2], x[3]), high2 = high8(x[2], x[3]);
    quads[0] = low16(low, low2), quads[1] = high16(low, low2), quads[2] = low16(high, high2), quads[3] = high16(high, high2);
}

/* 32-bit constants of one block in the order of its sums: vector v holds of each 16 channels those from 4 v on. */
static void spread(const int32_t *from, int64_t step, int64_t left, int64_t width, int32_t *to)
{
    int32_t space[16] = {0};
    if (from && step && left < 16) from = memcpy(space, from, (size_t)left * 4);
    const int64_t quarters = sizeof(vector) / 16;
    for (int64_t v = 0; v < 4; v++)
        for (int64_t i = 0; i < quarters; i++, to += 4) {
            if (from && step) memcpy(to, from + i % (width / 16) * 16 + 4 * v, 16);
            else for (int j = 0; j < 4; j++) to[j] = from ? from[0] : 0;
        }
}

/* Where a tap stands among the quads: in its place, or by columns where the driver slides. */
static inline int64_t place_of(const plan *p, int64_t tap) { return p->slides ? tap % 3 * 4 + tap / 3 : tap; }

static void prepare_block(const plan *p, int64_t at, int64_t width, char *constants)
{
    const hwq_conv *c = p->conv;
    const int64_t taps = hwq_window_taps(&c->window), left = c->channels - at, count = p->slides ? SLIDING / 4 : p->shape.quads;
    const uint8_t za = (uint8_t)(c->a_zero_point + (c->a_type == HWQ_S8 ? 0x80 : 0));
    vector *const terms = (vector *)constants, *const scales = terms + 4, *weights = scales + 4;
    vector sums[4] = {zero(), zero(), zero(), zero()};
    for (int64_t i = 0; i < count; i++, weights += 4) {
        vector x[4];
        for (int64_t j = 0; j < 4; j++) {
            const int64_t row = j - i / 3, tap = p->slides ? row >= 0 && row < 3 ? row * 3 + i % 3 : -1 : 4 * i + j; /* the second line's a byte later */
            x[j] = tap >= 0 && tap < taps ? narrow(c->taps_s16 + tap * c->channels + at, width, left) : zero();
        }
        interleave(x, weights);
        for (int v = 0; v < 4; v++)
            if (!p->slides || i < 3) sums[v] = DOT(sums[v], all8(1), load(weights + v));
    }
    spread(c->bias ? c->bias + at : NULL, 1, left, width, (int32_t *)terms);
    for (int v = 0; v < 4; v++) store(terms + v, less(load(terms + v), sums[v], all32(za)));
    if (!p->fused) return;
    const int32_t step = c->epilogue->channel_step;
    spread((const int32_t *)c->epilogue->scales_f32 + (step ? at : 0), step, left, width, (int32_t *)scales); /* the bits of floats */
}

/* One vector of bytes, from rows[0], rows[step], ... */
static inline __attribute__((always_inline)) vector gather(const plan *p, const int groups, const uint8_t *const *rows, int64_t step, int64_t offset, int64_t left)
{
    return exclusive_or(p->flip, groups == 1 ? load(rows[0] + offset) : parts(groups, rows, step, offset, left));
}

/* R4 of two vectors of sums to int16; then of four such halves to bytes. */
static inline __attribute__((always_inline)) vector halve(const plan *p, const vector acc[2], const vector *scales)
{
    return adds16(pack32(scaled(acc[0], load(scales)), scaled(acc[1], load(scales + 1))), p->zero_point);
}
static inline __attribute__((always_inline)) vector quarter(const plan *p, const vector words[2])
{
    return exclusive_or(p->out_flip, clamp8(pack16(words[0], words[1]), p->lo, p->hi));
}

/* One block's sweep along x. rows: pixel 0 of the input lines, two a group and two more; outs: of the output lines, `lines` a group. */
typedef struct {
    const uint8_t *const *rows;
    uint8_t *const *outs;
    const char *constants;
    int64_t at, left, width, channels;
} sweep;

/* The quads of column x. */
static inline __attribute__((always_inline)) void take(const plan *p, const int groups, const int lines, const sweep *s, int64_t x, vector quads[4])
{
    if ((uint64_t)x < (uint64_t)s->width) {
        vector v[4];
#pragma GCC unroll 4
        for (int r = 0; r < 4; r++) v[r] = r < 2 + lines ? gather(p, groups, s->rows + r, 2, x * s->channels + s->at, s->left) : v[r - 1];
        interleave(v, quads);
    } else quads[0] = quads[1] = quads[2] = quads[3] = p->nothing;
}

/* The outputs of positions o and o + 1 (or of one), whose columns stand from `columns` on: each weight is loaded once for both. */
static inline __attribute__((always_inline)) void give(const plan *p, const int groups, const int stride, const sweep *s, int64_t o, int both, vector columns[5][4])
{
    const vector *const terms = (const vector *)s->constants, *const scales = terms + 4, *weights = scales + 4;
    const int lines = stride == 1 ? 2 : 1;
#pragma GCC unroll 2
    for (int line = 0; line < lines; line++, weights += 12) {
        vector words[2][2];
#pragma GCC unroll 2
        for (int half = 0; half < 2; half++) {
            vector acc[2][2];
#pragma GCC unroll 2
            for (int i = 0; i < 2; i++) {
                const int v = 2 * half + i;
                acc[0][i] = acc[1][i] = load(terms + v);
#pragma GCC unroll 3
                for (int tap = 0; tap < 3; tap++) {
                    const vector w = load(weights + 4 * tap + v);
                    acc[0][i] = DOT(acc[0][i], columns[tap][v], w);
                    acc[1][i] = DOT(acc[1][i], columns[tap + stride][v], w);
                }
            }
            words[0][half] = halve(p, acc[0], scales + 2 * half);
            words[1][half] = halve(p, acc[1], scales + 2 * half);
        }
        put(groups, quarter(p, words[0]), s->outs + line, lines, o * s->channels + s->at, s->left);
        if (both) put(groups, quarter(p, words[1]), s->outs + line, lines, (o + 1) * s->channels + s->at, s->left);
    }
}

static inline __attribute__((always_inline)) void slide(const plan *p, const int groups, const int stride, const sweep *s)
{
    const plan here = *p; /* the output cannot alias it */
    const int lines = stride == 1 ? 2 : 1, kept = 3 - stride; /* columns that the next two outputs have too */
    const int64_t count = p->conv->window.out[2];
    int64_t x = -p->conv->window.pad[2];
    vector columns[5][4];
#pragma GCC unroll 2
    for (int i = 0; i < kept; i++) take(&here, groups, lines, s, x + i, columns[i]);
    for (int64_t o = 0; o < count; o += 2, x += 2 * stride) {
#pragma GCC unroll 4
        for (int i = kept; i < 3 + stride; i++) take(&here, groups, lines, s, x + i, columns[i]);
        give(&here, groups, stride, s, o, o + 1 < count, columns);
#pragma GCC unroll 2
        for (int i = 0; i < kept; i++)
#pragma GCC unroll 4
            for (int v = 0; v < 4; v++) columns[i][v] = columns[i + 2 * stride][v];
    }
}

/* Output lines [top, bottom) of an image, all blocks. out: of position 0. */
static void slide_lines(const plan *p, const uint8_t *image, int64_t top, int64_t bottom, uint8_t *out)
{
    const hwq_conv *c = p->conv;
    const hwq_window *w = &c->window;
    const int64_t channels = c->channels, stride = w->stride[1];
    const char *constants = p->constants;
    for (int64_t at = 0, width; at < channels; at += width, constants += p->shape.block) {
        width = width_at(channels, at);
        const int64_t from = start_at(channels, at, width), groups = (int64_t)sizeof(vector) / width, lines = stride == 1 ? 2 * groups : groups;
        for (int64_t y = top; y < bottom; y += lines) {
            const uint8_t *rows[10];
            uint8_t *outs[8];
            for (int64_t r = 0; r < 2 * groups + 2; r++) {
                const int64_t line = y * stride - w->pad[1] + r;
                rows[r] = line >= 0 && line < w->in[1] ? image + line * w->in[2] * channels : p->padding;
            }
            for (int64_t i = 0; i < lines; i++) outs[i] = y + i < bottom ? out + (y + i) * w->out[2] * channels : p->unused;
            const sweep s = {rows, outs, constants, from, channels - from, w->in[2], channels};
#define RUN(groups) (stride == 1 ? slide(p, groups, 1, &s) : slide(p, groups, 2, &s))
            if (groups == 1) RUN(1);
            else if (groups == 2) RUN(2);
            else RUN(4);
#undef RUN
        }
    }
}

/* Outputs of `groups` positions of one block from their taps' pixels, `quads` * 4 a position. */
static inline __attribute__((always_inline)) void position(const plan *p, const int groups, const uint8_t *const *pixels, const char *constants, int64_t at,
                                                           uint8_t *const *outs, int32_t *acc_s32)
{
    const int64_t quads = p->shape.quads, left = p->conv->channels - at;
    const vector *const terms = (const vector *)constants, *const scales = terms + 4, *weights = scales + 4;
    vector acc[4];
    for (int v = 0; v < 4; v++) acc[v] = load(terms + v);
    for (int64_t i = 0; i < quads; i++, pixels += 4, weights += 4) {
        vector x[4], q[4];
        for (int j = 0; j < 4; j++) x[j] = gather(p, groups, pixels + j, 4 * quads, at, left);
        interleave(x, q);
        for (int v = 0; v < 4; v++) acc[v] = DOT(acc[v], q[v], load(weights + v));
    }
    if (p->fused) put(groups, quarter(p, (const vector[2]){halve(p, acc, scales), halve(p, acc + 2, scales + 2)}), outs, 1, at, left);
    else in_order(groups, acc, acc_s32 + at, p->shape.padded);
}

/* `count` outputs of one line, all channels. origin: of the first; out: of the first. */
static void positions(const plan *p, const uint8_t *image, int64_t origin[3], int64_t count, uint8_t *out)
{
    const hwq_conv *c = p->conv;
    const hwq_window *w = &c->window;
    const int64_t channels = c->channels, each = 4 * p->shape.quads, reach = (w->kernel[2] - 1) * w->dilation[2];
    int whole_rows = 1;
    for (int d = 0; d < 2; d++) whole_rows &= origin[d] >= 0 && origin[d] + (w->kernel[d] - 1) * w->dilation[d] < w->in[d];
    for (int64_t i = 0; i < count; i += AT_ONCE) {
        uint8_t *outs[AT_ONCE];
        for (int64_t j = 0; j < AT_ONCE; j++) {
            const uint8_t **pointers = p->pointers + j * each;
            outs[j] = i + j < count ? out + (i + j) * channels : p->unused;
            if (i + j >= count) {
                for (int64_t t = 0; t < each; t++) pointers[t] = p->padding;
            } else if (whole_rows && origin[2] >= 0 && origin[2] + reach < w->in[2]) {
                const uint8_t *base = image + ((origin[0] * w->in[1] + origin[1]) * w->in[2] + origin[2]) * channels;
                for (int64_t t = 0; t < each; t++) pointers[t] = base + p->offsets[t];
            } else {
                int64_t t = 0;
                for (int64_t t0 = 0; t0 < w->kernel[0]; t0++)
                    for (int64_t t1 = 0; t1 < w->kernel[1]; t1++)
                        for (int64_t t2 = 0; t2 < w->kernel[2]; t2++, t++) {
                            const int64_t pixel = hwq_window_pixel(w, origin, t0, t1, t2);
                            pointers[place_of(p, t)] = pixel < 0 ? p->padding : image + pixel * channels;
                        }
            }
            origin[2] += w->stride[2];
        }
        const char *constants = p->constants;
        for (int64_t at = 0, width; at < channels; at += width, constants += p->shape.block) {
            width = width_at(channels, at);
            const int64_t from = start_at(channels, at, width), groups = (int64_t)sizeof(vector) / width;
            for (int64_t j = 0; j < AT_ONCE && i + j < count; j += groups) {
                const uint8_t *const *pixels = p->pointers + j * each;
                int32_t *acc = p->acc + (i + j) * p->shape.padded;
                if (groups == 1) position(p, 1, pixels, constants, from, outs + j, acc);
                else if (groups == 2) position(p, 2, pixels, constants, from, outs + j, acc);
                else position(p, 4, pixels, constants, from, outs + j, acc);
            }
        }
    }
}

/* Positions [begin, end) of one image: whole lines slide, the rest goes by positions of one line. */
static void drive(const void *given, const uint8_t *image, int64_t number, int64_t begin, int64_t end)
{
    const plan *p = given;
    const hwq_conv *c = p->conv;
    const hwq_epilogue *epilogue = p->epilogue;
    const int64_t width = c->window.out[2], outputs = hwq_window_outputs(&c->window), most = hwq_depthwise_rows(c->channels);
    const int64_t size = hwq_type_size(epilogue->out_type);
    for (int64_t at = begin, count; at < end; at += count) {
        int64_t origin[3];
        char *out = c->layout == HWQ_NHWC ? (char *)c->out + (number * outputs + at) * c->channels * size : p->tile;
        count = width - at % width;
        if (p->slides && at % width == 0 && end - at >= width) {
            const int64_t y = at / width, bottom = end / width < y + BAND ? end / width : y + BAND;
            slide_lines(p, image, y, bottom, (uint8_t *)c->out + number * outputs * c->channels);
            count = (bottom - y) * width;
            continue;
        }
        if (count > end - at) count = end - at;
        if (count > most) count = most;
        hwq_window_origin(&c->window, at, origin);
        positions(p, image, origin, count, (uint8_t *)out);
        if (!p->fused) hwq_requantize(epilogue, count, c->channels, 0, p->acc, HWQ_S32, p->shape.padded, out, c->channels);
        if (c->layout == HWQ_NCHW)
            hwq_transpose(size, count, c->channels, out, c->channels, (char *)c->out + (number * c->channels * outputs + at) * size, outputs);
    }
}

static int scales_below_one(const hwq_epilogue *e, int64_t channels)
{
    int below = 1;
    for (int64_t i = 0; i < (e->channel_step ? channels : 1); i++) below &= e->scales_f32[i] > -1.0f && e->scales_f32[i] < 1.0f;
    return below;
}

static int taps_are_bytes(const hwq_conv *c)
{
    int bytes = 1;
    for (int64_t i = 0; i < hwq_window_taps(&c->window) * c->channels; i++) bytes &= c->taps_s16[i] == (int8_t)c->taps_s16[i];
    return bytes;
}

static void depthwise(const hwq_conv *c)
{
    const hwq_window *w = &c->window;
    const int64_t channels = c->channels, inputs = hwq_window_inputs(w);
    hwq_epilogue epilogue = *c->epilogue;
    epilogue.residual_op = NULL;
    plan p = {.conv = c, .epilogue = &epilogue, .shape = hwq_depthwise_measure_quads(c)};
    const int flip = c->a_type == HWQ_S8 ? 0x80 : 0, out_flip = epilogue.out_type == HWQ_U8 ? 0x80 : 0;
    p.fused = epilogue.kind == HWQ_KIND_REQUANT && epilogue.rounding == HWQ_ROUND_FP32 && epilogue.out_type <= HWQ_S8 && !epilogue.float_bias && !epilogue.lut &&
              scales_below_one(&epilogue, channels);
    p.slides = p.fused && c->layout == HWQ_NHWC && w->in[0] == 1 && w->out[0] == 1 && w->stride[1] == w->stride[2] && w->stride[1] <= 2;
    for (int d = 0; d < 3; d++) p.slides &= w->kernel[d] == (d ? 3 : 1) && w->dilation[d] == 1 && (d || w->pad[0] == 0);
    p.flip = all8(flip), p.out_flip = all8(out_flip), p.nothing = all8(c->a_zero_point + flip);
    p.zero_point = all16((short)(epilogue.zero_point - out_flip)), p.lo = all8(epilogue.lo - out_flip), p.hi = all8(epilogue.hi - out_flip);
    char *image_space = c->workspace, *at = image_space + (c->layout == HWQ_NCHW ? hwq_align(inputs * channels) : 0);
    p.constants = at, at += p.shape.constants;
    p.padding = (uint8_t *)at, at += p.shape.padding;
    p.unused = (uint8_t *)at, at += p.shape.unused;
    p.acc = (int32_t *)at, at += p.shape.acc;
    p.tile = at, at += p.shape.tile;
    p.pointers = (const uint8_t **)at, at += p.shape.pointers;
    p.offsets = (int64_t *)at;
    memset(p.padding, c->a_zero_point & 0xFF, (size_t)p.shape.padding);
    memset(p.offsets, 0, (size_t)p.shape.offsets); /* places without a tap have zero weights */
    int64_t tap = 0;
    for (int64_t t0 = 0; t0 < w->kernel[0]; t0++)
        for (int64_t t1 = 0; t1 < w->kernel[1]; t1++)
            for (int64_t t2 = 0; t2 < w->kernel[2]; t2++)
                p.offsets[place_of(&p, tap++)] = ((t0 * w->dilation[0] * w->in[1] + t1 * w->dilation[1]) * w->in[2] + t2 * w->dilation[2]) * channels;
    for (int64_t i = 0; i < 4 * p.shape.quads * AT_ONCE; i++) p.pointers[i] = p.padding;
    char *constants = p.constants;
    for (int64_t from = 0, width; from < channels; from += width, constants += p.shape.block) {
        width = width_at(channels, from);
        prepare_block(&p, start_at(channels, from, width), width, constants);
    }
    hwq_conv_images(c, drive, &p);
}

#endif
