/* Convolution straight from the image by Winograd's inner product: no gathered rows. Channel-last, weights without
 * zero points; 3 x 3 with stride 1 goes to winograd_4x4_avx2.c or winograd_avx2.c where they pay, what is else runs as blocks of GEMM.
 *
 * The packed order of k is (row of the kernel, tap, channel), so the elements of one row of the kernel, a *run*, lie together in the
 * weights and in the image. Block by block of output rows the image is widened to int16, less its zero point, padding 0: once, however
 * many taps read it. A tile is any three positions x 32 columns in 12 registers, or two where four vector pipes wait for two loads
 * (tile_avx2.h); the weights of 32 columns are widened for up to 240 positions.
 *
 *   acc = bias + sum (x0 + w1)(x1 + w0) + (x2 + w3)(x3 + w2) - sum (x0 x1 + x2 x3) - sum (w0 w1 + w2 w3)
 *
 * The second sum is one of pixels, the third came with the weights; a pixel's quads lie as (x0, x2, x1, x3). Where its channels are not whole quads, as in
 * most first layers, products are plain and quads in order: sums over positions would cost more than the additions save. What a run's last quad reads
 * beyond it meets weights 0.
 * Bounds: |x| <= 255, |w| <= 128: |x + w| <= 383 fits int16, a pair of products < 2^19; every sum is modulo 2^32, as ref's.
 * Measured on a Cascade Lake Xeon, one thread, gcc 12, R4 to bytes, another thread on the same core, in shares of the register-only loop timed
 * between the calls ("int8-avx2"; tile_avx2.h says why a shared core allows 86 at most): 70 percent at 3 x 3 stride 2, 56 x 56 x 64 -> 128;
 * 1 x 1: 71 (14 x 14 x 256 -> 1024), 67 (7 x 7 x 512 -> 2048), 55 (56 x 56 x 64 -> 64, whose k of 64 hardly repays a tile's way in and out).
 * On Zen 5, by two positions: 91; 93, 90, 75. By three: 74; 75, 71, 65. */
#include "conv.h"
#include "epilogue.h"
#include "isa.h"
#include "window.h"
#include "winograd.h"
#include "winograd_4x4.h"

enum { BLOCK = 240 /* positions */, DEPTH = 64 /* quads of k widened at once */, IMAGE = 1 << 16 /* elements */, SLACK = 64, PANEL = 3, COLUMNS = 2 * HWQ_STRIP };

/* A piece of a run, at most DEPTH quads: elements from a position's first; weights' first k and how many. */
typedef struct {
    int64_t offset, k, count;
} piece;

typedef struct {
    int16_t widened[DEPTH * HWQ_QUAD * COLUMNS];
    int32_t block[BLOCK * COLUMNS];
    int32_t products[BLOCK];
    int64_t starts[BLOCK];      /* elements */
} scratch;

/* Sizes in elements. `wide`: output positions in a row; pointwise ones are one dense line, cut into rows at will. */
typedef struct {
    int64_t wide, high, rows;        /* rows of output positions; how many of them in a block */
    int64_t runs, run, pieces;       /* runs per position, elements of each */
    int64_t columns, step, row_step; /* pixels of an image row; between neighboring positions; between output rows */
    int64_t image, pixels;           /* of a block's copy */
    int flat, plain;
} plan;

static int plan_of(const hwq_conv *c, plan *p)
{
    const hwq_window *w = &c->window;
    const int64_t depth = c->channels / c->groups, limit = c->channels > 0 ? IMAGE / c->channels / PANEL * PANEL : 0;
    const int whole = c->groups == 1 && w->dilation[2] == 1;
    if (c->layout != HWQ_NHWC || c->a_type == HWQ_F32 || c->depthwise || c->weights->zero_points || w->kernel[0] != 1 || w->in[0] != 1 ||
        w->out[0] != 1 || w->pad[0] || c->channels == 0 || w->kernel[1] * w->kernel[2] * depth == 0)
        return 0;
    p->flat = w->kernel[1] == 1 && w->kernel[2] == 1 && w->stride[1] == 1 && w->stride[2] == 1 && !w->pad[1] && !w->pad[2] &&
              w->in[1] == w->out[1] && w->in[2] == w->out[2];
    p->plain = c->groups > 1 || depth % HWQ_QUAD;
    p->runs = whole ? w->kernel[1] : w->kernel[1] * w->kernel[2];
    p->run = whole ? w->kernel[2] * depth : depth;
    p->pieces = p->runs * ((p->run + DEPTH * HWQ_QUAD - 1) / (DEPTH * HWQ_QUAD));
    p->wide = p->flat ? (limit < PANEL ? PANEL : limit > BLOCK ? BLOCK : limit) : w->out[2];
    p->high = p->flat ? (w->out[1] * w->out[2] + p->wide - 1) / p->wide : w->out[1];
    p->columns = p->flat ? p->wide : (w->out[2] - 1) * w->stride[2] + (w->kernel[2] - 1) * w->dilation[2] + 1;
    p->step = w->stride[2] * c->channels;
    p->row_step = p->columns * c->channels * w->stride[1];
    p->rows = p->flat || p->row_step > IMAGE ? 1 : IMAGE / p->row_step;
    if (p->rows > p->high) p->rows = p->high;
    p->pixels = ((p->rows - 1) * w->stride[1] + (w->kernel[1] - 1) * w->dilation[1] + 1) * p->columns;
    p->image = p->pixels * c->channels + SLACK;
    return 1;
}

static int64_t line(int64_t bytes) { return hwq_align(bytes); }

int64_t hwq_conv_inner_workspace(const hwq_conv *conv)
{
    plan p;
    if (!plan_of(conv, &p)) return 0;
    return line(sizeof(scratch)) + line(p.pieces * (int64_t)sizeof(piece)) + line(p.image * 2) + line(p.plain ? 0 : p.pixels * 4);
}

#if HWQ_X86
#include <immintrin.h>
#include <string.h>

HWQ_TARGET("avx2,fma")
#include "inner_avx2.h"
#include "tile_avx2.h"

static inline __m256i load(const void *p) { return _mm256_loadu_si256((const __m256i *)p); }
static inline void store(void *p, __m256i v) { _mm256_storeu_si256((__m256i *)p, v); }

/* ---- The image ---- */

/* n bytes to int16 less the zero point, in order or, of whole quads, as (x0, x2, x1, x3). */
static inline __attribute__((always_inline)) void widen_bytes(const int in_order, const uint8_t *from, int64_t n, uint8_t flip, int32_t zero_point, int16_t *to)
{
    const __m128i flips = _mm_set1_epi8((char)flip), order = _mm_setr_epi8(0, 2, 1, 3, 4, 6, 5, 7, 8, 10, 9, 11, 12, 14, 13, 15);
    const __m256i points = _mm256_set1_epi16((short)zero_point);
    int64_t i = 0;
    for (; i + 16 <= n; i += 16) {
        const __m128i bytes = _mm_xor_si128(_mm_loadu_si128((const __m128i *)(from + i)), flips);
        store(to + i, _mm256_sub_epi16(_mm256_cvtepu8_epi16(in_order ? bytes : _mm_shuffle_epi8(bytes, order)), points));
    }
    for (; i < n; i++) {
        const int64_t at = in_order || i % 4 == 0 || i % 4 == 3 ? i : i ^ 3;
        to[at] = (int16_t)((from[i] ^ flip) - zero_point);
    }
}

/* x0 x1 + x2 x3 of the quads of one pixel, in lanes. */
static inline __m256i pixel_products(const int16_t *x, int64_t channels)
{
    __m256i sum = _mm256_setzero_si256();
    int64_t at = 0;
    for (; at + 16 <= channels; at += 16) {
        const __m256i v = load(x + at);
        sum = _mm256_add_epi32(sum, _mm256_madd_epi16(v, _mm256_srli_epi64(v, 32)));
    }
    for (; at < channels; at += HWQ_QUAD) {
        const __m128i v = _mm_loadl_epi64((const __m128i *)(x + at));
        sum = _mm256_add_epi32(sum, _mm256_zextsi128_si256(_mm_madd_epi16(v, _mm_srli_epi64(v, 32))));
    }
    return sum;
}

static void all_products(const int16_t *x, int64_t pixels, int64_t channels, int32_t *products)
{
    int64_t i = 0;
    for (; i + 4 <= pixels; i += 4, x += 4 * channels) { /* the lanes of four pixels are added together */
        const __m256i first = _mm256_hadd_epi32(pixel_products(x, channels), pixel_products(x + channels, channels));
        const __m256i second = _mm256_hadd_epi32(pixel_products(x + 2 * channels, channels), pixel_products(x + 3 * channels, channels));
        const __m256i all = _mm256_hadd_epi32(first, second);
        _mm_storeu_si128((__m128i *)(products + i), _mm_add_epi32(_mm256_castsi256_si128(all), _mm256_extracti128_si256(all, 1)));
    }
    for (; i < pixels; i++, x += channels) products[i] = hwq_add_lanes_s32x8(pixel_products(x, channels));
}

static void widen(const plan *p, const uint8_t *from, int64_t n, uint8_t flip, int32_t zero_point, int16_t *to)
{
    if (p->plain) widen_bytes(1, from, n, flip, zero_point, to);
    else widen_bytes(0, from, n, flip, zero_point, to);
}

/* The pixels that output rows [top, bottom) read: padding 0, and what follows them. `last`: of the image's positions. */
static void copy_image(const hwq_conv *c, const plan *p, const uint8_t *image, int64_t top, int64_t bottom, int64_t last, int16_t *to, int32_t *products)
{
    const hwq_window *w = &c->window;
    const uint8_t flip = c->a_type == HWQ_S8 ? 0x80 : 0;
    const int32_t zero_point = c->a_zero_point + flip;
    const int64_t channels = c->channels, width = p->columns * channels;
    int64_t pixels = 0;
    if (p->flat) {
        pixels = last - top * p->wide < p->wide ? last - top * p->wide : p->wide;
        widen(p, image + top * p->wide * channels, pixels * channels, flip, zero_point, to);
    } else {
        const int64_t rows = (bottom - 1 - top) * w->stride[1] + (w->kernel[1] - 1) * w->dilation[1] + 1, row_bytes = w->in[2] * channels;
        const int64_t before = w->pad[2] * channels < width ? w->pad[2] * channels : width;
        const int64_t inside = width - before < row_bytes ? width - before : row_bytes;
        for (int64_t r = 0; r < rows; r++) {
            const int64_t y = top * w->stride[1] - w->pad[1] + r;
            int16_t *row = to + r * width;
            if (y < 0 || y >= w->in[1]) {
                memset(row, 0, (size_t)width * 2);
                continue;
            }
            memset(row, 0, (size_t)before * 2);
            widen(p, image + y * row_bytes, inside, flip, zero_point, row + before);
            memset(row + before + inside, 0, (size_t)(width - before - inside) * 2);
        }
        pixels = rows * p->columns;
    }
    memset(to + pixels * channels, 0, SLACK * 2);
    if (!p->plain) all_products(to, pixels, channels, products);
}

/* Where positions [first, first + count) begin in the copy whose first output row is `top`, and their x0 x1 + x2 x3. */
static void find_positions(const hwq_conv *c, const plan *p, int64_t first, int64_t count, int64_t top, const int32_t *pixels, scratch *s)
{
    const hwq_window *w = &c->window;
    const int64_t down = p->columns * w->stride[1], tap_down = w->dilation[1] * p->columns;
    int64_t x = first % p->wide, row = (first / p->wide - top) * down; /* pixels */
    if (p->flat) {
        for (int64_t i = 0; i < count; i++) s->starts[i] = (x + i) * c->channels;
        if (!p->plain) memcpy(s->products, pixels + x, (size_t)count * 4);
        return;
    }
    for (int64_t i = 0; i < count; i++) {
        const int64_t pixel = row + x * w->stride[2];
        s->starts[i] = pixel * c->channels;
        if (++x == p->wide) x = 0, row += down;
        if (p->plain) continue;
        uint32_t sum = 0;
        for (int64_t t1 = 0; t1 < w->kernel[1]; t1++)
            for (int64_t t2 = 0; t2 < w->kernel[2]; t2++) sum += (uint32_t)pixels[pixel + t1 * tap_down + t2 * w->dilation[2]];
        s->products[i] = (int32_t)sum;
    }
}

/* ---- The weights ---- */

/* `count` k from k on, of one strip, as tile_avx2.h wants them: of whole quads the pairs (w1, w3) first, (w0, w2) second. */
static void widen_quads(const int8_t *strip, int64_t k, int64_t count, int16_t *to)
{
    const int8_t *quad = strip + k * HWQ_STRIP;
    for (int64_t done = 0; done < count; done += HWQ_QUAD, quad += HWQ_QUAD * HWQ_STRIP, to += TILE_QUAD) {
        _mm_prefetch((const char *)(quad + DEPTH * HWQ_QUAD * HWQ_STRIP), _MM_HINT_T1); /* the next weights, while tiles run */
        for (int half = 0; half < 2; half++) {
            const __m256i bytes = load(quad + 32 * half);
            store(to + 16 * half, _mm256_srai_epi16(bytes, 8));
            store(to + TILE_QUAD / 2 + 16 * half, _mm256_srai_epi16(_mm256_slli_epi16(bytes, 8), 8));
        }
    }
}

/* In order: the pairs (w2, w3) first, (w0, w1) second; the last quad filled up with 0. */
static void widen_in_order(const int8_t *strip, int64_t k, int64_t count, int16_t *to)
{
    const __m256i front = _mm256_broadcastsi128_si256(_mm_setr_epi8(-1, 0, -1, 1, -1, 4, -1, 5, -1, 8, -1, 9, -1, 12, -1, 13));
    const __m256i back = _mm256_broadcastsi128_si256(_mm_setr_epi8(-1, 2, -1, 3, -1, 6, -1, 7, -1, 10, -1, 11, -1, 14, -1, 15));
    for (int64_t done = 0; done < count; done += HWQ_QUAD, to += TILE_QUAD) {
        int8_t space[HWQ_QUAD * HWQ_STRIP] = {0};
        const int8_t *quad = space;
        if ((k + done) % HWQ_QUAD == 0 && done + HWQ_QUAD <= count) quad = strip + (k + done) * HWQ_STRIP;
        else
            for (int64_t i = 0; i < HWQ_QUAD && done + i < count; i++) {
                const int64_t at = k + done + i;
                for (int64_t j = 0; j < HWQ_STRIP; j++) space[j * HWQ_QUAD + i] = strip[at / HWQ_QUAD * HWQ_STRIP * HWQ_QUAD + j * HWQ_QUAD + at % HWQ_QUAD];
            }
        for (int half = 0; half < 2; half++) {
            const __m256i bytes = load(quad + 32 * half);
            store(to + 16 * half, _mm256_srai_epi16(_mm256_shuffle_epi8(bytes, back), 8));
            store(to + TILE_QUAD / 2 + 16 * half, _mm256_srai_epi16(_mm256_shuffle_epi8(bytes, front), 8));
        }
    }
}

/* ---- Tiles ---- */

/* Pieces of k, and which part of the whole they are. */
typedef struct {
    const piece *pieces;
    int64_t count;
    int first, last;
    __m256i terms[TILE_VECTORS]; /* with the first: bias less the columns' products */
} part;

/* A quad of k: two positions share the loads of the weights (tile_avx2.h). */
static inline __attribute__((always_inline)) void tile_quad_of_k(const int rows, const int vectors, const int plain, const int16_t *const *x, int64_t at,
                                                                 const int16_t *u, __m256i acc_s32x8[TILE_ROWS][TILE_VECTORS])
{
    if (rows == 2 && vectors == TILE_VECTORS && !plain) tile_pair_of_rows(x[0] + at, x[1] + at, u, acc_s32x8);
    else
#pragma GCC unroll 3
        for (int r = 0; r < rows; r++) tile_row(vectors, plain, x[r] + at, u, acc_s32x8[r]);
}

static inline __attribute__((always_inline)) void tile(const int rows, const int vectors, const int plain, const part *g, const int16_t *image, const int64_t *starts,
                                                       const int32_t *products, const int16_t *u, const finish *f, int32_t *block, char *out)
{
    __m256i acc[TILE_ROWS][TILE_VECTORS];
#pragma GCC unroll 3
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < vectors; v++) {
            if (!g->first) acc[r][v] = load(block + r * TILE_COLUMNS + 8 * v);
            else acc[r][v] = plain ? g->terms[v] : _mm256_sub_epi32(g->terms[v], _mm256_set1_epi32(products[r]));
        }
    for (int64_t i = 0; i < g->count; i++) {
        const int16_t *x[TILE_ROWS];
#pragma GCC unroll 3
        for (int r = 0; r < rows; r++) x[r] = image + starts[r] + g->pieces[i].offset;
        const int64_t count = g->pieces[i].count;
        int64_t at = 0;
        for (; at + HWQ_QUAD < count; at += 2 * HWQ_QUAD, u += 2 * TILE_QUAD) { /* two whole quads, or one and a part */
            tile_quad_of_k(rows, vectors, plain, x, at, u, acc);
            tile_quad_of_k(rows, vectors, plain, x, at + HWQ_QUAD, u + TILE_QUAD, acc);
        }
        if (at < count) {
            tile_quad_of_k(rows, vectors, plain, x, at, u, acc);
            u += TILE_QUAD;
        }
    }
#pragma GCC unroll 3
    for (int r = 0; r < rows; r++) {
        if (g->last && f->fast) finish_row(vectors, f, acc[r], out + r * f->stride);
        else
            for (int v = 0; v < vectors; v++) store(block + r * TILE_COLUMNS + 8 * v, acc[r][v]);
    }
}

static inline __attribute__((always_inline)) void tiles(const int panel, const int vectors, const int plain, const part *given, int64_t positions, const int16_t *image, scratch *s,
                                                        const finish *given_finish, char *out)
{
    const finish here = *given_finish, *f = &here; /* the output cannot alias them */
    const part part_here = *given, *g = &part_here;
    const int16_t *u = s->widened;
    int64_t i = 0;
#define TILE(rows) tile(rows, vectors, plain, g, image, s->starts + i, s->products + i, u, f, s->block + i * TILE_COLUMNS, out + i * f->stride)
    for (; i + panel <= positions; i += panel) TILE(panel);
    if (positions - i == 2) TILE(2);
    else if (positions - i == 1) TILE(1);
}

/* One strip of a group, or two, at `positions` positions, whose starts and products are in the scratch. out: of the first, in the strip's column. */
static void strip(const hwq_conv *c, const plan *p, const piece *pieces, const hwq_epilogue *e, int64_t group, int64_t column, int64_t positions,
                  const int16_t *image, scratch *s, finish *f, char *out)
{
    const hwq_packed *packed = c->weights;
    const int64_t n = packed->n, channel = group * n + column, strip_bytes = HWQ_STRIP * ((packed->k + 3) / 4 * 4);
    const int8_t *weights = packed->quads + group * hwq_packed_bytes(packed->k, n) + column / HWQ_STRIP * strip_bytes;
    const int64_t width = n - column < TILE_COLUMNS ? n - column : TILE_COLUMNS, strips = (width + HWQ_STRIP - 1) / HWQ_STRIP;
    int32_t terms[TILE_COLUMNS] = {0};
    finish_columns(f, e, channel, width);
    for (int64_t i = 0; i < width; i++)
        terms[i] = (int32_t)((c->bias ? (uint32_t)c->bias[channel + i] : 0) - (p->plain ? 0 : (uint32_t)packed->column_products[channel + i]));
    for (int64_t i = 0; i < p->pieces;) {
        part g = {.pieces = pieces + i, .first = i == 0};
        for (int v = 0; v < TILE_VECTORS; v++) g.terms[v] = load(terms + 8 * v);
        int64_t quads = 0;
        for (; i < p->pieces && quads + (pieces[i].count + 3) / 4 <= DEPTH; i++, g.count++) {
            for (int64_t half = 0; half < strips; half++) {
                int16_t *to = s->widened + quads * TILE_QUAD + half * 2 * HWQ_STRIP;
                if (p->plain) widen_in_order(weights + half * strip_bytes, pieces[i].k, pieces[i].count, to);
                else widen_quads(weights + half * strip_bytes, pieces[i].k, pieces[i].count, to);
            }
            quads += (pieces[i].count + 3) / 4;
        }
        g.last = i == p->pieces;
        if (p->plain && strips == 2) tiles(PANEL, 4, 1, &g, positions, image, s, f, out);
        else if (p->plain) tiles(PANEL, 2, 1, &g, positions, image, s, f, out);
        else if (strips == 2 && hwq_vector_pipes() == 4) tiles(2, 4, 0, &g, positions, image, s, f, out);
        else if (strips == 2) tiles(PANEL, 4, 0, &g, positions, image, s, f, out);
        else tiles(PANEL, 2, 0, &g, positions, image, s, f, out);
    }
    if (!f->fast) hwq_requantize(e, positions, width, channel, s->block, HWQ_S32, TILE_COLUMNS, out, c->out_channels);
}

static void convolve(const hwq_conv *c, const plan *p)
{
    const hwq_window *w = &c->window;
    const int64_t outputs = hwq_window_outputs(w), inputs = hwq_window_inputs(w), n = c->weights->n, depth = c->channels / c->groups;
    scratch *s = c->workspace;
    piece *pieces = (piece *)((char *)s + line(sizeof(scratch)));
    int16_t *image = (int16_t *)((char *)pieces + line(p->pieces * (int64_t)sizeof(piece)));
    int32_t *pixels = (int32_t *)((char *)image + line(p->image * 2));
    int64_t count = 0;
    for (int64_t r = 0; r < p->runs; r++) {
        const int64_t taps = p->runs / w->kernel[1]; /* 1, or the kernel's taps in a row */
        const int64_t offset = (r / taps * w->dilation[1] * p->columns + r % taps * w->dilation[2]) * c->channels;
        for (int64_t at = 0; at < p->run; at += DEPTH * HWQ_QUAD) {
            const int64_t left = p->run - at;
            pieces[count++] = (piece){offset + at, r * p->run + at, left < DEPTH * HWQ_QUAD ? left : DEPTH * HWQ_QUAD};
        }
    }
    hwq_epilogue e = *c->epilogue;
    e.residual_op = NULL;
    finish f = finish_of(&e, c->out_channels);
    const int64_t size = hwq_type_size(e.out_type);
    for (int64_t at = c->first; at < c->last;) {
        const int64_t number = at / outputs, begin = at % outputs, end = c->last - at + begin < outputs ? c->last - at + begin : outputs;
        const uint8_t *from = (const uint8_t *)c->x + number * inputs * c->channels;
        char *out = (char *)c->out + number * outputs * c->out_channels * size;
        for (int64_t top = begin / p->wide; top * p->wide < end; top += p->rows) {
            const int64_t stop = (end + p->wide - 1) / p->wide, bottom = top + p->rows < stop ? top + p->rows : stop;
            const int64_t last = bottom * p->wide < end ? bottom * p->wide : end;
            copy_image(c, p, from, top, bottom, outputs, image, pixels);
            for (int64_t first = top * p->wide < begin ? begin : top * p->wide, positions; first < last; first += positions) {
                positions = last - first < BLOCK ? last - first : BLOCK;
                find_positions(c, p, first, positions, top, pixels, s);
                for (int64_t group = 0; group < c->groups; group++)
                    for (int64_t column = 0; column < n; column += TILE_COLUMNS)
                        strip(c, p, pieces, &e, group, column, positions, image + group * depth, s, &f,
                              out + (first * c->out_channels + group * n + column) * size);
            }
        }
        if (c->epilogue->residual_op) hwq_conv_residual(c, number, begin, end);
        at += end - begin;
    }
}

void hwq_conv_s32__avx2(const hwq_conv *c)
{
    hwq_winograd_plan tiles;
    plan p;
    if (hwq_winograd_4x4_pays(c, 0, &tiles)) hwq_conv_winograd_4x4__avx2(c, &tiles);
    else if (c->weights->winograd && hwq_winograd_fits(c)) hwq_conv_winograd__avx2(c);
    else if (plan_of(c, &p)) convolve(c, &p);
    else hwq_conv_s32__blocked(c);
}

/* Blocks of GEMM have vpdpbusd there, which the tiles above would do without. */
void hwq_conv_s32__avxvnni(const hwq_conv *c)
{
    hwq_winograd_plan tiles;
    if (hwq_winograd_4x4_pays(c, 0, &tiles)) hwq_conv_winograd_4x4__avx2(c, &tiles);
    else if (c->weights->winograd && hwq_winograd_fits(c)) hwq_conv_winograd__avx2(c);
    else hwq_conv_s32__blocked(c);
}

HWQ_TARGET_END
#endif
