/* Exact integer Winograd F(4x4, 3x3) with vpdpwssd (the scheme and its bounds: winograd_4x4.h; when it runs: winograd_4x4.c).
 *
 * For up to 64 tiles, which may belong to several images: V of all channels; then for 32 columns and up to 128 channels U, made here of the packed bytes (twice
 * their size per position, 36 positions: eight times as many bytes would else come from the third-level cache or from memory, for which a batch of one has no
 * time), and M = V U in tiles of up to 14 x 32 (tile_avx512vnni.h). vpdpwssd multiplies half of what vpdpbusd does, so a quarter of the products is half of the
 * instructions. Y leaves in registers where the epilogue is R4 to bytes.
 * Measured on a Zen 5, one thread, gcc 12, R4 to bytes, beside the direct tiles (95 to 99 percent of two vpdpbusd a cycle) in the same process: 1.52 times their speed
 * at 56 x 56 x 64, 1.60 at 28 x 28 x 128, 1.29 at 14 x 14 x 256, where 16 tiles must repay the transform of 590 KB of weights; 7 x 7 x 512 has four tiles and runs directly,
 * four such images at once 1.12. At 56 x 56 x 64 the products take 74 percent of the time at 93 percent of two vpdpwssd a cycle, V 9, U 2, Y 13; at 14 x 14 x 256 U takes 23. */
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

typedef __m512i vector;
enum { LANES = 32 };
static inline vector add16(vector a, vector b) { return _mm512_add_epi16(a, b); }
static inline vector sub16(vector a, vector b) { return _mm512_sub_epi16(a, b); }
static inline vector four16(vector a) { return _mm512_slli_epi16(a, 2); }
static inline vector six16(vector a) { return _mm512_mullo_epi16(a, _mm512_set1_epi16(6)); }
static inline vector all16(int16_t v) { return _mm512_set1_epi16(v); }
static inline vector add32(vector a, vector b) { return _mm512_add_epi32(a, b); }
static inline vector sub32(vector a, vector b) { return _mm512_sub_epi32(a, b); }
static inline vector four32(vector a) { return _mm512_slli_epi32(a, 2); }
static inline void store(void *p, vector v) { _mm512_storeu_si512(p, v); }
static inline vector widen(const uint8_t *bytes, int64_t count, int is_unsigned)
{
    const __m256i some = count < LANES ? _mm512_castsi512_si256(_mm512_maskz_loadu_epi8(((__mmask64)1 << count) - 1, bytes)) : _mm256_loadu_si256((const __m256i *)bytes);
    return is_unsigned ? _mm512_cvtepu8_epi16(some) : _mm512_cvtepi8_epi16(some);
}
#include "winograd_4x4_tiles.h"

/* Two channels of a quad as int16, those that `pair` names. */
static inline __m512i pair_of(__m512i quads, __m512i pair) { return _mm512_srai_epi16(_mm512_shuffle_epi8(quads, pair), 8); }

/* `count` channels from `first` on of a strip, which lie tap by tap. u: [position][strip][pair of channels][column][channel of the pair]. */
INLINE void weigh_quads(const int whole, const plan *p, const int8_t *strip, int64_t first, int64_t count, const int32_t *zero_points, int64_t s, int16_t *u)
{
    u += s * p->taken * HWQ_STRIP;
    const __m512i front = _mm512_broadcast_i32x4(_mm_setr_epi8(-1, 0, -1, 1, -1, 4, -1, 5, -1, 8, -1, 9, -1, 12, -1, 13));
    const __m512i back = _mm512_broadcast_i32x4(_mm_setr_epi8(-1, 2, -1, 3, -1, 6, -1, 7, -1, 10, -1, 11, -1, 14, -1, 15));
    const __m512i points = _mm512_loadu_si512(zero_points), both = _mm512_or_si512(_mm512_slli_epi32(points, 16), _mm512_and_si512(points, _mm512_set1_epi32(0xFFFF)));
    for (int64_t at = 0; at < count; at += HWQ_QUAD, u += HWQ_QUAD * HWQ_STRIP) {
        const int64_t left = whole ? HWQ_QUAD : count - at;
        const __m512i kept = _mm512_set1_epi32(left < HWQ_QUAD ? (int32_t)((1u << 8 * left) - 1) : -1); /* no zero points beyond the channels */
        const __m512i low_points = _mm512_and_si512(both, pair_of(kept, front)), high_points = _mm512_and_si512(both, pair_of(kept, back));
        __m512i low[9], high[9];
        for (int t = 0; t < 9; t++) {
            const __m512i quads = whole ? _mm512_loadu_si512(strip + (t * p->depth + first + at) * HWQ_STRIP) : quads_from(strip, t * p->depth + first + at, left);
            low[t] = _mm512_sub_epi16(pair_of(quads, front), low_points);
            high[t] = _mm512_sub_epi16(pair_of(quads, back), high_points);
        }
        weigh_pairs(low, u, p->u_step);
        weigh_pairs(high, u + 2 * HWQ_STRIP, p->u_step);
    }
}
static void weigh_strip(const plan *p, const int8_t *strip, int64_t first, int64_t count, const int32_t *zero_points, int64_t s, int16_t *u)
{
    if (p->depth % HWQ_QUAD == 0) weigh_quads(1, p, strip, first, count, zero_points, s, u);
    else weigh_quads(0, p, strip, first, count, zero_points, s, u);
}

/* A tile's dots at one position, from 0 or from what M holds. */
INLINE void multiply_rows(const int rows, const int vectors, const part *g, const uint8_t *const a[2], int32_t *m)
{
    __m512i acc_s32x16[TILE_MOST][2];
#pragma GCC unroll 14
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 2
        for (int s = 0; s < vectors; s++) acc_s32x16[r][s] = g->first ? _mm512_setzero_si512() : _mm512_loadu_si512(m + (r * vectors + s) * HWQ_STRIP);
    dots((rows + 1) / 2, rows / 2, vectors, 0, g, a, acc_s32x16);
#pragma GCC unroll 14
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 2
        for (int s = 0; s < vectors; s++) _mm512_storeu_si512(m + (r * vectors + s) * HWQ_STRIP, acc_s32x16[r][s]);
}
typedef void rows_fn(const part *g, const uint8_t *const a[2], int32_t *m);
#define ONE(n) \
    TILE_FUNCTION void rows_##n##_1(const part *g, const uint8_t *const a[2], int32_t *m) { multiply_rows(n, 1, g, a, m); } \
    TILE_FUNCTION void rows_##n##_2(const part *g, const uint8_t *const a[2], int32_t *m) { multiply_rows(n, 2, g, a, m); }
EACH_TILE(ONE)
#undef ONE

static void multiply(const plan *p, int64_t rows, int tall, int broad, int64_t vectors, int64_t taken, int first, const int16_t *u, const int16_t *v, int32_t *m)
{
#define ONE(n) {rows_##n##_1, rows_##n##_2},
    static rows_fn *const functions[TILE_MOST][2] = {EACH_TILE(ONE)};
#undef ONE
    piece pieces[4];
    part g = {.pieces = pieces, .strip_bytes = p->taken * HWQ_STRIP * 2, .step = p->v_tile * 2, .vectors = (int)vectors, .first = first};
    for (int64_t at = 0; at < taken; at += WINOGRAD_CHANNELS)
        pieces[g.count++] = (piece){at / WINOGRAD_CHANNELS * WINOGRAD_V_STEP * 2, (taken - at < WINOGRAD_CHANNELS ? (taken - at + HWQ_QUAD - 1) / HWQ_QUAD * HWQ_QUAD : WINOGRAD_CHANNELS) / 2};
    for (int64_t row = 0, some; row < rows; row += some, v += some * p->v_tile, m += some * vectors * HWQ_STRIP) {
        some = rows - row > TILE_MOST ? (rows - row + 1) / 2 : rows - row;
        for (int i = 0; i < tall; i++)
            for (int j = 0; j < broad; j++) {
                const uint8_t *a = (const uint8_t *)(v + (SIDE * i + j) * WINOGRAD_CHANNELS);
                g.weights = (const int8_t *)(u + (SIDE * i + j) * p->u_step);
                functions[some - 1][vectors - 1](&g, (const uint8_t *const[]){a, a + (some + 1) / 2 * g.step}, m + (SIDE * i + j) * WINOGRAD_M_STEP);
            }
    }
}

/* ---- Y ---- */

/* 16 columns, or `width`, of a tile's outputs that lie in [begin, end) of its image. out: of the image's first output. The next columns' M, here of as many tiles
 * as a group has, comes nearer meanwhile. */
INLINE void finish_strip(const int rows, const int columns, const hwq_conv *c, const tile *t, const int32_t *m, const int32_t *terms, const finish *f,
                        int64_t column, int64_t width, int64_t begin, int64_t end, char *out)
{
    __m512i lines[LONG][SIDE];
#pragma GCC unroll 6
    for (int j = 0; j < columns + 2; j++) {
        __m512i sums[SIDE], gathered[LONG];
#pragma GCC unroll 6
        for (int i = 0; i < rows + 2; i++) {
            sums[i] = _mm512_loadu_si512(m + (SIDE * i + j) * WINOGRAD_M_STEP);
            _mm_prefetch((const char *)(m + (SIDE * i + j) * WINOGRAD_M_STEP + COLUMNS), _MM_HINT_T0);
        }
        gather(rows, sums, gathered);
#pragma GCC unroll 4
        for (int i = 0; i < rows; i++) lines[i][j] = gathered[i];
    }
    const __m512i ninth = _mm512_set1_epi32(0x38E38E39), start = _mm512_loadu_si512(terms); /* 9 * 0x38E38E39 = 1 modulo 2^32 */
    const int64_t across = c->window.out[2], size = hwq_type_size(f->epilogue->out_type), first = t->y * across + t->x;
    const int whole = f->fast && width >= HWQ_STRIP && t->y + rows <= c->window.out[1] && t->x + columns <= across && begin <= first &&
                      first + (rows - 1) * across + columns <= end;
    const __m512 scale = _mm512_loadu_ps(f->scales + column), scales[2] = {scale, scale};
    const __mmask16 mask = (__mmask16)(width >= HWQ_STRIP ? 0xFFFF : (1 << width) - 1);
    int32_t acc[LONG * LONG * HWQ_STRIP];
#pragma GCC unroll 4
    for (int i = 0; i < rows; i++) {
        __m512i y[LONG];
        gather(columns, lines[i], y);
#pragma GCC unroll 4
        for (int j = 0; j < columns; j++)
            y[j] = _mm512_add_epi32(_mm512_srai_epi32(_mm512_mullo_epi32(y[j], ninth), (unsigned)(twos(rows, i) + twos(columns, j))), start);
        if (!whole) {
            for (int j = 0; j < columns; j++) _mm512_storeu_si512(acc + (i * LONG + j) * HWQ_STRIP, y[j]);
            continue;
        }
        char *line = out + (first + i * across) * f->stride;
        const __m512i bytes = sixteens(f, (const __m512i[]){y[0], y[1], y[columns - 2], y[columns - 1]}, scales);
        const __m128i pixels[LONG] = {_mm512_castsi512_si128(bytes), _mm512_extracti32x4_epi32(bytes, 1), _mm512_extracti32x4_epi32(bytes, 2), _mm512_extracti32x4_epi32(bytes, 3)};
#pragma GCC unroll 4
        for (int j = 0; j < columns; j++) _mm_storeu_si128((__m128i *)(line + j * f->stride), pixels[j]);
    }
    for (int i = 0; !whole && i < rows && t->y + i < c->window.out[1]; i++) {
        const int64_t at = first + i * across, inside = across - t->x < columns ? across - t->x : columns;
        const int64_t from = begin > at ? begin - at : 0, to = end - at < inside ? end - at : inside;
        const int32_t *sums = acc + i * LONG * HWQ_STRIP;
        char *line = out + at * f->stride * size;
        if (from < to && !f->fast)
            hwq_requantize(f->epilogue, to - from, width < HWQ_STRIP ? width : HWQ_STRIP, f->channel + column, sums + from * HWQ_STRIP, HWQ_S32, HWQ_STRIP,
                           line + from * f->stride * size, f->stride);
        for (int64_t j = from; f->fast && j < to; j++) {
            const __m512i y = _mm512_loadu_si512(sums + j * HWQ_STRIP);
            _mm_mask_storeu_epi8(line + j * f->stride, mask, _mm512_castsi512_si128(sixteens(f, (const __m512i[]){y, y, y, y}, scales)));
        }
    }
}
INLINE void finish_tile(const int rows, const int columns, const hwq_conv *c, const tile *t, const int32_t *m, const int32_t *terms, const finish *f,
                        const hwq_epilogue *e, int64_t channel, int64_t width, int64_t begin, int64_t end, char *out)
{
    (void)e, (void)channel; /* f has them */
    const int64_t bytes = HWQ_STRIP * hwq_type_size(f->epilogue->out_type);
    for (int64_t s = 0; s * HWQ_STRIP < width; s++)
        finish_strip(rows, columns, c, t, m + s * HWQ_STRIP, terms + s * HWQ_STRIP, f, s * HWQ_STRIP, width - s * HWQ_STRIP, begin, end, out + s * bytes);
}
EACH_FORM(finish_tile, (const hwq_conv *c, const tile *t, const int32_t *m, const int32_t *terms, const finish *f, const hwq_epilogue *e, int64_t channel, int64_t width,
                        int64_t begin, int64_t end, char *out), c, t, m, terms, f, e, channel, width, begin, end, out)

void hwq_conv_winograd_4x4__avx512vnni(const hwq_conv *c, const hwq_winograd_plan *p) { convolve(c, p); }

HWQ_TARGET_END
#endif
