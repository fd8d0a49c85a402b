/* Convolution straight from the image on vpdpbusd: no gathered rows. Channel-last, weights without zero points; what is
 * else runs as blocks of GEMM.
 *
 * The packed order of k is (row of the kernel, tap, channel), so the bytes of one row of the kernel lie together both in the
 * weights and in the image: a *run*. A tile (tile_avx512vnni.h) holds up to 14 output positions, of one line or of two short ones, x 32
 * channels. The image is copied, block by block of output rows, only where padding must be filled in, where s8 must be flipped to u8, or where
 * runs are no multiple of 4 bytes: then weights are copied too, runs padded with 0, so that what is read behind a run counts nothing.
 *
 *   sum (a - za) w = sum a*w - za * colsum(w)     (padding holds za)
 *
 * Bounds: one step adds at most 4 * 255 * 128 < 2^17 in size to an int32 lane; every sum is modulo 2^32, as ref's.
 * Measured on an AMD Zen 5 (EPYC, 4.17 GHz, where the register-only loop does 534), one thread, gcc 12, int8 in, R4 to bytes, called from C, GMAC/s:
 * 3 x 3: 520 (14 x 14 x 256), 500 (56 x 56 x 64), 450 (32 x 32 x 16, one strip); stride 2: 491 (56 x 56 x 64 -> 128); 1 x 1: 497 (7 x 7 x 512 -> 2048),
 * 486 (14 x 14 x 256 -> 1024), 385 (56 x 56 x 64, where a tile of 16 quads spends 224 cycles on dots and 70 on its way in and out; 405 of u8, which is not
 * copied). On a Cascade Lake Xeon, int8 through Python: 91 to 97 percent of that loop at the larger of these shapes, 56 at 56 x 56 x 64. */
#include "conv.h"
#include "epilogue.h"
#include "isa.h"
#include "window.h"
#include "winograd_4x4.h"

enum { FLAT = 56, BLOCK_BYTES = 1 << 17, SLACK = 64, OVERHANG = 34 /* positions that a tile may reach beyond its line */, CHUNK = 128 /* quads of k */, REST = 252 /* positions whose accumulators rest between chunks of k */ };

/* A convolution as runs. `wide`: output positions in a row; pointwise ones are one dense line, cut into rows at will. */
typedef struct {
    int64_t wide, high;             /* rows of output positions */
    int64_t runs, run, quads;       /* runs per position, bytes and quads of each */
    int64_t in_row, step, row_step; /* bytes: an input row; between neighboring positions; between output rows */
    int64_t rows, every;            /* output rows of a block; image rows from copied row to copied row */
    int64_t chunks, pieces;         /* chunks of k; pieces that they cut the runs into at most */
    int64_t image_bytes, weight_bytes, rest_bytes; /* workspace */
    int64_t tap;                    /* quads of a tap where three neighboring taps share what they read (strip_avx512vnni.h), else 0 */
    int flat, copied, repacked;
} plan;

static int plan_of(const hwq_conv *c, plan *p)
{
    const hwq_window *w = &c->window;
    const int64_t depth = c->channels / c->groups;
    const int whole = c->groups == 1 && w->dilation[2] == 1;
    if (c->layout != HWQ_NHWC || c->a_type == HWQ_F32 || c->depthwise || c->weights->zero_points || w->kernel[0] != 1 || w->in[0] != 1 ||
        w->out[0] != 1 || w->pad[0] || c->channels == 0)
        return 0;
    if (!whole && depth % HWQ_QUAD) return 0;
    const int padded = w->pad[1] || w->pad[2] || (w->out[1] - 1) * w->stride[1] + (w->kernel[1] - 1) * w->dilation[1] >= w->in[1] ||
                       (w->out[2] - 1) * w->stride[2] + (w->kernel[2] - 1) * w->dilation[2] >= w->in[2];
    p->runs = whole ? w->kernel[1] : w->kernel[1] * w->kernel[2];
    p->run = whole ? w->kernel[2] * depth : depth;
    p->quads = (p->run + HWQ_QUAD - 1) / HWQ_QUAD;
    p->repacked = p->run % HWQ_QUAD != 0;
    p->copied = padded || c->a_type == HWQ_S8 || p->repacked;
    p->flat = !padded && !p->repacked && w->kernel[1] == 1 && w->kernel[2] == 1 && w->stride[1] == 1 && w->stride[2] == 1 &&
              w->in[1] == w->out[1] && w->in[2] == w->out[2];
    p->wide = p->flat ? FLAT : w->out[2];
    p->high = p->flat ? (w->out[1] * w->out[2] + FLAT - 1) / FLAT : w->out[1];
    p->step = w->stride[2] * c->channels;
    const int64_t columns = p->copied ? (w->out[2] - 1) * w->stride[2] + (w->kernel[2] - 1) * w->dilation[2] + 1 : w->in[2];
    p->in_row = columns * c->channels;
    p->every = p->copied && w->kernel[1] == 1 ? w->stride[1] : 1;
    p->row_step = p->flat ? FLAT * c->channels : p->in_row * (w->stride[1] / p->every);
    p->rows = p->row_step && BLOCK_BYTES / p->row_step > 1 ? BLOCK_BYTES / p->row_step : 1;
    if (p->rows > p->high) p->rows = p->high;
    const int64_t in_rows = (p->rows - 1) * (w->stride[1] / p->every) + (w->kernel[1] - 1) * w->dilation[1] + 1;
    p->image_bytes = p->copied ? hwq_align((p->flat ? p->rows * p->row_step : in_rows * p->in_row) + SLACK + OVERHANG * p->step) : 0;
    p->tap = whole && w->kernel[2] == 3 && w->stride[2] == 1 && depth % HWQ_QUAD == 0 ? depth / HWQ_QUAD : 0;
    p->chunks = (p->runs * p->quads + CHUNK - 1) / CHUNK;
    p->pieces = p->runs + p->chunks;
    p->rest_bytes = (p->chunks > 1 ? REST : 14) * 2 * HWQ_STRIP * 4;
    p->weight_bytes = p->repacked ? (c->weights->n + HWQ_STRIP - 1) / HWQ_STRIP * p->runs * p->quads * HWQ_STRIP * HWQ_QUAD : 0;
    return 1;
}

int64_t hwq_conv_direct_workspace(const hwq_conv *conv)
{
    plan p;
    return plan_of(conv, &p) ? p.image_bytes + p.weight_bytes + p.rest_bytes + hwq_align(p.pieces * 16) : 0;
}

#if HWQ_X86
#include <immintrin.h>
#include <string.h>

HWQ_TARGET("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")

#define VECTOR __m512i
#define DOT_BY_INTRINSICS _mm512_dpbusd_epi32
#define DOT_PREFIX ""
#include "dot_vnni.h"
#include "tile_avx512vnni.h"
#include "strip_avx512vnni.h"

static inline __mmask64 bytes_of(int64_t n) { return n >= 64 ? ~(__mmask64)0 : ((__mmask64)1 << n) - 1; }

/* n bytes, their signs flipped where `flip` says so; n times one byte. */
static inline void copy_bytes(const uint8_t *from, int64_t n, __m512i flip, uint8_t *to)
{
    for (int64_t i = 0; i < n; i += 64)
        _mm512_mask_storeu_epi8(to + i, bytes_of(n - i), _mm512_xor_si512(_mm512_maskz_loadu_epi8(bytes_of(n - i), from + i), flip));
}
static inline void fill_bytes(__m512i byte, int64_t n, uint8_t *to)
{
    for (int64_t i = 0; i < n; i += 64) _mm512_mask_storeu_epi8(to + i, bytes_of(n - i), byte);
}

/* Output rows [top, bottom) need input rows [top * stride - pad, ...), or every stride-th one: padding filled, signs flipped. */
static void copy_image(const hwq_conv *c, const plan *p, const uint8_t *image, int64_t top, int64_t bottom, uint8_t fill, uint8_t *to)
{
    const hwq_window *w = &c->window;
    const int64_t rows = (bottom - 1 - top) * (w->stride[1] / p->every) + (w->kernel[1] - 1) * w->dilation[1] + 1, row_bytes = w->in[2] * c->channels;
    const int64_t before = w->pad[2] * c->channels < p->in_row ? w->pad[2] * c->channels : p->in_row;
    const int64_t inside = p->in_row - before < row_bytes ? p->in_row - before : row_bytes;
    const __m512i flip = _mm512_set1_epi8(c->a_type == HWQ_S8 ? (char)0x80 : 0), padding = _mm512_set1_epi8((char)fill);
    if (p->flat) {
        const int64_t positions = w->out[1] * w->out[2], last = bottom * p->wide < positions ? bottom * p->wide : positions;
        copy_bytes(image + top * p->wide * c->channels, (last - top * p->wide) * c->channels, flip, to);
        return;
    }
    for (int64_t r = 0; r < rows; r++, to += p->in_row) {
        const int64_t y = top * w->stride[1] - w->pad[1] + r * p->every;
        if (y < 0 || y >= w->in[1]) {
            fill_bytes(padding, p->in_row, to);
            continue;
        }
        fill_bytes(padding, before, to);
        copy_bytes(image + y * row_bytes, inside, flip, to + before);
        fill_bytes(padding, p->in_row - before - inside, to + before + inside);
    }
}

/* Weights of one group (there is one) with every run padded to whole quads. */
static void copy_weights(const hwq_packed *w, const plan *p, int8_t *to)
{
    const int64_t strips = (w->n + HWQ_STRIP - 1) / HWQ_STRIP, strip_bytes = (w->k + 3) / 4 * HWQ_STRIP * HWQ_QUAD;
    for (int64_t s = 0; s < strips; s++)
        for (int64_t r = 0; r < p->runs; r++)
            for (int64_t i = 0; i < p->run; i += HWQ_QUAD, to += HWQ_STRIP * HWQ_QUAD)
                _mm512_storeu_si512(to, quads_from(w->quads + s * strip_bytes, r * p->run + i, p->run - i));
}

/* The runs cut where chunks of k end; returns how many pieces. */
static int64_t cut(const hwq_conv *c, const plan *p, piece *pieces)
{
    const hwq_window *w = &c->window;
    const int64_t most = (p->runs * p->quads + p->chunks - 1) / p->chunks, columns = p->runs / w->kernel[1]; /* 1, or the kernel's taps in a row */
    int64_t count = 0, room = most;
    for (int64_t r = 0; r < p->runs; r++) {
        const int64_t run = r / columns * w->dilation[1] * p->in_row + r % columns * w->dilation[2] * c->channels;
        for (int64_t at = 0, quads; at < p->quads; at += quads) {
            quads = p->quads - at < room ? p->quads - at : room;
            pieces[count++] = (piece){run + at * HWQ_QUAD, quads};
            room = room == quads ? most : room - quads;
        }
    }
    return count;
}

/* Output positions [left, right) of lines [top, bottom), by one chunk of k, `next` bytes before the next one. image, out: of line `top`, position 0. */
static void lines(const hwq_conv *c, const plan *p, const part *given, int64_t next, const uint8_t *image, int64_t top, int64_t bottom, int64_t left, int64_t right,
                  int32_t *rest, const finish *f, char *out)
{
    const int64_t count = right - left, pixel = c->out_channels * hwq_type_size(f->epilogue->out_type);
    const int64_t tiles = (count + TILE_MOST - 1) / TILE_MOST, each = (count + tiles - 1) / tiles, held = p->chunks > 1 ? given->vectors * HWQ_STRIP : 0;
    const int64_t all = count <= TILE_HALF ? (bottom - top + 1) / 2 : (bottom - top) * tiles;
    int64_t tile = 0;
    part here = *given, *g = &here;
    reach(&here, 0, all, next);
    for (int64_t y = top; y < bottom; y++, image += p->row_step, out += p->wide * pixel) {
        const uint8_t *from = image + left * p->step;
        char *to = out + left * pixel;
        if (count <= TILE_HALF && y + 1 < bottom) { /* two short lines */
            some_positions(count, count, g, (const uint8_t *const[]){from, from + p->row_step}, rest, f, (char *const[]){to, to + p->wide * pixel});
            rest += 2 * count * held;
            reach(&here, ++tile, all, next);
            y++, image += p->row_step, out += p->wide * pixel;
            continue;
        }
        for (int64_t x = 0, n; x < count; x += n) {
            n = count - x < each ? count - x : each;
            const int64_t half = (n + 1) / 2;
            const uint8_t *a = from + x * p->step;
            char *o = to + x * pixel;
            some_positions(half, n - half, g, (const uint8_t *const[]){a, a + half * p->step}, rest, f, (char *const[]){o, o + half * pixel});
            rest += n * held;
            reach(&here, ++tile, all, next);
        }
    }
}

/* 32 columns or fewer of a group on lines [top, bottom), of which only positions [begin, end) of the whole are wanted. image: of line `image_top`;
 * out: of position 0. */
static void block(const hwq_conv *c, const plan *p, const uint8_t *image, int64_t image_top, const piece *pieces, int64_t count, const int8_t *weights, int64_t strip_bytes,
                  int64_t channel, int64_t width, uint32_t za, finish *f, int64_t top, int64_t bottom, int64_t begin, int64_t end, int32_t *rest, char *out)
{
    int32_t terms[TILE_COLUMNS] = {0};
    for (int64_t j = 0; j < width; j++)
        terms[j] = (int32_t)((c->bias ? (uint32_t)c->bias[channel + j] : 0) - za * (uint32_t)c->weights->column_sums[channel + j]);
    finish_columns(f, f->epilogue, channel, width);
    const int64_t pixel = c->out_channels * hwq_type_size(f->epilogue->out_type);
    part g = {.strip_bytes = strip_bytes, .terms = terms, .step = p->step, .vectors = width > HWQ_STRIP ? 2 : 1};
    if (g.vectors == 1 && p->chunks == 1 && p->copied) {
        const strip s = {pieces, count, weights, terms, p->step, p->tap};
        for (int64_t y = top; y < bottom; y++) {
            const int64_t left = y * p->wide < begin ? begin - y * p->wide : 0, right = end - y * p->wide < p->wide ? end - y * p->wide : p->wide;
            strip_line(&s, image + (y - image_top) * p->row_step + left * p->step, right - left, rest, f, out + (y * p->wide + left) * pixel, pixel);
        }
        return;
    }
    const int64_t quads = (p->runs * p->quads + p->chunks - 1) / p->chunks, whole = p->chunks > 1 ? REST / p->wide : bottom - top;
    for (int64_t y = top, next; y < bottom; y = next) {
        /* Whole lines, as many as may rest; or a part of one. */
        const int64_t left = y * p->wide < begin ? begin - y * p->wide : 0, most = end - y * p->wide < p->wide ? end - y * p->wide : p->wide;
        next = y + 1;
        if (left == 0 && most == p->wide)
            while (next < bottom && next - y < whole && (next + 1) * p->wide <= end) next++;
        for (int64_t x = left, right; x < most; x = right) {
            right = p->chunks > 1 && most - x > REST ? x + REST : most;
            g.pieces = pieces, g.weights = weights;
            for (int64_t done = 0; done < count; g.pieces += g.count, done += g.count) {
                int64_t taken = 0;
                for (g.count = 0; done + g.count < count && taken < quads; g.count++) taken += g.pieces[g.count].quads;
                g.first = done == 0, g.last = done + g.count == count;
                lines(c, p, &g, g.last ? 2 * strip_bytes - (g.weights - weights) : taken * HWQ_STRIP * HWQ_QUAD, image + (y - image_top) * p->row_step, y, next, x, right, rest,
                      f, out + y * p->wide * pixel);
                g.weights += taken * HWQ_STRIP * HWQ_QUAD;
            }
        }
    }
}

static void convolve(const hwq_conv *c, const plan *p)
{
    const hwq_window *w = &c->window;
    const hwq_packed *packed = c->weights;
    const int64_t outputs = hwq_window_outputs(w), inputs = hwq_window_inputs(w), n = packed->n, depth = c->channels / c->groups;
    const uint8_t flip = c->a_type == HWQ_S8 ? 0x80 : 0, za = (uint8_t)(c->a_zero_point + flip);
    uint8_t *copy = c->workspace;
    int8_t *repacked = (int8_t *)copy + p->image_bytes;
    int32_t *rest = (int32_t *)(repacked + p->weight_bytes);
    piece *pieces = (piece *)((char *)rest + p->rest_bytes);
    const int64_t count = cut(c, p, pieces);
    if (p->repacked) copy_weights(packed, p, repacked);
    const int64_t strip_bytes = p->runs * p->quads * HWQ_STRIP * HWQ_QUAD;
    hwq_epilogue e = *c->epilogue;
    e.lut = NULL, e.residual_op = NULL;
    finish f = finish_of(&e, c->out_channels);
    const int64_t size = hwq_type_size(e.out_type);
    for (int64_t at = c->first; at < c->last;) {
        const int64_t number = at / outputs, begin = at % outputs, end = c->last - at + begin < outputs ? c->last - at + begin : outputs;
        const uint8_t *image = (const uint8_t *)c->x + number * inputs * c->channels;
        char *out = (char *)c->out + number * outputs * c->out_channels * size;
        for (int64_t top = begin / p->wide; top * p->wide < end; top += p->rows) {
            const int64_t stop = (end + p->wide - 1) / p->wide, bottom = top + p->rows < stop ? top + p->rows : stop;
            if (p->copied) copy_image(c, p, image, top, bottom, za, copy);
            for (int64_t group = 0; group < c->groups; group++) {
                const uint8_t *from = (p->copied ? copy : image) + group * depth;
                const int8_t *weights = p->repacked ? repacked : packed->quads + group * hwq_packed_bytes(packed->k, n);
                for (int64_t column = 0; column < n; column += TILE_COLUMNS)
                    block(c, p, from, p->copied ? top : 0, pieces, count, weights + column / HWQ_STRIP * strip_bytes, strip_bytes, group * n + column,
                          n - column < TILE_COLUMNS ? n - column : TILE_COLUMNS, za, &f, top, bottom, begin, end, rest, out + (group * n + column) * size);
            }
        }
        if (c->epilogue->lut) {
            uint8_t *line = (uint8_t *)out + begin * c->out_channels;
            hwq_lut((end - begin) * c->out_channels, line, e.out_type == HWQ_S8 ? 0x80 : 0, c->epilogue->lut, line);
        }
        if (c->epilogue->residual_op) hwq_conv_residual(c, number, begin, end);
        at += end - begin;
    }
}

void hwq_conv_s32__avx512vnni(const hwq_conv *conv)
{
    hwq_winograd_plan tiles;
    plan p;
    if (hwq_winograd_4x4_pays(conv, 1, &tiles)) hwq_conv_winograd_4x4__avx512vnni(conv, &tiles);
    else if (plan_of(conv, &p)) convolve(conv, &p);
    else if (conv->weights->zero_points) hwq_conv_s32__blocked(conv);
    else hwq_conv_s32__avx2(conv);
}

HWQ_TARGET_END
#endif
