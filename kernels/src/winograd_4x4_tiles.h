/* What the paths' kernels of F(4x4, 3x3) share: transforms on vectors of LANES int16 or half as many int32, and the driver. Include inside a path's region, after
 * its finish (tile_avx512vnni.h, tile_avx2.h) and its vector, LANES, add16, sub16, four16, six16 (times 4, 6), all16, add32, sub32, four32, store and
 *     vector widen(const uint8_t *bytes, int64_t count, int is_unsigned): LANES bytes, 0 behind the first `count`, of which alone may be read. */
#ifndef HWQ_WINOGRAD_4X4_TILES_H
#define HWQ_WINOGRAD_4X4_TILES_H
#include "winograd_4x4.h"

#define INLINE static inline __attribute__((always_inline))
enum { LONG = WINOGRAD_LONG, SHORT = WINOGRAD_SHORT, SIDE = WINOGRAD_SIDE, COLUMNS = WINOGRAD_COLUMNS };
typedef hwq_winograd_plan plan;
typedef hwq_winograd_tile tile;

/* ---- U, V and Y in one and two dimensions ---- */

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


INLINE void weigh(vector g0, vector g1, vector g2, vector u[SIDE])
{
    const vector ends = add16(g0, g2), far = add16(g0, four16(g2)), twice = add16(g1, g1);
    u[0] = six16(g0), u[3] = six16(g2);
    u[1] = add16(ends, g1), u[2] = sub16(ends, g1);
    u[4] = add16(far, twice), u[5] = sub16(far, twice);
}

/* Two channels of 16 columns, nine taps. */
INLINE void weigh_pairs(const vector g[9], int16_t *u, int64_t step)
{
    vector lines[3][SIDE];
    for (int j = 0; j < 3; j++) weigh(g[j], g[3 + j], g[6 + j], lines[j]);
    for (int i = 0; i < SIDE; i++) {
        vector line[SIDE];
        weigh(lines[0][i], lines[1][i], lines[2][i], line);
        for (int j = 0; j < SIDE; j++) store(u + (SIDE * i + j) * step, line[j]);
    }
}

INLINE void look(const int n, const vector *d, vector *v)
{
    if (n == SHORT) {
        v[0] = sub16(d[0], d[2]), v[1] = add16(d[1], d[2]);
        v[2] = sub16(d[2], d[1]), v[3] = sub16(d[3], d[1]);
        return;
    }
    const vector even = sub16(four16(d[2]), d[4]), odd = sub16(four16(d[1]), d[3]);
    const vector even2 = sub16(d[4], d[2]), half = sub16(d[3], d[1]), odd2 = add16(half, half);
    v[0] = add16(four16(sub16(d[0], d[2])), even2);
    v[1] = add16(even, odd), v[2] = sub16(even, odd);
    v[3] = sub16(sub16(d[5], d[3]), add16(odd2, odd2));
    v[4] = add16(even2, odd2), v[5] = sub16(even2, odd2);
}

/* The first three lines of a tile's V or, `part` 1, the last three; of a short tile all four. All six at once would not fit the registers. */
INLINE void look_lines(const int rows, const int columns, const int part, const uint8_t *const pixels[], int64_t at, int64_t count, int is_unsigned, vector middle, int16_t *v)
{
    enum { PART = SIDE / 2 };
    const int lines = rows == LONG ? PART : rows + 2;
    vector line[SHORT + 2][SIDE];
#pragma GCC unroll 6
    for (int j = 0; j < columns + 2; j++) {
        vector d[SIDE], seen[SIDE];
#pragma GCC unroll 6
        for (int i = 0; i < rows + 2; i++) d[i] = widen(pixels[SIDE * i + j] + at, count, is_unsigned);
        look(rows, d, seen);
#pragma GCC unroll 4
        for (int i = 0; i < lines; i++) line[i][j] = seen[PART * part + i];
    }
#pragma GCC unroll 4
    for (int i = 0; i < lines; i++) {
        vector seen[SIDE];
        look(columns, line[i], seen);
        if (PART * part + i == 1) seen[1] = sub16(seen[1], middle);
#pragma GCC unroll 6
        for (int j = 0; j < columns + 2; j++) store(v + (SIDE * (PART * part + i) + j) * WINOGRAD_CHANNELS, seen[j]);
    }
}

/* A row of V's matrix sums to 0, but the second (to 6 or 2): so only position (1, 1) has a part of the 128 that unsigned inputs are taken less. */
INLINE void look_at(const int rows, const int columns, const hwq_conv *c, const tile *t, int64_t depth, const uint8_t *padding, int16_t *v)
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
    const vector middle = all16((int16_t)(is_unsigned ? (rows == LONG ? 6 : 2) * (columns == LONG ? 6 : 2) * 128 : 0));
    for (int64_t at = 0; at < depth; at += LANES) {
        const int64_t count = depth - at < LANES ? depth - at : LANES;
        int16_t *to = v + at / WINOGRAD_CHANNELS * WINOGRAD_V_STEP + at % WINOGRAD_CHANNELS;
        look_lines(rows, columns, 0, pixels, at, count, is_unsigned, middle, to);
        if (rows == LONG) look_lines(rows, columns, 1, pixels, at, count, is_unsigned, middle, to);
    }
}
EACH_FORM(look_at, (const hwq_conv *c, const tile *t, int64_t depth, const uint8_t *padding, int16_t *v), c, t, depth, padding, v)

INLINE void gather(const int n, const vector *m, vector *y)
{
    const vector s = add32(m[1], m[2]), t = sub32(m[1], m[2]);
    if (n == SHORT) {
        y[0] = add32(m[0], add32(s, add32(s, s)));
        y[1] = add32(m[3], add32(t, add32(t, t)));
        return;
    }
    const vector p = add32(m[4], m[5]), q = sub32(m[4], m[5]);
    y[0] = add32(add32(m[0], p), four32(s));
    y[1] = add32(add32(t, t), q);
    y[2] = add32(s, p);
    y[3] = add32(add32(m[3], t), add32(q, q));
}
/* Powers of two in 24, 12, 6, 6 or, of a short tile, 6, 6. */
INLINE int twos(const int n, int i) { return n == LONG && i < 2 ? 3 - i : 1; }

/* ---- The driver ---- */

/* U of `count` channels from `first` on, of the strip that is number `s` of 32 columns. */
static void weigh_strip(const plan *p, const int8_t *strip, int64_t first, int64_t count, const int32_t *zero_points, int64_t s, int16_t *u);
/* `rows` tiles through `taken` channels at tall x broad positions, of which V, U and M are given the first; `first`: from 0 on, else from what M holds. */
static void multiply(const plan *p, int64_t rows, int tall, int broad, int64_t vectors, int64_t taken, int first, const int16_t *u, const int16_t *v, int32_t *m);
/* 32 columns, or `width`, of a tile's outputs that lie in [begin, end) of its image. out: of the image's first output. */
static void each_finish_tile(const hwq_conv *c, const tile *t, const int32_t *m, const int32_t *terms, const finish *f, const hwq_epilogue *e, int64_t channel,
                             int64_t width, int64_t begin, int64_t end, char *out);

/* Tiles [top, bottom) of the block, through one chunk of channels: a position of the first 16 has all tiles, one with the points 2 and -2 only long ones. */
static void multiply_tiles(const plan *p, int64_t top, int64_t bottom, const int64_t ends[4], int64_t vectors, int64_t taken, int first, const int16_t *u, const int16_t *v, int32_t *m)
{
    for (int form = 0; form < 4; form++) {
        const int tall = form / 2, broad = form % 2;
        const int64_t at = tall * (SIDE * 4) + broad * 4, from = tall ? ends[0] : 0, to = broad ? ends[1] : tall ? ends[2] : ends[3];
        const int64_t start = from > top ? from : top, stop = to < bottom ? to : bottom;
        if (start < stop)
            multiply(p, stop - start, tall ? 2 : 4, broad ? 2 : 4, vectors, taken, first, u + at * p->u_step, v + at * WINOGRAD_CHANNELS + start * p->v_tile,
                     m + at * WINOGRAD_M_STEP + (start - top) * vectors * HWQ_STRIP);
    }
}

typedef struct {
    const tile *tiles;
    int64_t count, ends[4];
    int first;          /* is it the first block? */
    int16_t *v, *u;
    int32_t *m;
} block;

/* 32 columns of a group of channels, of all tiles of a block. */
static void columns(const hwq_conv *c, const plan *p, const block *b, int64_t group, int64_t column, finish *f, const hwq_epilogue *e)
{
    const hwq_packed *packed = c->weights;
    const int64_t n = p->n, width = n - column < COLUMNS ? n - column : COLUMNS, vectors = width > HWQ_STRIP ? 2 : 1, channel = group * n + column;
    const int64_t strip_bytes = (packed->k + 3) / 4 * 4 * HWQ_STRIP, outputs = hwq_window_outputs(&c->window), size = hwq_type_size(e->out_type);
    const int8_t *weights = packed->quads + group * hwq_packed_bytes(packed->k, n) + column / HWQ_STRIP * strip_bytes;
    const uint32_t za = (uint32_t)(c->a_zero_point - (c->a_type == HWQ_U8 ? 128 : 0));
    int32_t terms[COLUMNS] = {0}, points[COLUMNS] = {0};
    for (int64_t j = 0; j < width; j++) {
        points[j] = packed->zero_points ? packed->zero_points[channel + j] : 0;
        const uint32_t sum = (uint32_t)packed->column_sums[channel + j] - (uint32_t)packed->k * (uint32_t)points[j];
        terms[j] = (int32_t)((c->bias ? (uint32_t)c->bias[channel + j] : 0) - za * sum);
    }
    finish_columns(f, e, channel, width);
    const int64_t parts = (b->count + WINOGRAD_GROUP - 1) / WINOGRAD_GROUP, each = (b->count + parts - 1) / parts;
    for (int64_t chunk = 0; chunk < p->chunks; chunk++) {
        const int64_t from = chunk * p->taken, taken = p->depth - from < p->taken ? p->depth - from : p->taken;
        const int64_t place = (group * ((n + COLUMNS - 1) / COLUMNS) + column / COLUMNS) * p->chunks + chunk;
        int16_t *u = (int16_t *)((char *)b->u + (p->u_kept > 1 ? place * p->u_bytes : 0));
        for (int64_t s = 0; s < vectors && (b->first || p->u_kept == 1); s++)
            weigh_strip(p, weights + s * strip_bytes, from, taken, points + s * HWQ_STRIP, s, u);
        for (int64_t i = 0; i < parts; i++) {
            const int64_t top = i * each, bottom = top + each < b->count ? top + each : b->count;
            int32_t *m = (int32_t *)((char *)b->m + (p->m_kept > 1 ? i * p->m_bytes : 0));
            multiply_tiles(p, top, bottom, b->ends, vectors, taken, chunk == 0, u, b->v + from / WINOGRAD_CHANNELS * WINOGRAD_V_STEP, m);
            for (int64_t at = top; at < bottom && chunk + 1 == p->chunks; at++) {
                const tile *t = b->tiles + at;
                const int64_t begin = c->first - t->number * outputs, end = c->last - t->number * outputs;
                each_finish_tile(c, t, m + (at - top) * vectors * HWQ_STRIP, terms, f, e, channel, width, begin > 0 ? begin : 0, end < outputs ? end : outputs,
                                 (char *)c->out + (t->number * outputs * c->out_channels + channel) * size);
            }
        }
    }
}

static void convolve(const hwq_conv *c, const plan *p)
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
                each_look_at(c, &t, p->depth, padding, b.v + i * p->v_tile);
            }
            for (int64_t column = 0; column < p->n; column += COLUMNS) columns(c, p, &b, group, column, &f, &e);
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

#endif
