/* Tiles of vpdpbusd on 512-bit vectors: up to 14 positions x 32 columns, 28 accumulators, two registers of weights, one of a. What GEMM
 * and the convolutions share. Include inside an AVX512-VNNI region, after dot_vnni.h.
 *
 * A position is a row of a, or an output position of an image: bytes whose quads of k each go, broadcast, against a quad of k of 32
 * columns. Positions come in two halves of at most 7 equally distant ones, the second anywhere: a line of 14 or two lines of 7. Per quad:
 * 14 broadcasts, 2 loads, 28 dots, 14 cycles of two ports. One half addresses its positions from one register (0, 1, 2, 4 steps, 3 and 5).
 *
 * k is cut into chunks whose weights, 128 bytes a quad, stay in half of a first-level cache while all positions of a block pass; between chunks
 * the accumulators rest in memory, 2 accesses for 128 dots. Without chunks weights come from the second cache for every tile, twice the bytes a cycle
 * that it gives where two threads share it. */
#ifndef HWQ_TILE_AVX512VNNI_H
#define HWQ_TILE_AVX512VNNI_H

enum { TILE_HALF = 7, TILE_MOST = 2 * TILE_HALF, TILE_COLUMNS = 2 * HWQ_STRIP, TILE_CHUNK = 128 /* quads */ };

/* How a tile leaves: in registers where it is R4 to bytes, the common case; else by the epilogue of the path. */
typedef struct {
    const hwq_epilogue *epilogue;
    const float *scales; /* of the tile's first column */
    int64_t channel, width, stride;
    __m512 lo, hi;
    __m512i zero_point, lo_bytes, zero_point_words;
    int fast, is_unsigned;
} finish;

static finish finish_of(const hwq_epilogue *e, int64_t stride)
{
    return (finish){.epilogue = e, .stride = stride, .lo = _mm512_set1_ps((float)(e->lo - e->zero_point)), .hi = _mm512_set1_ps((float)(e->hi - e->zero_point)),
                    .zero_point = _mm512_set1_epi32(e->zero_point), .lo_bytes = _mm512_set1_epi8((char)e->lo),
                    .zero_point_words = _mm512_set1_epi16((short)e->zero_point), .is_unsigned = e->out_type == HWQ_U8,
                    .fast = e->kind == HWQ_KIND_REQUANT && e->rounding == HWQ_ROUND_FP32 && e->out_type <= HWQ_S8 && !e->float_bias && !e->lut && !e->residual_op};
}

/* `width` columns from e's `channel` on. e, not f->epilogue: a tile's own epilogue lives no longer than the tile. */
static void finish_columns(finish *f, const hwq_epilogue *e, int64_t channel, int64_t width)
{
    f->channel = channel, f->width = width;
    f->scales = e->scales_f32 ? e->scales_f32 + (e->channel_step ? channel : 0) : NULL;
}

/* One position of 32 channels by R4, as int16. Only the upper clamp is needed in floats: minps leaves NaN, which like all that is below int32
 * becomes INT32_MIN, and packing saturates that down to the lower clamp's side. */
static inline __attribute__((always_inline)) __m512i round32(const finish *f, const __m512i acc[2])
{
    const float *scales = f->scales;
    const int step = f->epilogue->channel_step;
    const __m512 first = _mm512_mul_ps(_mm512_cvtepi32_ps(acc[0]), step ? _mm512_loadu_ps(scales) : _mm512_set1_ps(scales[0]));
    const __m512 second = _mm512_mul_ps(_mm512_cvtepi32_ps(acc[1]), step ? _mm512_loadu_ps(scales + HWQ_STRIP) : _mm512_set1_ps(scales[0]));
    const __m512i words = _mm512_packs_epi32(_mm512_cvtps_epi32(_mm512_min_ps(f->hi, first)), _mm512_cvtps_epi32(_mm512_min_ps(f->hi, second)));
    return _mm512_adds_epi16(words, f->zero_point_words);
}

static inline __attribute__((always_inline)) void put_two(const finish *f, const __m512i above[2], const __m512i below[2], int both, char *out, char *next)
{
    const __m512i a = round32(f, above), b = both ? round32(f, below) : a, order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    const __m512i bytes = f->is_unsigned ? _mm512_max_epu8(_mm512_packus_epi16(a, b), f->lo_bytes) : _mm512_max_epi8(_mm512_packs_epi16(a, b), f->lo_bytes);
    const __m512i lines = _mm512_permutexvar_epi32(order, bytes);
    _mm256_storeu_si256((__m256i *)out, _mm512_castsi512_si256(lines));
    if (both) _mm256_storeu_si256((__m256i *)next, _mm512_extracti64x4_epi64(lines, 1));
}

/* A piece of k whose bytes lie together, in weights and a: bytes from a position's first; quads. */
typedef struct {
    int64_t offset, quads;
} piece;

/* A chunk of k. */
typedef struct {
    const piece *pieces;
    int64_t count;
    const int8_t *weights;
    int64_t strip_bytes;     /* from a strip of 16 columns to the next */
    const int32_t *terms;    /* 32 columns' start, with the first chunk */
    int64_t step;            /* bytes from position to position of a half */
    int vectors, first, last; /* vectors of 16 columns, 1 or 2; is it the first chunk, the last? */
} part;

/* (first + second) positions x vectors of 16 columns. a: of each half's first position; out: likewise; rest: their accumulators between chunks. */
static inline __attribute__((always_inline)) void dot_tile(const int first, const int second, const int vectors, const part *g, const uint8_t *const a[2],
                                                       int32_t *rest, const finish *f, char *const out[2])
{
    __m512i acc_s32x16[TILE_MOST][2];
    const int positions = first + second;
#pragma GCC unroll 14
    for (int i = 0; i < positions; i++)
#pragma GCC unroll 2
        for (int v = 0; v < vectors; v++) acc_s32x16[i][v] = _mm512_loadu_si512(g->first ? g->terms + v * HWQ_STRIP : rest + (i * vectors + v) * HWQ_STRIP);
    const int64_t step = g->step, three = 3 * step, five = 5 * step, strip_bytes = g->strip_bytes;
    const int8_t *w = g->weights;
    for (int64_t p = 0; p < g->count; p++) {
        const uint8_t *x = a[0] + g->pieces[p].offset, *y = a[1] + g->pieces[p].offset;
        for (const int8_t *end = w + g->pieces[p].quads * (HWQ_STRIP * HWQ_QUAD); w < end; w += HWQ_STRIP * HWQ_QUAD, x += HWQ_QUAD, y += HWQ_QUAD) {
            const __m512i w0 = _mm512_loadu_si512(w), w1 = vectors > 1 ? _mm512_loadu_si512(w + strip_bytes) : w0;
#define AT(base, i) ((i) == 0 ? base : (i) == 1 ? base + step : (i) == 2 ? base + 2 * step : (i) == 3 ? base + three : (i) == 4 ? base + 4 * step : (i) == 5 ? base + five : base + 2 * three)
#pragma GCC unroll 14
            for (int i = 0; i < positions; i++) {
                int32_t bytes;
                memcpy(&bytes, i < first ? AT(x, i) : AT(y, i - first), 4);
                const __m512i quad = _mm512_set1_epi32(bytes);
                acc_s32x16[i][0] = DOT(acc_s32x16[i][0], quad, w0);
                if (vectors > 1) acc_s32x16[i][1] = DOT(acc_s32x16[i][1], quad, w1);
            }
#undef AT
        }
    }
#define OUT(i) ((i) < first ? out[0] + (i) * here.stride : out[1] + ((i) - first) * here.stride)
    if (!g->last || !f->fast) {
#pragma GCC unroll 14
        for (int i = 0; i < positions; i++)
#pragma GCC unroll 2
            for (int v = 0; v < vectors; v++) _mm512_storeu_si512(rest + (i * vectors + v) * HWQ_STRIP, acc_s32x16[i][v]);
        if (!g->last) return;
        hwq_requantize(f->epilogue, first, f->width, f->channel, rest, HWQ_S32, vectors * HWQ_STRIP, out[0], f->stride);
        const hwq_epilogue below = hwq_epilogue_at(f->epilogue, first, 0);
        if (second) hwq_requantize(&below, second, f->width, f->channel, rest + first * vectors * HWQ_STRIP, HWQ_S32, vectors * HWQ_STRIP, out[1], f->stride);
        return;
    }
    const finish here = *f; /* the output cannot alias it */
    if (vectors == 2 && here.width == TILE_COLUMNS) {
#pragma GCC unroll 7
        for (int i = 0; i < positions; i += 2)
            put_two(&here, acc_s32x16[i], acc_s32x16[i + 1 < positions ? i + 1 : i], i + 1 < positions, OUT(i), OUT(i + 1));
        return;
    }
#pragma GCC unroll 2
    for (int v = 0; v < vectors; v++) {
        const int64_t left = here.width - v * HWQ_STRIP;
        const __mmask16 mask = (__mmask16)(left >= HWQ_STRIP ? 0xFFFF : (1 << left) - 1);
        const __m512 scale = here.epilogue->channel_step ? _mm512_maskz_loadu_ps(mask, here.scales + v * HWQ_STRIP) : _mm512_set1_ps(here.scales[0]);
#pragma GCC unroll 14
        for (int i = 0; i < positions; i++) {
            const __m512 x = _mm512_mul_ps(_mm512_cvtepi32_ps(acc_s32x16[i][v]), scale);
            const __m512i y = _mm512_cvtps_epi32(_mm512_min_ps(_mm512_max_ps(x, here.lo), here.hi));
            const __m128i bytes = _mm512_cvtepi32_epi8(_mm512_add_epi32(y, here.zero_point));
            _mm_mask_storeu_epi8(OUT(i) + v * HWQ_STRIP, mask, bytes);
        }
    }
#undef OUT
}

/* A half of `first` positions and one of as many, one less or none. */
static void some_positions(int64_t first, int64_t second, const part *g, const uint8_t *const a[2], int32_t *rest, const finish *f, char *const out[2])
{
#define BOTH(n, m) \
    do { \
        if (g->vectors > 1) dot_tile(n, m, 2, g, a, rest, f, out); \
        else dot_tile(n, m, 1, g, a, rest, f, out); \
        return; \
    } while (0)
#define CASE(n) case n: if (second == n) BOTH(n, n); else BOTH(n, n - 1);
    switch (first) { CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6) default: if (second == 7) BOTH(7, 7); else BOTH(7, 6); }
#undef CASE
#undef BOTH
}

#endif
