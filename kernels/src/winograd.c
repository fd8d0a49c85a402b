/* Weights of the exact integer Winograd convolution, transformed once. Same code on every path. */
#include "winograd.h"

#include "window.h"

#include <string.h>

enum { POSITIONS = HWQ_WINOGRAD_POSITIONS, OUTPUTS = HWQ_WINOGRAD_OUTPUTS };

int64_t hwq_winograd_words(int64_t depth, int64_t n)
{
    return (n + HWQ_STRIP - 1) / HWQ_STRIP * HWQ_STRIP * POSITIONS * hwq_winograd_depth(depth);
}

int64_t hwq_winograd_terms(int64_t n) { return (n + HWQ_STRIP - 1) / HWQ_STRIP * HWQ_STRIP * OUTPUTS; }

/* 2G g (2G)^T of one channel. */
static void transform(int32_t g[3][3], int32_t u[4][4])
{
    int32_t rows[4][3];
    for (int j = 0; j < 3; j++) {
        rows[0][j] = 2 * g[0][j];
        rows[1][j] = g[0][j] + g[1][j] + g[2][j];
        rows[2][j] = g[0][j] - g[1][j] + g[2][j];
        rows[3][j] = 2 * g[2][j];
    }
    for (int i = 0; i < 4; i++) {
        u[i][0] = 2 * rows[i][0];
        u[i][1] = rows[i][0] + rows[i][1] + rows[i][2];
        u[i][2] = rows[i][0] - rows[i][1] + rows[i][2];
        u[i][3] = 2 * rows[i][2];
    }
}

/* A^T m A modulo 2^32. */
static void gather(uint32_t m[POSITIONS], uint32_t y[OUTPUTS])
{
    uint32_t rows[2][4];
    for (int j = 0; j < 4; j++) {
        rows[0][j] = m[j] + m[4 + j] + m[8 + j];
        rows[1][j] = m[4 + j] - m[8 + j] - m[12 + j];
    }
    for (int i = 0; i < 2; i++) {
        y[2 * i] = rows[i][0] + rows[i][1] + rows[i][2];
        y[2 * i + 1] = rows[i][1] - rows[i][2] - rows[i][3];
    }
}

int hwq_winograd_pack(const hwq_packed *p, int64_t depth, int64_t group, int16_t *words, int32_t *terms)
{
    const int64_t n = p->n, k4 = (p->k + 3) / 4 * 4, padded = hwq_winograd_depth(depth);
    const int8_t *quads = p->quads + group * hwq_packed_bytes(p->k, n);
    if (p->k != 9 * depth) return -1;
    memset(words, 0, (size_t)hwq_winograd_words(depth, n) * 2);
    memset(terms, 0, (size_t)hwq_winograd_terms(n) * 4);
    for (int64_t column = 0; column < n; column++) {
        const int64_t strip = column / HWQ_STRIP, lane = column % HWQ_STRIP;
        const int32_t zero_point = p->zero_points ? p->zero_points[group * n + column] : 0;
        const int8_t *from = quads + strip * k4 * HWQ_STRIP + lane * HWQ_QUAD;
        int16_t *to = words + strip * HWQ_STRIP * POSITIONS * padded;
        uint32_t products[POSITIONS] = {0};
        int64_t size = 0; /* sum of |w - zw|, at most 255 * 2^55 */
        for (int64_t quad = 0; quad < padded / 4; quad++) {
            int32_t u[4][4][4] = {{{0}}}; /* [channel of the quad][row][column] */
            for (int64_t i = 0; i < 4 && 4 * quad + i < depth; i++) {
                int32_t g[3][3];
                for (int tap = 0; tap < 9; tap++) {
                    const int64_t at = tap * depth + 4 * quad + i;
                    g[tap / 3][tap % 3] = from[at / HWQ_QUAD * HWQ_STRIP * HWQ_QUAD + at % HWQ_QUAD] - zero_point;
                    size += g[tap / 3][tap % 3] < 0 ? -g[tap / 3][tap % 3] : g[tap / 3][tap % 3];
                }
                transform(g, u[i]);
            }
            for (int at = 0; at < POSITIONS; at++) {
                int16_t *pair = to + (at * padded + 4 * quad) * HWQ_STRIP + 2 * lane; /* channels 0, 1; then 2, 3 of every column */
                for (int i = 0; i < 4; i++) pair[i / 2 * 2 * HWQ_STRIP + i % 2] = (int16_t)u[i][at / 4][at % 4];
                products[at] += (uint32_t)(u[0][at / 4][at % 4] * u[2][at / 4][at % 4]) + (uint32_t)(u[1][at / 4][at % 4] * u[3][at / 4][at % 4]);
            }
        }
        if (size >= (INT64_C(1) << 29) / 255) return -1;
        uint32_t y[OUTPUTS];
        gather(products, y);
        for (int i = 0; i < OUTPUTS; i++) terms[(strip * OUTPUTS + i) * HWQ_STRIP + lane] = (int32_t)y[i];
    }
    return 0;
}

int hwq_winograd_fits(const hwq_conv *c)
{
    const hwq_window *w = &c->window;
    if (c->layout != HWQ_NHWC || c->depthwise || c->a_type == HWQ_F32 || c->channels / c->groups < 16 || c->out_channels / c->groups < 8) return 0;
    for (int d = 0; d < 3; d++)
        if (w->kernel[d] != (d ? 3 : 1) || w->stride[d] != 1 || w->dilation[d] != 1 || (d == 0 && w->pad[0])) return 0;
    return w->out[0] == w->in[0] && w->out[1] > 2 && w->out[2] > 2;
}

/* V, four sums of pairs per tile, a strip's M, the finished accumulators, one pixel of padding. */
int64_t hwq_winograd_workspace(const hwq_conv *c)
{
    const int64_t depth = c->channels / c->groups, tiles = hwq_winograd_tiles(depth);
    if (!hwq_winograd_fits(c)) return 0;
    return POSITIONS * hwq_winograd_v_step(depth) * 2 + tiles * OUTPUTS * 4 + POSITIONS * hwq_winograd_m_step(depth) * 4 +
           tiles * OUTPUTS * HWQ_STRIP * 4 + hwq_align(hwq_winograd_depth(depth));
}
