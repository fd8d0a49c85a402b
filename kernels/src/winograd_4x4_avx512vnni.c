/* Exact integer Winograd F(4x4, 3x3) with vpdpwssd (the scheme and its bounds: winograd_4x4.h; when it runs: winograd_4x4.c).
 *
 * For up to 64 tiles, which may belong to several images: V of all channels; then for 32 columns and up to 128 channels U, made here of the packed bytes (twice
 * their size per position, 36 positions: eight times as many bytes would else come from the third-level cache or from memory, for which a batch of one has no
 * time), and M = V U in tiles of up to 14 x 32 (tile_avx512vnni.h). vpdpwssd multiplies half of what vpdpbusd does, so a quarter of the products is half of the
 * instructions. Y leaves in registers where the epilogue is R4 to bytes.
 * Measured on a Zen 5, one thread, gcc 12, R4 to bytes, beside the direct tiles in the same process: 1.40 times their speed at 56 x 56 x 64, 1.42 at
 * 28 x 28 x 128, 1.2 at 14 x 14 x 256, where 16 tiles must repay the transform of 590 KB of weights; 7 x 7 x 512 has four tiles and runs directly. At
 * 56 x 56 x 64 the products take 70 percent of the time at 92 percent of two vpdpwssd a cycle, V 9, U 2, Y 15. */
#include "winograd_4x4.h"

#include "epilogue.h"
#include "isa.h"
#include "window.h"

#if HWQ_X86
#include <immintrin.h>
#include <string.h>

HWQ_TARGET("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")

#define VECTOR __m512i
#define DOT_BY_INTRINSICS _mm512_dpwssd_epi32
#define DOT_INSTRUCTION "vpdpwssd"
#define DOT_PREFIX ""
#include "dot_vnni.h"
#include "tile_avx512vnni.h"
#define INLINE static inline __attribute__((always_inline))
enum { LONG = WINOGRAD_LONG, SHORT = WINOGRAD_SHORT, SIDE = WINOGRAD_SIDE, COLUMNS = WINOGRAD_COLUMNS };
typedef hwq_winograd_plan plan;
typedef hwq_winograd_tile tile;

/* ---- U ---- */

INLINE void weigh(__m512i g0, __m512i g1, __m512i g2, __m512i u[SIDE])
{
    const __m512i six = _mm512_set1_epi16(6), ends = _mm512_add_epi16(g0, g2), far = _mm512_add_epi16(g0, _mm512_slli_epi16(g2, 2)), twice = _mm512_add_epi16(g1, g1);
    u[0] = _mm512_mullo_epi16(g0, six), u[3] = _mm512_mullo_epi16(g2, six);
    u[1] = _mm512_add_epi16(ends, g1), u[2] = _mm512_sub_epi16(ends, g1);
    u[4] = _mm512_add_epi16(far, twice), u[5] = _mm512_sub_epi16(far, twice);
}

/* Two channels of 16 columns, nine taps. */
INLINE void weigh_pairs(const __m512i g[9], int16_t *u, int64_t step)
{
    __m512i lines[3][SIDE];
    for (int j = 0; j < 3; j++) weigh(g[j], g[3 + j], g[6 + j], lines[j]);
    for (int i = 0; i < SIDE; i++) {
        __m512i line[SIDE];
        weigh(lines[0][i], lines[1][i], lines[2][i], line);
        for (int j = 0; j < SIDE; j++) _mm512_storeu_si512(u + (SIDE * i + j) * step, line[j]);
    }
}

/* `count` channels from `first` on of a strip, whose quads lie tap by tap. u: [position][pair of channels][column][channel of the pair]. */
static void weigh_strip(const int8_t *strip, int64_t depth, int64_t first, int64_t count, const int32_t *zero_points, int16_t *u, int64_t step)
{
    const __m512i front = _mm512_broadcast_i32x4(_mm_setr_epi8(-1, 0, -1, 1, -1, 4, -1, 5, -1, 8, -1, 9, -1, 12, -1, 13));
    const __m512i back = _mm512_broadcast_i32x4(_mm_setr_epi8(-1, 2, -1, 3, -1, 6, -1, 7, -1, 10, -1, 11, -1, 14, -1, 15));
    const __m512i points = _mm512_loadu_si512(zero_points), both = _mm512_or_si512(_mm512_slli_epi32(points, 16), _mm512_and_si512(points, _mm512_set1_epi32(0xFFFF)));
    for (int64_t at = 0; at < count; at += HWQ_QUAD, u += HWQ_QUAD * HWQ_STRIP) {
        __m512i low[9], high[9];
        for (int t = 0; t < 9; t++) {
            const __m512i quads = _mm512_loadu_si512(strip + (t * depth + first + at) * HWQ_STRIP);
            low[t] = _mm512_sub_epi16(_mm512_srai_epi16(_mm512_shuffle_epi8(quads, front), 8), both);
            high[t] = _mm512_sub_epi16(_mm512_srai_epi16(_mm512_shuffle_epi8(quads, back), 8), both);
        }
        weigh_pairs(low, u, step);
        weigh_pairs(high, u + 2 * HWQ_STRIP, step);
    }
}

/* ---- V ---- */

/* A function of a tile for each of its four forms, and the one that chooses. */
#define EACH_FORM(name, parameters, ...) \
    static __attribute__((noinline)) void name##_44 parameters { name(LONG, LONG, __VA_ARGS__); } \
    static __attribute__((noinline)) void name##_42 parameters { name(LONG, SHORT, __VA_ARGS__); } \
    static __attribute__((noinline)) void name##_24 parameters { name(SHORT, LONG, __VA_ARGS__); } \
    static __attribute__((noinline)) void name##_22 parameters { name(SHORT, SHORT, __VA_ARGS__); } \
    static void each_##name parameters \
    { \
        if (t->rows == LONG && t->columns == LONG) name##_44(__VA_ARGS__); \
        else if (t->rows == LONG) name##_42(__VA_ARGS__); \
        else if (t->columns == LONG) name##_24(__VA_ARGS__); \
        else name##_22(__VA_ARGS__); \
    }

INLINE void look(const int n, const __m512i *d, __m512i *v)
{
    if (n == SHORT) {
        v[0] = _mm512_sub_epi16(d[0], d[2]), v[1] = _mm512_add_epi16(d[1], d[2]);
        v[2] = _mm512_sub_epi16(d[2], d[1]), v[3] = _mm512_sub_epi16(d[3], d[1]);
        return;
    }
    const __m512i even = _mm512_sub_epi16(_mm512_slli_epi16(d[2], 2), d[4]), odd = _mm512_sub_epi16(_mm512_slli_epi16(d[1], 2), d[3]);
    const __m512i even2 = _mm512_sub_epi16(d[4], d[2]), half = _mm512_sub_epi16(d[3], d[1]), odd2 = _mm512_add_epi16(half, half);
    v[0] = _mm512_add_epi16(_mm512_slli_epi16(_mm512_sub_epi16(d[0], d[2]), 2), even2);
    v[1] = _mm512_add_epi16(even, odd), v[2] = _mm512_sub_epi16(even, odd);
    v[3] = _mm512_sub_epi16(_mm512_sub_epi16(d[5], d[3]), _mm512_add_epi16(odd2, odd2));
    v[4] = _mm512_add_epi16(even2, odd2), v[5] = _mm512_sub_epi16(even2, odd2);
}

/* A row of V's matrix sums to 0, but the second (to 6 or 2): so only position (1, 1) has a part of the 128 that unsigned inputs are taken less. */
INLINE void look_at(const int rows, const int columns, const hwq_conv *c, const tile *t, int64_t depth, const uint8_t *padding, int16_t *v, int64_t step)
{
    const hwq_window *w = &c->window;
    const int64_t top = t->y - w->pad[1], left = t->x - w->pad[2], line = w->in[2] * c->channels;
    const uint8_t *pixels[WINOGRAD_POSITIONS];
    if (top >= 0 && left >= 0 && top + rows + 2 <= w->in[1] && left + columns + 2 <= w->in[2]) {
        const uint8_t *corner = t->image + top * line + left * c->channels;
        for (int i = 0; i < rows + 2; i++)
            for (int j = 0; j < columns + 2; j++) pixels[SIDE * i + j] = corner + i * line + j * c->channels;
    } else
        for (int64_t i = 0; i < rows + 2; i++)
            for (int64_t j = 0; j < columns + 2; j++) {
                const int64_t y = top + i, x = left + j;
                pixels[SIDE * i + j] = y >= 0 && y < w->in[1] && x >= 0 && x < w->in[2] ? t->image + y * line + x * c->channels : padding;
            }
    const int is_unsigned = c->a_type == HWQ_U8;
    const __m512i middle = _mm512_set1_epi16((short)(is_unsigned ? (rows == LONG ? 6 : 2) * (columns == LONG ? 6 : 2) * 128 : 0));
    for (int64_t at = 0; at < depth; at += 32) {
        const __mmask64 tail = depth - at < 32 ? ((__mmask64)1 << (depth - at)) - 1 : 0;
        __m512i lines[SIDE][SIDE];
        for (int j = 0; j < columns + 2; j++) {
            __m512i d[SIDE], seen[SIDE];
            for (int i = 0; i < rows + 2; i++) {
                const uint8_t *pixel = pixels[SIDE * i + j] + at;
                const __m256i bytes = tail ? _mm512_castsi512_si256(_mm512_maskz_loadu_epi8(tail, pixel)) : _mm256_loadu_si256((const __m256i *)pixel);
                d[i] = is_unsigned ? _mm512_cvtepu8_epi16(bytes) : _mm512_cvtepi8_epi16(bytes);
            }
            look(rows, d, seen);
            for (int i = 0; i < rows + 2; i++) lines[i][j] = seen[i];
        }
        for (int i = 0; i < rows + 2; i++) {
            __m512i seen[SIDE];
            look(columns, lines[i], seen);
            if (i == 1) seen[1] = _mm512_sub_epi16(seen[1], middle);
            for (int j = 0; j < columns + 2; j++) _mm512_storeu_si512(v + (SIDE * i + j) * step + at, seen[j]);
        }
    }
}
EACH_FORM(look_at, (const hwq_conv *c, const tile *t, int64_t depth, const uint8_t *padding, int16_t *v, int64_t step), c, t, depth, padding, v, step)

/* ---- M ---- */

/* The positions of which V, U and M are given the first: 4 or 2 rows of 4 or 2. */
INLINE void multiply_rows(const int first, const int second, const int vectors, int tall, int broad, const plan *p, const part *given, const int16_t *v, int32_t *m)
{
    part g = *given;
    for (int i = 0; i < tall; i++)
        for (int j = 0; j < broad; j++) {
            const uint8_t *a = (const uint8_t *)(v + (SIDE * i + j) * p->v_step);
            int32_t *to = m + (SIDE * i + j) * p->m_step;
            __m512i acc_s32x16[TILE_MOST][2];
            g.weights = given->weights + (SIDE * i + j) * p->u_step * 2;
            dots(first, second, vectors, &g, (const uint8_t *const[]){a, a + first * g.step}, to, acc_s32x16);
#pragma GCC unroll 14
            for (int r = 0; r < first + second; r++)
#pragma GCC unroll 2
                for (int s = 0; s < vectors; s++) _mm512_storeu_si512(to + (r * vectors + s) * HWQ_STRIP, acc_s32x16[r][s]);
        }
}

/* Up to 14 tiles. */
static void multiply(int64_t rows, int tall, int broad, const plan *p, const part *g, const int16_t *v, int32_t *m)
{
#define BOTH(a, b) \
    do { \
        if (g->vectors > 1) multiply_rows(a, b, 2, tall, broad, p, g, v, m); \
        else multiply_rows(a, b, 1, tall, broad, p, g, v, m); \
        return; \
    } while (0)
#define CASE(n) case 2 * n - 1: BOTH(n, n - 1); case 2 * n: BOTH(n, n);
    switch (rows) { CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6) CASE(7) default: return; }
#undef CASE
#undef BOTH
}

/* Tiles [top, bottom) of the block, through one chunk of channels: a position of the first 16 has all tiles, one with the points 2 and -2 only long ones. */
static void multiply_tiles(const plan *p, int64_t top, int64_t bottom, const int64_t ends[4], const part *given, const int16_t *u, const int16_t *v, int32_t *m)
{
    part g = *given;
    for (int form = 0; form < 4; form++) {
        const int tall = form / 2, broad = form % 2;
        const int64_t at = tall * (SIDE * 4) + broad * 4, from = tall ? ends[0] : 0, to = broad ? ends[1] : tall ? ends[2] : ends[3];
        const int64_t start = from > top ? from : top, stop = to < bottom ? to : bottom;
        g.weights = (const int8_t *)(u + at * p->u_step);
        for (int64_t row = start, rows; row < stop; row += rows) {
            rows = stop - row > TILE_MOST ? (stop - row + 1) / 2 : stop - row;
            multiply(rows, tall ? 2 : 4, broad ? 2 : 4, p, &g, v + at * p->v_step + row * p->padded, m + at * p->m_step + (row - top) * g.vectors * HWQ_STRIP);
        }
    }
}

/* ---- Y ---- */

INLINE void gather(const int n, const __m512i *m, __m512i *y)
{
    const __m512i s = _mm512_add_epi32(m[1], m[2]), t = _mm512_sub_epi32(m[1], m[2]);
    if (n == SHORT) {
        y[0] = _mm512_add_epi32(m[0], _mm512_add_epi32(s, _mm512_add_epi32(s, s)));
        y[1] = _mm512_add_epi32(m[3], _mm512_add_epi32(t, _mm512_add_epi32(t, t)));
        return;
    }
    const __m512i p = _mm512_add_epi32(m[4], m[5]), q = _mm512_sub_epi32(m[4], m[5]);
    y[0] = _mm512_add_epi32(_mm512_add_epi32(m[0], p), _mm512_slli_epi32(s, 2));
    y[1] = _mm512_add_epi32(_mm512_add_epi32(t, t), q);
    y[2] = _mm512_add_epi32(s, p);
    y[3] = _mm512_add_epi32(_mm512_add_epi32(m[3], t), _mm512_add_epi32(q, q));
}
/* Powers of two in 24, 12, 6, 6 or, of a short tile, 6, 6. */
INLINE int twos(const int n, int i) { return n == LONG && i < 2 ? 3 - i : 1; }

/* 16 columns, or `width`, of a tile's outputs that lie in [begin, end) of its image. out: of the image's first output. */
INLINE void finish_tile(const int rows, const int columns, const hwq_conv *c, const tile *t, const int32_t *m, int64_t step, const int32_t *terms, const finish *f,
                        int64_t column, int64_t width, int64_t begin, int64_t end, char *out)
{
    const finish here = *f; /* the output cannot alias it */
    __m512i lines[LONG][SIDE];
    for (int j = 0; j < columns + 2; j++) {
        __m512i sums[SIDE], gathered[LONG];
        for (int i = 0; i < rows + 2; i++) sums[i] = _mm512_loadu_si512(m + (SIDE * i + j) * step);
        gather(rows, sums, gathered);
        for (int i = 0; i < rows; i++) lines[i][j] = gathered[i];
    }
    const __m512i ninth = _mm512_set1_epi32(0x38E38E39), start = _mm512_loadu_si512(terms); /* 9 * 0x38E38E39 = 1 modulo 2^32 */
    const __m512 scale = _mm512_loadu_ps(here.scales + column), scales[2] = {scale, scale};
    const __mmask16 mask = (__mmask16)(width >= HWQ_STRIP ? 0xFFFF : (1 << width) - 1);
    const int64_t across = c->window.out[2], size = hwq_type_size(here.epilogue->out_type);
    for (int i = 0; i < rows && t->y + i < c->window.out[1]; i++) {
        __m512i y[LONG];
        gather(columns, lines[i], y);
        for (int j = 0; j < columns; j++)
            y[j] = _mm512_add_epi32(_mm512_srai_epi32(_mm512_mullo_epi32(y[j], ninth), (unsigned)(twos(rows, i) + twos(columns, j))), start);
        const int64_t at = (t->y + i) * across + t->x, inside = across - t->x < columns ? across - t->x : columns;
        const int64_t from = begin > at ? begin - at : 0, to = end - at < inside ? end - at : inside;
        char *line = out + at * here.stride * size;
        if (from >= to) continue;
        if (!here.fast) {
            int32_t acc[LONG * HWQ_STRIP];
            for (int j = 0; j < columns; j++) _mm512_storeu_si512(acc + j * HWQ_STRIP, y[j]);
            hwq_requantize(here.epilogue, to - from, width < HWQ_STRIP ? width : HWQ_STRIP, here.channel + column, acc + from * HWQ_STRIP, HWQ_S32, HWQ_STRIP,
                           line + from * here.stride * size, here.stride);
            continue;
        }
        const __m512i bytes = sixteens(&here, (const __m512i[]){y[0], y[1], y[columns - 2], y[columns - 1]}, scales);
        const __m128i pixels[LONG] = {_mm512_castsi512_si128(bytes), _mm512_extracti32x4_epi32(bytes, 1), _mm512_extracti32x4_epi32(bytes, 2), _mm512_extracti32x4_epi32(bytes, 3)};
        if (from == 0 && to == columns && width >= HWQ_STRIP) {
#pragma GCC unroll 4
            for (int j = 0; j < columns; j++) _mm_storeu_si128((__m128i *)(line + j * here.stride), pixels[j]);
        } else
            for (int64_t j = from; j < to; j++) _mm_mask_storeu_epi8(line + j * here.stride, mask, pixels[j]);
    }
}
EACH_FORM(finish_tile, (const hwq_conv *c, const tile *t, const int32_t *m, int64_t step, const int32_t *terms, const finish *f, int64_t column, int64_t width, int64_t begin,
                        int64_t end, char *out), c, t, m, step, terms, f, column, width, begin, end, out)

/* ---- The driver ---- */

typedef struct {
    const tile *tiles;
    int64_t count, ends[4];
    int first;          /* is it the first block? */
    int16_t *v, *u;
    int32_t *m;
} block;

/* 32 columns of a group of channels, of all tiles of a block. */
static void columns(const hwq_conv *c, const plan *p, const block *b, int64_t group, int64_t column, finish *f)
{
    static const int32_t zeros[COLUMNS] = {0};
    const hwq_packed *packed = c->weights;
    const int64_t n = p->n, width = n - column < COLUMNS ? n - column : COLUMNS, vectors = width > HWQ_STRIP ? 2 : 1, channel = group * n + column;
    const int64_t strip_bytes = (packed->k + 3) / 4 * 4 * HWQ_STRIP, outputs = hwq_window_outputs(&c->window), size = hwq_type_size(f->epilogue->out_type);
    const int8_t *weights = packed->quads + group * hwq_packed_bytes(packed->k, n) + column / HWQ_STRIP * strip_bytes;
    const uint32_t za = (uint32_t)(c->a_zero_point - (c->a_type == HWQ_U8 ? 128 : 0));
    int32_t terms[COLUMNS] = {0}, points[COLUMNS] = {0};
    for (int64_t j = 0; j < width; j++) {
        points[j] = packed->zero_points ? packed->zero_points[channel + j] : 0;
        const uint32_t sum = (uint32_t)packed->column_sums[channel + j] - (uint32_t)packed->k * (uint32_t)points[j];
        terms[j] = (int32_t)((c->bias ? (uint32_t)c->bias[channel + j] : 0) - za * sum);
    }
    finish_columns(f, f->epilogue, channel, width);
    const int64_t parts = (b->count + WINOGRAD_GROUP - 1) / WINOGRAD_GROUP, each = (b->count + parts - 1) / parts;
    for (int64_t chunk = 0; chunk < p->chunks; chunk++) {
        const int64_t from = chunk * p->taken, taken = p->depth - from < p->taken ? p->depth - from : p->taken;
        const int64_t place = (group * ((n + COLUMNS - 1) / COLUMNS) + column / COLUMNS) * p->chunks + chunk;
        int16_t *u = (int16_t *)((char *)b->u + (p->u_kept > 1 ? place * p->u_bytes : 0));
        for (int64_t s = 0; s < vectors && (b->first || p->u_kept == 1); s++)
            weigh_strip(weights + s * strip_bytes, p->depth, from, taken, points + s * HWQ_STRIP, u + s * p->taken * HWQ_STRIP, p->u_step);
        const piece whole = {0, taken / 2};
        const part g = {.pieces = &whole, .count = 1, .strip_bytes = p->taken * HWQ_STRIP * 2, .terms = zeros, .step = p->padded * 2, .vectors = (int)vectors, .first = chunk == 0};
        for (int64_t i = 0; i < parts; i++) {
            const int64_t top = i * each, bottom = top + each < b->count ? top + each : b->count;
            int32_t *m = (int32_t *)((char *)b->m + (p->m_kept > 1 ? i * p->m_bytes : 0));
            multiply_tiles(p, top, bottom, b->ends, &g, u, b->v + from, m);
            for (int64_t at = top; at < bottom && chunk + 1 == p->chunks; at++) {
                const tile *t = b->tiles + at;
                const int64_t begin = c->first - t->number * outputs, end = c->last - t->number * outputs;
                for (int64_t s = 0; s < vectors; s++)
                    each_finish_tile(c, t, m + ((at - top) * vectors + s) * HWQ_STRIP, p->m_step, terms + s * HWQ_STRIP, f, s * HWQ_STRIP, width - s * HWQ_STRIP, begin > 0 ? begin : 0,
                                     end < outputs ? end : outputs, (char *)c->out + (t->number * outputs * c->out_channels + channel + s * HWQ_STRIP) * size);
            }
        }
    }
}

void hwq_conv_winograd_4x4__avx512vnni(const hwq_conv *c, const hwq_winograd_plan *p)
{
    block b = {.v = c->workspace};
    b.u = (int16_t *)((char *)b.v + p->v_bytes);
    b.m = (int32_t *)((char *)b.u + p->u_kept * p->u_bytes);
    uint8_t *padding = (uint8_t *)b.m + p->m_kept * p->m_bytes;
    tile *tiles = (tile *)(padding + hwq_align(p->padded));
    memset(padding, c->a_zero_point & 0xFF, (size_t)p->padded);
    hwq_epilogue e = *c->epilogue;
    e.lut = NULL, e.residual_op = NULL;
    finish f = finish_of(&e, c->out_channels);
    const int64_t begin = hwq_winograd_4x4_line(c, p, c->first) * p->across, end = (hwq_winograd_4x4_line(c, p, c->last - 1) + 1) * p->across;
    const int64_t blocks = (end - begin + p->tiles - 1) / p->tiles, most = (end - begin + blocks - 1) / blocks;
    for (int64_t first = begin; first < end; first += most) {
        b.tiles = tiles, b.first = first == begin, b.count = end - first < most ? end - first : most;
        hwq_winograd_4x4_sort(c, p, first, b.count, tiles, b.ends);
        for (int64_t group = 0; group < c->groups; group++) {
            for (int64_t i = 0; i < b.count; i++) {
                tile t = tiles[i];
                t.image += group * p->depth;
                each_look_at(c, &t, p->depth, padding, b.v + i * p->padded, p->v_step);
            }
            for (int64_t column = 0; column < p->n; column += COLUMNS) columns(c, p, &b, group, column, &f);
        }
    }
    const int64_t outputs = hwq_window_outputs(&c->window), pixel = c->out_channels * hwq_type_size(e.out_type);
    for (int64_t at = c->first, count; at < c->last; at += count) {
        const int64_t left = at % outputs;
        uint8_t *line = (uint8_t *)c->out + at * pixel;
        count = c->last - at < outputs - left ? c->last - at : outputs - left;
        if (c->epilogue->lut) hwq_lut(count * c->out_channels, line, e.out_type == HWQ_S8 ? 0x80 : 0, c->epilogue->lut, line);
        if (c->epilogue->residual_op) hwq_conv_residual(c, at / outputs, left, left + count);
    }
}

HWQ_TARGET_END
#endif
