/* Exact integer Winograd F(2x2, 3x3) convolution, 3 x 3 stride 1 (the scheme and its bounds: winograd.h).
 *
 * For up to 32 tiles: V = B^T d B for every position and channel, then strip by strip of 16 columns the 16 products M = V U,
 * then 4 Y = A^T M A. The products run by Winograd's inner product once more: for four channels x and weights y
 *     (x0 + y2)(x2 + y0) + (x1 + y3)(x3 + y1) = sum x y + (x0 x2 + x1 x3) + (y0 y2 + y1 y3)
 * so that 16 MACs take one 32-bit lane of vpmaddwd. |x + y| <= 1020 + 2295 fits int16, a pair of products < 2^25 fits int32. The
 * other sums are linear in the products, so they pass A^T . A too: per tile here, per column at packing (terms).
 * Measured on a Cascade Lake Xeon, one thread, gcc 12, R4 to bytes, in MACs of the direct form: 73 (56 x 56 x 64), 81 (14 x 14 x 256,
 * 28 x 28 x 128) and 66 GMAC/s (7 x 7 x 512, whose 16 tiles hold 64 outputs for 49). The register-only loop of the products ran at
 * 43.5 in the same minute, 98 in MACs of the direct form: 75, 83 and, the lost outputs apart, 88 percent of it. */
#include "winograd.h"

#include "epilogue.h"
#include "isa.h"
#include "window.h"

#if HWQ_X86
#include <immintrin.h>
#include <string.h>

HWQ_TARGET("avx2,fma")
#include "inner_avx2.h"

enum { POSITIONS = HWQ_WINOGRAD_POSITIONS, OUTPUTS = HWQ_WINOGRAD_OUTPUTS, ROWS = 4 };

typedef struct {
    const hwq_conv *conv;
    const hwq_epilogue *epilogue; /* the residual comes later */
    int64_t depth, padded, tiles, tile_columns, v_step, m_step;
    int16_t *v;          /* [position][tile][channel] */
    int32_t *row_terms;  /* [tile][output] */
    int32_t *m;          /* [position][tile][column of the strip] */
    int32_t *acc;        /* [line of the tile][2 * tile + column of the tile][column of the strip] */
    uint8_t *padding;    /* one pixel of zero points */
} plan;

/* ---- V ---- */

static inline __m256i load16(const uint8_t *x, int is_unsigned)
{
    const __m128i bytes = _mm_loadu_si128((const __m128i *)x);
    return is_unsigned ? _mm256_cvtepu8_epi16(bytes) : _mm256_cvtepi8_epi16(bytes);
}

/* 16 channels of one tile. Only position (1, 1) adds up its four inputs; elsewhere the zero point cancels. The terms hold
 * x0 x2 + x1 x3 of every four channels, already through A^T . A, modulo 2^32. */
static inline __attribute__((always_inline)) void transform16(const uint8_t *const pixels[16], int64_t at, const int is_unsigned, __m256i four_zero_points,
                                                              int16_t *to, int64_t step, __m256i terms[OUTPUTS])
{
    __m256i rows[4][4];
    for (int j = 0; j < 4; j++) {
        const __m256i d0 = load16(pixels[j] + at, is_unsigned), d1 = load16(pixels[4 + j] + at, is_unsigned);
        const __m256i d2 = load16(pixels[8 + j] + at, is_unsigned), d3 = load16(pixels[12 + j] + at, is_unsigned);
        rows[0][j] = _mm256_sub_epi16(d0, d2);
        rows[1][j] = _mm256_add_epi16(d1, d2);
        rows[2][j] = _mm256_sub_epi16(d2, d1);
        rows[3][j] = _mm256_sub_epi16(d1, d3);
    }
    for (int i = 0; i < 4; i++) {
        __m256i v[4], product[4];
        v[0] = _mm256_sub_epi16(rows[i][0], rows[i][2]);
        v[1] = _mm256_add_epi16(rows[i][1], rows[i][2]);
        v[2] = _mm256_sub_epi16(rows[i][2], rows[i][1]);
        v[3] = _mm256_sub_epi16(rows[i][1], rows[i][3]);
        if (i == 1) v[1] = _mm256_sub_epi16(v[1], four_zero_points);
        for (int j = 0; j < 4; j++) {
            _mm256_storeu_si256((__m256i *)(to + (4 * i + j) * step), v[j]);
            product[j] = _mm256_madd_epi16(v[j], _mm256_srli_epi64(v[j], 32));
        }
        const __m256i left = _mm256_add_epi32(_mm256_add_epi32(product[0], product[1]), product[2]);
        const __m256i right = _mm256_sub_epi32(_mm256_sub_epi32(product[1], product[2]), product[3]);
        if (i < 3) terms[0] = _mm256_add_epi32(terms[0], left), terms[1] = _mm256_add_epi32(terms[1], right);
        if (i == 1) terms[2] = _mm256_add_epi32(terms[2], left), terms[3] = _mm256_add_epi32(terms[3], right);
        if (i > 1) terms[2] = _mm256_sub_epi32(terms[2], left), terms[3] = _mm256_sub_epi32(terms[3], right);
    }
}

static inline __attribute__((always_inline)) void transform(const plan *p, const uint8_t *image, int64_t first, int64_t count, const int is_unsigned)
{
    const hwq_conv *c = p->conv;
    const hwq_window *w = &c->window;
    const __m256i four_zero_points = _mm256_set1_epi16((short)(4 * c->a_zero_point));
    for (int64_t tile = 0; tile < count; tile++) {
        const int64_t top = (first + tile) / p->tile_columns * 2 - w->pad[1], left = (first + tile) % p->tile_columns * 2 - w->pad[2];
        const uint8_t *pixels[16];
        for (int64_t i = 0; i < 4; i++)
            for (int64_t j = 0; j < 4; j++) {
                const int64_t y = top + i, x = left + j;
                const int inside = y >= 0 && y < w->in[1] && x >= 0 && x < w->in[2];
                pixels[4 * i + j] = inside ? image + (y * w->in[2] + x) * c->channels : p->padding;
            }
        __m256i terms[OUTPUTS];
        for (int i = 0; i < OUTPUTS; i++) terms[i] = _mm256_setzero_si256();
        int16_t *to = p->v + tile * p->padded;
        int64_t at = 0;
        for (; at + 16 <= p->depth; at += 16) transform16(pixels, at, is_unsigned, four_zero_points, to + at, p->v_step, terms);
        if (at < p->depth) { /* what stands beyond the last channel meets zero weights, and its products are in the terms */
            uint8_t tail[16][16] = {{0}};
            for (int i = 0; i < 16; i++) {
                memcpy(tail[i], pixels[i] + at, (size_t)(p->depth - at));
                pixels[i] = tail[i];
            }
            transform16(pixels, 0, is_unsigned, four_zero_points, to + at, p->v_step, terms);
        }
        for (int i = 0; i < OUTPUTS; i++) p->row_terms[tile * OUTPUTS + i] = hwq_add_lanes_s32x8(terms[i]);
    }
}

/* ---- M ---- */

#define MULTIPLY_QUAD(at)                                                                                                     \
    do {                                                                                                                      \
        const __m256i y0 = _mm256_loadu_si256((const __m256i *)(u + 16 * (at))), y1 = _mm256_loadu_si256((const __m256i *)(u + 16 * (at) + 16)); \
        const __m256i y2 = _mm256_loadu_si256((const __m256i *)(u + 16 * (at) + 32)), y3 = _mm256_loadu_si256((const __m256i *)(u + 16 * (at) + 48)); \
        MULTIPLY_ROW(x0, at, acc0);                                                                                           \
        MULTIPLY_ROW(x1, at, acc1);                                                                                           \
        MULTIPLY_ROW(x2, at, acc2);                                                                                           \
        MULTIPLY_ROW(x3, at, acc3);                                                                                           \
    } while (0)

/* Four tiles x 16 columns of one position. Meanwhile `lines` cache lines of the next position's weights come nearer for every 16
 * channels: great weights stand in the third-level cache, from where a tile of 16 or 32 rows cannot hide the way. */
static inline void multiply(const int16_t *x, int64_t padded, const int16_t *u, const int16_t *next, int64_t lines, int32_t *m)
{
    const int16_t *x0 = x, *x1 = x + padded, *x2 = x + 2 * padded, *x3 = x + 3 * padded;
    __m256i acc0[2], acc1[2], acc2[2], acc3[2];
    for (int i = 0; i < 2; i++) acc0[i] = acc1[i] = acc2[i] = acc3[i] = _mm256_setzero_si256();
    for (int64_t at = 0; at < padded; at += 16, u += 16 * HWQ_STRIP, x0 += 16, x1 += 16, x2 += 16, x3 += 16) {
        for (int64_t line = 0; line < lines; line++, next += 32) _mm_prefetch((const char *)next, _MM_HINT_T1);
        MULTIPLY_QUAD(0);
        MULTIPLY_QUAD(4);
        MULTIPLY_QUAD(8);
        MULTIPLY_QUAD(12);
    }
    for (int i = 0; i < 2; i++) {
        _mm256_storeu_si256((__m256i *)(m + 8 * i), acc0[i]);
        _mm256_storeu_si256((__m256i *)(m + HWQ_STRIP + 8 * i), acc1[i]);
        _mm256_storeu_si256((__m256i *)(m + 2 * HWQ_STRIP + 8 * i), acc2[i]);
        _mm256_storeu_si256((__m256i *)(m + 3 * HWQ_STRIP + 8 * i), acc3[i]);
    }
}

/* ---- Y ---- */

static inline __m256i quarter(__m256i y4, __m256i column_term, int32_t row_term, __m256i bias)
{
    const __m256i clean = _mm256_sub_epi32(_mm256_sub_epi32(y4, column_term), _mm256_set1_epi32(row_term));
    return _mm256_add_epi32(_mm256_srai_epi32(clean, 2), bias);
}

/* Eight columns of `count` tiles: A^T M A, less the terms, a quarter, plus bias. */
static void gather8(const plan *p, int64_t count, const int32_t *m, const int32_t *column_terms, __m256i bias, int32_t *acc)
{
    const int64_t step = p->m_step, line = 2 * p->tiles * HWQ_STRIP;
    __m256i terms[OUTPUTS];
    for (int i = 0; i < OUTPUTS; i++) terms[i] = _mm256_loadu_si256((const __m256i *)(column_terms + i * HWQ_STRIP));
    for (int64_t tile = 0; tile < count; tile++, m += HWQ_STRIP, acc += 2 * HWQ_STRIP) {
        __m256i up[4], down[4];
        for (int j = 0; j < 4; j++) {
            const __m256i m0 = _mm256_loadu_si256((const __m256i *)(m + j * step)), m1 = _mm256_loadu_si256((const __m256i *)(m + (4 + j) * step));
            const __m256i m2 = _mm256_loadu_si256((const __m256i *)(m + (8 + j) * step)), m3 = _mm256_loadu_si256((const __m256i *)(m + (12 + j) * step));
            up[j] = _mm256_add_epi32(_mm256_add_epi32(m0, m1), m2);
            down[j] = _mm256_sub_epi32(_mm256_sub_epi32(m1, m2), m3);
        }
        const int32_t *r = p->row_terms + tile * OUTPUTS;
        const __m256i y0 = _mm256_add_epi32(_mm256_add_epi32(up[0], up[1]), up[2]), y1 = _mm256_sub_epi32(_mm256_sub_epi32(up[1], up[2]), up[3]);
        const __m256i y2 = _mm256_add_epi32(_mm256_add_epi32(down[0], down[1]), down[2]);
        const __m256i y3 = _mm256_sub_epi32(_mm256_sub_epi32(down[1], down[2]), down[3]);
        _mm256_storeu_si256((__m256i *)acc, quarter(y0, terms[0], r[0], bias));
        _mm256_storeu_si256((__m256i *)(acc + HWQ_STRIP), quarter(y1, terms[1], r[1], bias));
        _mm256_storeu_si256((__m256i *)(acc + line), quarter(y2, terms[2], r[2], bias));
        _mm256_storeu_si256((__m256i *)(acc + line + HWQ_STRIP), quarter(y3, terms[3], r[3], bias));
    }
}

/* The finished pixels of tiles [first, first + count) that lie in positions [begin, end) of the image, run by run. */
static void put(const plan *p, int64_t number, int64_t group, int64_t column, int64_t first, int64_t count,
                int64_t begin, int64_t end)
{
    const hwq_conv *c = p->conv;
    const hwq_epilogue *epilogue = p->epilogue;
    const int64_t width = c->window.out[2], outputs = hwq_window_outputs(&c->window), n = c->out_channels / c->groups;
    const int64_t columns = n - column < HWQ_STRIP ? n - column : HWQ_STRIP, channel = group * n + column, size = hwq_type_size(epilogue->out_type);
    for (int64_t tile = first; tile < first + count;) {
        const int64_t row = tile / p->tile_columns, left = tile % p->tile_columns;
        const int64_t rest = first + count - tile, run = rest < p->tile_columns - left ? rest : p->tile_columns - left;
        for (int64_t i = 0; i < 2; i++) {
            const int64_t y = 2 * row + i, from = y * width + 2 * left, to = 2 * (left + run) < width ? from + 2 * run : (y + 1) * width;
            const int64_t head = from < begin ? begin : from, tail = to < end ? to : end;
            if (y >= c->window.out[1] || head >= tail) continue;
            const int32_t *acc = p->acc + (i * 2 * p->tiles + 2 * (tile - first) + head - from) * HWQ_STRIP;
            char *out = (char *)c->out + ((number * outputs + head) * c->out_channels + channel) * size;
            hwq_requantize(epilogue, tail - head, columns, channel, acc, HWQ_S32, HWQ_STRIP, out, c->out_channels);
        }
        tile += run;
    }
}

static void convolve_group(const plan *p, const uint8_t *image, int64_t number, int64_t group, int64_t begin, int64_t end)
{
    const hwq_conv *c = p->conv;
    const int64_t width = c->window.out[2], n = c->out_channels / c->groups, strips = (n + HWQ_STRIP - 1) / HWQ_STRIP;
    const int64_t from = begin / width / 2 * p->tile_columns, to = ((end - 1) / width / 2 + 1) * p->tile_columns;
    const int64_t blocks = (to - from + p->tiles - 1) / p->tiles, block = ((to - from + blocks - 1) / blocks + ROWS - 1) / ROWS * ROWS;
    const int16_t *words = c->weights->winograd + group * hwq_winograd_words(p->depth, n);
    const int32_t *terms = c->weights->winograd_terms + group * hwq_winograd_terms(n);
    for (int64_t first = from; first < to; first += block) {
        const int64_t count = to - first < block ? to - first : block;
        if (c->a_type == HWQ_U8) transform(p, image, first, count, 1);
        else transform(p, image, first, count, 0);
        const int64_t panels = (count + ROWS - 1) / ROWS, lines = (8 + panels - 1) / panels; /* 8 lines hold 16 channels of a strip */
        for (int64_t strip = 0; strip < strips; strip++) {
            const int16_t *u = words + strip * HWQ_STRIP * POSITIONS * p->padded;
            for (int64_t at = 0; at < POSITIONS; at++)
                for (int64_t tile = 0; tile < count; tile += ROWS) /* the last rows may hold older tiles: their M is not read */
                    multiply(p->v + at * p->v_step + tile * p->padded, p->padded, u + at * p->padded * HWQ_STRIP,
                             u + (at + 1) * p->padded * HWQ_STRIP + tile / ROWS * lines * 32 * (p->padded / 16), lines, p->m + at * p->m_step + tile * HWQ_STRIP);
            for (int64_t half = 0; half < HWQ_STRIP; half += 8) {
                int32_t bias[8] = {0};
                for (int64_t i = 0; c->bias && i < 8 && strip * HWQ_STRIP + half + i < n; i++) bias[i] = c->bias[group * n + strip * HWQ_STRIP + half + i];
                gather8(p, count, p->m + half, terms + strip * OUTPUTS * HWQ_STRIP + half, _mm256_loadu_si256((const __m256i *)bias), p->acc + half);
            }
            put(p, number, group, strip * HWQ_STRIP, first, count, begin, end);
        }
    }
}

static void drive(const void *given, const uint8_t *image, int64_t number, int64_t begin, int64_t end)
{
    const plan *p = given;
    for (int64_t group = 0; group < p->conv->groups; group++) convolve_group(p, image + group * p->depth, number, group, begin, end);
}

static void convolve(const hwq_conv *c)
{
    const int64_t depth = c->channels / c->groups, tiles = hwq_winograd_tiles(depth);
    hwq_epilogue epilogue = *c->epilogue;
    epilogue.residual_op = NULL;
    plan p = {.conv = c, .epilogue = &epilogue, .depth = depth, .padded = hwq_winograd_depth(depth), .tiles = tiles, .tile_columns = (c->window.out[2] + 1) / 2,
              .v_step = hwq_winograd_v_step(depth), .m_step = hwq_winograd_m_step(depth)};
    p.v = c->workspace;
    p.row_terms = (int32_t *)(p.v + POSITIONS * p.v_step);
    p.m = p.row_terms + tiles * OUTPUTS;
    p.acc = p.m + POSITIONS * p.m_step;
    p.padding = (uint8_t *)(p.acc + OUTPUTS * tiles * HWQ_STRIP);
    memset(p.padding, c->a_zero_point & 0xFF, (size_t)p.padded);
    hwq_conv_images(c, drive, &p);
}

void hwq_conv_winograd__avx2(const hwq_conv *c) { convolve(c); }

HWQ_TARGET_END
#endif
