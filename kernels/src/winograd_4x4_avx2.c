/* Exact integer Winograd F(4x4, 3x3) on AVX2 (the scheme and its bounds: winograd_4x4.h; when it runs: winograd_4x4.c).
 *
 * As on AVX512-VNNI, for up to 64 tiles at once: V of all channels; for 32 columns and up to 128 channels U, made in the call; M = V U in tiles of 3 x 32 by plain
 * products (tile_avx2.h): pairs of them in int32 are at most 2 * 12800 * 12495 < 2^31. Winograd's inner product, which the direct tiles and F(2x2, 3x3) use,
 * would ask for sums of V's and U's own products at every position.
 * Measured on a Zen 5, one thread, gcc 12, R4 to bytes, in MACs of the direct form: 295 GMAC/s at 56 x 56 x 64, 305 at 28 x 28 x 128, 260 at 14 x 14 x 256, where
 * F(2x2, 3x3) with weights transformed before ran at 210, 236 and 234 in the same process and the direct tiles at 97. */
#include "winograd_4x4.h"

#include "epilogue.h"
#include "isa.h"
#include "window.h"

#if HWQ_X86
#include <immintrin.h>
#include <string.h>

HWQ_TARGET("avx2,fma")
#include "tile_avx2.h"

typedef __m256i vector;
enum { LANES = 16 };
static inline vector add16(vector a, vector b) { return _mm256_add_epi16(a, b); }
static inline vector sub16(vector a, vector b) { return _mm256_sub_epi16(a, b); }
static inline vector four16(vector a) { return _mm256_slli_epi16(a, 2); }
static inline vector six16(vector a) { return _mm256_mullo_epi16(a, _mm256_set1_epi16(6)); }
static inline vector all16(int16_t v) { return _mm256_set1_epi16(v); }
static inline vector add32(vector a, vector b) { return _mm256_add_epi32(a, b); }
static inline vector sub32(vector a, vector b) { return _mm256_sub_epi32(a, b); }
static inline vector four32(vector a) { return _mm256_slli_epi32(a, 2); }
static inline vector load(const void *p) { return _mm256_loadu_si256((const __m256i *)p); }
static inline void store(void *p, vector v) { _mm256_storeu_si256((__m256i *)p, v); }
static inline vector widen(const uint8_t *bytes, int64_t count, int is_unsigned)
{
    uint8_t some[LANES] = {0};
    if (count < LANES) memcpy(some, bytes, (size_t)count), bytes = some;
    const __m128i line = _mm_loadu_si128((const __m128i *)bytes);
    return is_unsigned ? _mm256_cvtepu8_epi16(line) : _mm256_cvtepi8_epi16(line);
}
#include "winograd_4x4_tiles.h"

/* `left` of the packed weights' k from any k on, four at most, as a quad of 8 columns; 0 behind them. */
static inline __m256i quads_from(const int8_t *strip, int64_t k, int64_t left)
{
    const int64_t shift = k % HWQ_QUAD, count = left < HWQ_QUAD ? left : HWQ_QUAD;
    const int8_t *at = strip + k / HWQ_QUAD * HWQ_STRIP * HWQ_QUAD;
    __m256i quads = load(at);
    if (shift) quads = _mm256_srl_epi32(quads, _mm_cvtsi64_si128(8 * shift));
    if (shift + count > HWQ_QUAD) quads = _mm256_or_si256(quads, _mm256_sll_epi32(load(at + HWQ_STRIP * HWQ_QUAD), _mm_cvtsi64_si128(32 - 8 * shift)));
    return count < HWQ_QUAD ? _mm256_and_si256(quads, _mm256_set1_epi32((int32_t)((1u << 8 * count) - 1))) : quads;
}
/* Two channels of a quad as int16, those that `pair` names. */
static inline __m256i pair_of(__m256i quads, __m256i pair) { return _mm256_srai_epi16(_mm256_shuffle_epi8(quads, pair), 8); }

/* u: [position][quad of channels][its second pair, its first][column of 32][channel of the pair], as tile_avx2.h reads it. */
INLINE void weigh_quads(const int whole, const plan *p, const int8_t *strip, int64_t first, int64_t count, const int32_t *zero_points, int64_t s, int16_t *u)
{
    const __m256i front = _mm256_broadcastsi128_si256(_mm_setr_epi8(-1, 0, -1, 1, -1, 4, -1, 5, -1, 8, -1, 9, -1, 12, -1, 13));
    const __m256i back = _mm256_broadcastsi128_si256(_mm_setr_epi8(-1, 2, -1, 3, -1, 6, -1, 7, -1, 10, -1, 11, -1, 14, -1, 15));
    for (int64_t half = 0; half < 2; half++) {
        const __m256i points = load(zero_points + 8 * half), both = _mm256_or_si256(_mm256_slli_epi32(points, 16), _mm256_and_si256(points, _mm256_set1_epi32(0xFFFF)));
        int16_t *to = u + (2 * s + half) * LANES;
        for (int64_t at = 0; at < count; at += HWQ_QUAD, to += TILE_QUAD) {
            const int64_t left = whole ? HWQ_QUAD : count - at;
            const __m256i kept = _mm256_set1_epi32(left < HWQ_QUAD ? (int32_t)((1u << 8 * left) - 1) : -1); /* no zero points beyond the channels */
            const __m256i low_points = _mm256_and_si256(both, pair_of(kept, front)), high_points = _mm256_and_si256(both, pair_of(kept, back));
            __m256i low[9], high[9];
            for (int t = 0; t < 9; t++) {
                const __m256i quads = whole ? load(strip + 32 * half + (t * p->depth + first + at) * HWQ_STRIP) : quads_from(strip + 32 * half, t * p->depth + first + at, left);
                low[t] = _mm256_sub_epi16(pair_of(quads, front), low_points);
                high[t] = _mm256_sub_epi16(pair_of(quads, back), high_points);
            }
            weigh_pairs(high, to, p->u_step);
            weigh_pairs(low, to + TILE_QUAD / 2, p->u_step);
        }
    }
}
static void weigh_strip(const plan *p, const int8_t *strip, int64_t first, int64_t count, const int32_t *zero_points, int64_t s, int16_t *u)
{
    if (p->depth % HWQ_QUAD == 0) weigh_quads(1, p, strip, first, count, zero_points, s, u);
    else weigh_quads(0, p, strip, first, count, zero_points, s, u);
}

INLINE void multiply_rows(const int rows, const int vectors, const plan *p, int64_t taken, int first, const int16_t *u, const int16_t *v, int32_t *m)
{
    __m256i acc[TILE_ROWS][TILE_VECTORS];
    for (int r = 0; r < rows; r++)
        for (int i = 0; i < vectors; i++) acc[r][i] = first ? _mm256_setzero_si256() : load(m + (r * vectors + i) * 8);
    const int16_t *x0 = v, *x1 = v + p->v_tile, *x2 = v + 2 * p->v_tile;
    for (int64_t from = 0; from < taken; from += WINOGRAD_CHANNELS, x0 += WINOGRAD_V_STEP, x1 += WINOGRAD_V_STEP, x2 += WINOGRAD_V_STEP)
        for (int64_t at = 0; at < WINOGRAD_CHANNELS && from + at < taken; at += HWQ_QUAD, u += TILE_QUAD) {
            tile_row(vectors, 1, x0 + at, u, acc[0]);
            if (rows > 1) tile_row(vectors, 1, x1 + at, u, acc[1]);
            if (rows > 2) tile_row(vectors, 1, x2 + at, u, acc[2]);
        }
    for (int r = 0; r < rows; r++)
        for (int i = 0; i < vectors; i++) store(m + (r * vectors + i) * 8, acc[r][i]);
}

static void multiply(const plan *p, int64_t rows, int tall, int broad, int64_t vectors, int64_t taken, int first, const int16_t *u, const int16_t *v, int32_t *m)
{
    for (int i = 0; i < tall; i++)
        for (int j = 0; j < broad; j++) {
            const int64_t at = SIDE * i + j;
            for (int64_t row = 0, some; row < rows; row += some) {
                const int16_t *from = v + at * WINOGRAD_CHANNELS + row * p->v_tile, *weights = u + at * p->u_step;
                int32_t *to = m + at * WINOGRAD_M_STEP + row * vectors * HWQ_STRIP;
                some = rows - row == 4 ? 2 : rows - row < TILE_ROWS ? rows - row : TILE_ROWS;
#define ROWS(n) \
    do { \
        if (vectors == 2) multiply_rows(n, 4, p, taken, first, weights, from, to); \
        else multiply_rows(n, 2, p, taken, first, weights, from, to); \
    } while (0)
                if (some == 3) ROWS(3);
                else if (some == 2) ROWS(2);
                else ROWS(1);
#undef ROWS
            }
        }
}

/* Eight columns of a tile to their accumulators: [row][column of the tile][column of 32]. */
INLINE void gather_tile(const int rows, const int columns, const int32_t *m, const int32_t *terms, int32_t *acc)
{
    __m256i lines[LONG][SIDE];
    for (int j = 0; j < columns + 2; j++) {
        __m256i sums[SIDE], gathered[LONG];
        for (int i = 0; i < rows + 2; i++) sums[i] = load(m + (SIDE * i + j) * WINOGRAD_M_STEP);
        gather(rows, sums, gathered);
        for (int i = 0; i < rows; i++) lines[i][j] = gathered[i];
    }
    const __m256i ninth = _mm256_set1_epi32(0x38E38E39), start = load(terms); /* 9 * 0x38E38E39 = 1 modulo 2^32 */
#pragma GCC unroll 4
    for (int i = 0; i < rows; i++) {
        __m256i y[LONG];
        gather(columns, lines[i], y);
        for (int j = 0; j < columns; j++)
            store(acc + (LONG * i + j) * COLUMNS, _mm256_add_epi32(_mm256_srai_epi32(_mm256_mullo_epi32(y[j], ninth), twos(rows, i) + twos(columns, j)), start));
    }
}

INLINE void finish_tile(const int rows, const int columns, const hwq_conv *c, const tile *t, const int32_t *m, const int32_t *terms, const finish *f,
                        const hwq_epilogue *e, int64_t channel, int64_t width, int64_t begin, int64_t end, char *out)
{
    const finish here = *f; /* the output cannot alias it */
    const int64_t across = c->window.out[2], size = hwq_type_size(e->out_type);
    int32_t acc[LONG * LONG * COLUMNS];
    for (int64_t at = 0; at < width; at += 8) gather_tile(rows, columns, m + at, terms + at, acc + at);
    for (int64_t i = 0; i < rows && t->y + i < c->window.out[1]; i++) {
        const int64_t at = (t->y + i) * across + t->x, inside = across - t->x < columns ? across - t->x : columns;
        const int64_t from = begin > at ? begin - at : 0, to = end - at < inside ? end - at : inside;
        const int32_t *line = acc + LONG * i * COLUMNS;
        char *place = out + at * here.stride * size;
        if (from < to && !here.fast) hwq_requantize(e, to - from, width, channel, line + from * COLUMNS, HWQ_S32, COLUMNS, place + from * here.stride * size, here.stride);
        for (int64_t j = from; here.fast && j < to; j++) {
            const __m256i sums[TILE_VECTORS] = {load(line + j * COLUMNS), load(line + j * COLUMNS + 8), load(line + j * COLUMNS + 16), load(line + j * COLUMNS + 24)};
            if (width > HWQ_STRIP) finish_row(4, &here, sums, place + j * here.stride);
            else finish_row(2, &here, sums, place + j * here.stride);
        }
    }
}
EACH_FORM(finish_tile, (const hwq_conv *c, const tile *t, const int32_t *m, const int32_t *terms, const finish *f, const hwq_epilogue *e, int64_t channel, int64_t width,
                        int64_t begin, int64_t end, char *out), c, t, m, terms, f, e, channel, width, begin, end, out)

void hwq_conv_winograd_4x4__avx2(const hwq_conv *c, const hwq_winograd_plan *p) { convolve(c, p); }

HWQ_TARGET_END
#endif
