/* Tiles of vpdpbusd on 512-bit vectors: up to 14 positions x 32 columns, 28 accumulators, two registers of weights, one of a. What GEMM
 * and the convolutions share. Include inside an AVX512-VNNI region, after dot_vnni.h.
 *
 * A position is a row of a, or an output position of an image: bytes whose quads of k each go, broadcast, against a quad of k of 32
 * columns. Positions come in two halves of at most 7 equally distant ones, the second anywhere: a line of 14 or two lines of 7. Per quad:
 * 14 broadcasts, 2 loads, 28 dots, 14 cycles of two ports. One half addresses its positions from one register (0, 1, 2, 4 steps, 3 and 5).
 *
 * k is cut into chunks whose weights, 128 bytes a quad, stay in half of a first-level cache while all positions of a block pass; between chunks
 * the accumulators rest in memory, 2 accesses for 128 dots. Without chunks weights come from the second cache for every tile, twice the bytes a cycle
 * that it gives where two threads share it. While a chunk's first tile runs, the next chunk's first strip comes nearer, its second strip while the second
 * does: from memory, as every layer's weights of a great network do, 1.3 to 1.5 times as fast (7 x 7 x 512 by 3 x 3 and 1 x 1; 28 x 768 x 3072 1.7, 1024^3 1.06), from the third
 * cache as fast as without (Zen 5). */
#ifndef HWQ_TILE_AVX512VNNI_H
#define HWQ_TILE_AVX512VNNI_H

enum { TILE_HALF = 7, TILE_MOST = 2 * TILE_HALF, TILE_COLUMNS = 2 * HWQ_STRIP };

/* How a tile leaves: in registers where it is R4 to bytes with scales below 1 in size, the common case; else by the epilogue of the path. */
typedef struct {
    const hwq_epilogue *epilogue;
    float scales[TILE_COLUMNS]; /* of the tile's columns */
    int64_t channel, width, stride;
    __m512i zero_point;           /* int16, of an s8 result */
    __m512i lo, hi, flip;         /* bytes: the clamp of an s8 result; 0x80 where the result is u8 */
    int fast, bytes;              /* of the tile; of the epilogue */
} finish;

static finish finish_of(const hwq_epilogue *e, int64_t stride)
{
    const int flip = e->out_type == HWQ_U8 ? 0x80 : 0;
    return (finish){.epilogue = e, .stride = stride, .zero_point = _mm512_set1_epi16((short)(e->zero_point - flip)), .lo = _mm512_set1_epi8((char)(e->lo - flip)),
                    .hi = _mm512_set1_epi8((char)(e->hi - flip)), .flip = _mm512_set1_epi8((char)flip),
                    .bytes = e->kind == HWQ_KIND_REQUANT && e->rounding == HWQ_ROUND_FP32 && e->out_type <= HWQ_S8 && !e->float_bias && !e->lut && !e->residual_op};
}

/* `width` columns from e's `channel` on. e, not f->epilogue: a tile's own epilogue lives no longer than the tile. */
static void finish_columns(finish *f, const hwq_epilogue *e, int64_t channel, int64_t width)
{
    f->channel = channel, f->width = width, f->fast = f->bytes;
    for (int64_t j = 0; f->bytes && j < TILE_COLUMNS; j++) {
        f->scales[j] = j < width ? e->scales_f32[e->channel_step ? channel + j : 0] : 0.0f;
        f->fast &= f->scales[j] > -1.0f && f->scales[j] < 1.0f;
    }
}

/* Four vectors of sums by R4: 16 bytes of each, one behind the other. A product with a scale below 1 stays in int32, so no clamp is needed before
 * it is packed with saturation, nor before the zero point is added so. */
static inline __attribute__((always_inline)) __m512i sixteens(const finish *f, const __m512i acc[4], const __m512 scales[2])
{
    __m512i words[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) words[i] = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_cvtepi32_ps(acc[i]), scales[i % 2]));
    const __m512i low = _mm512_adds_epi16(_mm512_packs_epi32(words[0], words[1]), f->zero_point);
    const __m512i high = _mm512_adds_epi16(_mm512_packs_epi32(words[2], words[3]), f->zero_point);
    const __m512i bytes = _mm512_max_epi8(_mm512_min_epi8(_mm512_packs_epi16(low, high), f->hi), f->lo);
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    return _mm512_permutexvar_epi32(order, _mm512_xor_si512(bytes, f->flip));
}

static inline __attribute__((always_inline)) void put32(__m256i bytes, int64_t width, char *out)
{
    if (width == TILE_COLUMNS) _mm256_storeu_si256((__m256i *)out, bytes);
    else _mm512_mask_storeu_epi8(out, ((__mmask64)1 << width) - 1, _mm512_castsi256_si512(bytes));
}

/* `left` of the packed weights' k from any k on, four at most, as a quad of 16 columns; 0 behind them. */
static inline __m512i quads_from(const int8_t *strip, int64_t k, int64_t left)
{
    const int64_t shift = k % HWQ_QUAD, count = left < HWQ_QUAD ? left : HWQ_QUAD;
    const int8_t *at = strip + k / HWQ_QUAD * HWQ_STRIP * HWQ_QUAD;
    __m512i quads = _mm512_loadu_si512(at);
    if (shift) quads = _mm512_srl_epi32(quads, _mm_cvtsi64_si128(8 * shift));
    if (shift + count > HWQ_QUAD)
        quads = _mm512_or_si512(quads, _mm512_sll_epi32(_mm512_loadu_si512(at + HWQ_STRIP * HWQ_QUAD), _mm_cvtsi64_si128(32 - 8 * shift)));
    return count < HWQ_QUAD ? _mm512_and_si512(quads, _mm512_set1_epi32((int32_t)((1u << 8 * count) - 1))) : quads;
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
    int64_t ahead[2];        /* bytes from a quad's weights of the first strip to what comes nearer meanwhile, of the next chunk; 0: nothing */
    int vectors, first, last; /* vectors of 16 columns, 1 or 2; is it the first chunk, the last? */
} part;

/* gcc 12 holds twice, four and six times a step in registers of their own, and what is then left over in vector registers: the next tile's addresses would come
 * from there behind the last tile's dots. */
#if defined(__GNUC__) && !defined(HWQ_NO_ASM)
#define OPAQUE(a, b, c) __asm__("" : "+r"(a), "+r"(b), "+r"(c))
#else
#define OPAQUE(a, b, c) (void)0
#endif

/* What comes nearer while tile number `tile` of a chunk runs, given the bytes to the next chunk: a strip in each of the first two tiles, both where there is but one. */
static inline void reach(part *g, int64_t tile, int64_t tiles, int64_t next)
{
    g->ahead[0] = tile == 0 ? next : 0;
    g->ahead[1] = tile == 1 || (tile == 0 && tiles == 1) ? next + g->strip_bytes : 0;
}

/* The dots of a chunk, (first + second) positions x vectors of 16 columns, added to acc. a: of each half's first position. far: does anything come nearer? */
static inline __attribute__((always_inline)) void dots(const int first, const int second, const int vectors, const int far, const part *g, const uint8_t *const a[2],
                                                       __m512i acc_s32x16[TILE_MOST][2])
{
    const int positions = first + second;
    int64_t step = g->step, three = 3 * step, five = 5 * step;
    const int64_t strip_bytes = g->strip_bytes, ahead = g->ahead[0], beyond = g->ahead[1];
    const int8_t *w = g->weights;
    for (int64_t p = 0; p < g->count; p++) {
        const uint8_t *x = a[0] + g->pieces[p].offset, *y = a[1] + g->pieces[p].offset;
        for (const int8_t *end = w + g->pieces[p].quads * (HWQ_STRIP * HWQ_QUAD); w < end; w += HWQ_STRIP * HWQ_QUAD, x += HWQ_QUAD, y += HWQ_QUAD) {
            OPAQUE(step, three, five);
            if (far) _mm_prefetch((const char *)w + ahead, _MM_HINT_T1), _mm_prefetch((const char *)w + beyond, _MM_HINT_T1);
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
}

/* A tile through one chunk. out: of each half's first position; rest: the accumulators between chunks. */
static inline __attribute__((always_inline)) void dot_tile(const int first, const int second, const int vectors, const part *g, const uint8_t *const a[2],
                                                       int32_t *rest, const finish *f, char *const out[2])
{
    __m512i acc_s32x16[TILE_MOST][2];
    const int positions = first + second;
#pragma GCC unroll 14
    for (int i = 0; i < positions; i++)
#pragma GCC unroll 2
        for (int v = 0; v < vectors; v++) acc_s32x16[i][v] = _mm512_loadu_si512(g->first ? g->terms + v * HWQ_STRIP : rest + (i * vectors + v) * HWQ_STRIP);
    if (g->ahead[0] | g->ahead[1]) dots(first, second, vectors, 1, g, a, acc_s32x16);
    else dots(first, second, vectors, 0, g, a, acc_s32x16);
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
    const __m512 scales[2] = {_mm512_loadu_ps(here.scales), vectors > 1 ? _mm512_loadu_ps(here.scales + HWQ_STRIP) : _mm512_loadu_ps(here.scales)};
#define SUMS(i) acc_s32x16[(i) < positions ? (i) : positions - 1]
    if (vectors > 1) {
#pragma GCC unroll 7
        for (int i = 0; i < positions; i += 2) {
            const __m512i lines = sixteens(&here, (const __m512i[]){SUMS(i)[0], SUMS(i)[1], SUMS(i + 1)[0], SUMS(i + 1)[1]}, scales);
            put32(_mm512_castsi512_si256(lines), here.width, OUT(i));
            if (i + 1 < positions) put32(_mm512_extracti64x4_epi64(lines, 1), here.width, OUT(i + 1));
        }
        return;
    }
    const __mmask16 mask = (__mmask16)(here.width >= HWQ_STRIP ? 0xFFFF : (1 << here.width) - 1);
#pragma GCC unroll 4
    for (int i = 0; i < positions; i += 4) {
        const __m512i lines = sixteens(&here, (const __m512i[]){SUMS(i)[0], SUMS(i + 1)[0], SUMS(i + 2)[0], SUMS(i + 3)[0]}, scales);
        _mm_mask_storeu_epi8(OUT(i), mask, _mm512_castsi512_si128(lines));
        if (i + 1 < positions) _mm_mask_storeu_epi8(OUT(i + 1), mask, _mm512_extracti32x4_epi32(lines, 1));
        if (i + 2 < positions) _mm_mask_storeu_epi8(OUT(i + 2), mask, _mm512_extracti32x4_epi32(lines, 2));
        if (i + 3 < positions) _mm_mask_storeu_epi8(OUT(i + 3), mask, _mm512_extracti32x4_epi32(lines, 3));
    }
#undef SUMS
#undef OUT
}

/* A function a size: one for all would hold addresses in vector registers, as above. On cache lines, as a loop of 320 bytes lost up to 6 percent elsewhere. */
#define EACH_TILE(one) one(1) one(2) one(3) one(4) one(5) one(6) one(7) one(8) one(9) one(10) one(11) one(12) one(13) one(14)
#define TILE_FUNCTION static __attribute__((noinline, aligned(64)))
typedef void tile_fn(const part *g, const uint8_t *const a[2], int32_t *rest, const finish *f, char *const out[2]);
#define ONE(n) \
    TILE_FUNCTION void tile_##n##_1(const part *g, const uint8_t *const a[2], int32_t *rest, const finish *f, char *const out[2]) \
    { \
        dot_tile((n + 1) / 2, n / 2, 1, g, a, rest, f, out); \
    } \
    TILE_FUNCTION void tile_##n##_2(const part *g, const uint8_t *const a[2], int32_t *rest, const finish *f, char *const out[2]) \
    { \
        dot_tile((n + 1) / 2, n / 2, 2, g, a, rest, f, out); \
    }
EACH_TILE(ONE)
#undef ONE

/* A half of `first` positions and one of as many or one less. */
static inline void some_positions(int64_t first, int64_t second, const part *g, const uint8_t *const a[2], int32_t *rest, const finish *f, char *const out[2])
{
#define ONE(n) {tile_##n##_1, tile_##n##_2},
    static tile_fn *const tiles[TILE_MOST][2] = {EACH_TILE(ONE)};
#undef ONE
    tiles[first + second - 1][g->vectors - 1](g, a, rest, f, out);
}

#endif
