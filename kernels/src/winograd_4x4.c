/* Exact integer Winograd F(4x4, 3x3): when it pays, and its tiles. Same code on every path; the scheme and its bounds: winograd_4x4.h. */
#include "winograd_4x4.h"

#include "window.h"

/* V of a block beside U of a chunk (295 KB) and M of some groups, in a second-level cache of 1 MiB (49 tiles of 128 channels at once run 1.05 times as fast as
 * 25 and 24, for which U would be made twice); U that is kept whole. 16 tiles of 512 channels pass that, and still win. */
enum { V_BYTES = 480 << 10, U_BYTES = 384 << 10, CHUNK = 128, TILES_LEAST = 16 };

/* An axis of n outputs: tiles of 4, three left count as one; one or two left are a tile of 2. */
static int64_t longs(int64_t n) { return (n + 1) / WINOGRAD_LONG; }
static int64_t shorts(int64_t n) { return WINOGRAD_LONG * longs(n) < n; }
static int64_t positions(int64_t n) { return 6 * longs(n) + 4 * shorts(n); }

int hwq_winograd_4x4_fits(const hwq_conv *c, hwq_winograd_plan *p)
{
    const hwq_window *w = &c->window;
    if (c->layout != HWQ_NHWC || c->depthwise || c->a_type == HWQ_F32 || c->weights->weight_sum <= 0 || c->weights->weight_sum >= 1 << 18) return 0;
    for (int d = 0; d < 3; d++)
        if (w->kernel[d] != (d ? 3 : 1) || w->stride[d] != 1 || w->dilation[d] != 1) return 0;
    if (w->in[0] != 1 || w->out[0] != 1 || w->pad[0] || w->out[1] < 1 || w->out[2] < 1) return 0;
    p->depth = c->channels / c->groups, p->n = c->out_channels / c->groups, p->padded = (p->depth + WINOGRAD_CHANNELS - 1) / WINOGRAD_CHANNELS * WINOGRAD_CHANNELS;
    if (p->depth == 0) return 0;
    p->down = longs(w->out[1]) + shorts(w->out[1]), p->across = longs(w->out[2]) + shorts(w->out[2]);
    const int64_t fit = V_BYTES / (WINOGRAD_POSITIONS * 2 * p->padded), parts = c->groups * ((p->n + WINOGRAD_COLUMNS - 1) / WINOGRAD_COLUMNS);
    p->tiles = fit < TILES_LEAST ? TILES_LEAST : fit > WINOGRAD_TILES ? WINOGRAD_TILES : fit;
    p->chunks = (p->depth + CHUNK - 1) / CHUNK;
    p->taken = p->chunks == 1 ? (p->depth + HWQ_QUAD - 1) / HWQ_QUAD * HWQ_QUAD : (p->padded / WINOGRAD_CHANNELS + p->chunks - 1) / p->chunks * WINOGRAD_CHANNELS;
    p->chunks = (p->depth + p->taken - 1) / p->taken;
    p->v_tile = WINOGRAD_POSITIONS * p->padded + WINOGRAD_CHANNELS, p->u_step = p->taken * WINOGRAD_COLUMNS + 32;
    p->v_bytes = p->tiles * p->v_tile * 2, p->u_bytes = hwq_align(WINOGRAD_POSITIONS * p->u_step * 2);
    p->m_bytes = hwq_align(WINOGRAD_POSITIONS * WINOGRAD_M_STEP * 4);
    p->u_kept = p->u_bytes * p->chunks * parts <= U_BYTES ? p->chunks * parts : 1;
    p->m_kept = p->chunks > 1 ? (p->tiles + WINOGRAD_GROUP - 1) / WINOGRAD_GROUP : 1;
    return 1;
}

int64_t hwq_winograd_4x4_bytes(const hwq_winograd_plan *p)
{
    return p->v_bytes + p->u_kept * p->u_bytes + p->m_kept * p->m_bytes + hwq_align(p->padded) + WINOGRAD_TILES * (int64_t)sizeof(hwq_winograd_tile);
}

/* Cost in dots, products of 16 columns and two channels: vpdpwssd of 512 bits, two a cycle; on AVX2 two vpmaddwd and two additions, one a cycle. Measured on a
 * Zen 5 at 4.1 GHz, with V, U and M in the second-level cache: a row of a position by 32 columns costs 5 dots beside its own (AVX2 8); 32 channels of U by 16 columns of
 * two 165 each pair (their stores leave the first cache, else 100), V of 32 channels of a tile 300, Y of 16 columns of a tile 220 (AVX2 300). The sum came within 5 percent
 * of five shapes' times on AVX512-VNNI, within 15 on AVX2.
 * What it is compared with: straight from the image by vpdpbusd, half as many dots and 5 percent; a gain below an eighth is left, as caches that others use as well
 * would take it. On AVX2 F(2x2, 3x3) with weights that were transformed once, 16 products for 36 and transforms; a gain below a fifth is left, as each of several threads
 * would transform the weights. */
static int pays(const hwq_conv *c, const hwq_winograd_plan *p, int bytes, int64_t lines, int64_t outputs)
{
    const int64_t strips = (p->n + HWQ_STRIP - 1) / HWQ_STRIP, wide = (strips + 1) / 2, tiles = lines * p->across;
    const int64_t rows = positions(c->window.out[1]) * positions(c->window.out[2]) * lines / p->down;
    const int64_t times = p->u_kept > 1 ? 1 : (tiles + p->tiles - 1) / p->tiles;
    const double dots = (double)(strips * ((p->depth + HWQ_QUAD - 1) / HWQ_QUAD * 2)), products = (double)rows * (dots + (double)((bytes ? 5 : 8) * p->chunks * wide));
    const double transforms = 165 * dots * (double)times + (double)tiles * (double)(300 * (p->padded / WINOGRAD_CHANNELS) + (bytes ? 220 : 300) * strips);
    const double rival = bytes ? 7. / 8 * 1.05 * 9 / 2 * dots : 4. / 5 * (4.35 * dots + 11 * (double)(strips + p->depth / 16));
    return products + transforms < rival * (double)outputs;
}

static int pays_whole(const hwq_conv *c, hwq_winograd_plan *p, int bytes)
{
    return hwq_winograd_4x4_fits(c, p) && pays(c, p, bytes, c->batch * p->down, c->batch * hwq_window_outputs(&c->window));
}

int64_t hwq_winograd_4x4_line(const hwq_conv *c, const hwq_winograd_plan *p, int64_t position)
{
    const int64_t outputs = hwq_window_outputs(&c->window), y = position % outputs / c->window.out[2] / WINOGRAD_LONG;
    return position / outputs * p->down + (y < p->down ? y : p->down - 1);
}

int hwq_winograd_4x4_pays(const hwq_conv *c, int bytes, hwq_winograd_plan *p)
{
    return c->first < c->last && pays_whole(c, p, bytes) &&
           (!bytes || pays(c, p, bytes, hwq_winograd_4x4_line(c, p, c->last - 1) + 1 - hwq_winograd_4x4_line(c, p, c->first), c->last - c->first));
}

int hwq_winograd_4x4_pays_whole(const hwq_conv *c, int bytes)
{
    hwq_winograd_plan p;
    return pays_whole(c, &p, bytes);
}

int64_t hwq_winograd_4x4_workspace(const hwq_conv *c)
{
    hwq_winograd_plan p;
    return pays_whole(c, &p, 0) || pays_whole(c, &p, 1) ? hwq_winograd_4x4_bytes(&p) : 0;
}

void hwq_winograd_4x4_sort(const hwq_conv *c, const hwq_winograd_plan *p, int64_t first, int64_t count, hwq_winograd_tile *tiles, int64_t ends[4])
{
    const int64_t long_rows = longs(c->window.out[1]), long_columns = longs(c->window.out[2]), image = hwq_window_inputs(&c->window) * c->channels;
    int64_t places[5] = {0};
    for (int pass = 0; pass < 2; pass++) { /* counting, placing */
        int64_t number = first / (p->down * p->across), y = first / p->across % p->down, x = first % p->across;
        for (int64_t i = 0; i < count; i++) {
            const int low = y >= long_rows, thin = x >= long_columns, form = low ? 3 * thin : 1 + thin;
            if (pass == 0) places[form + 1]++;
            else
                tiles[places[form]++] = (hwq_winograd_tile){(const uint8_t *)c->x + number * image, number, WINOGRAD_LONG * y, WINOGRAD_LONG * x,
                                                            low ? WINOGRAD_SHORT : WINOGRAD_LONG, thin ? WINOGRAD_SHORT : WINOGRAD_LONG};
            if (++x == p->across) x = 0, y++;
            if (y == p->down) y = 0, number++;
        }
        for (int i = 1; pass == 0 && i < 5; i++) places[i] += places[i - 1];
    }
    for (int i = 0; i < 4; i++) ends[i] = places[i];
}
