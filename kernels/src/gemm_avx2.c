/* Exact int8 GEMM by Winograd's inner product on int16 lanes.
 *
 *   sum over pairs (a0 + b1)(a1 + b0) = sum a*b + sum a0*a1 + sum b0*b1
 *
 * halves the multiplications. The second sum is taken per row while packing a, the third per column while packing weights.
 * Bounds: a is packed as a - za in [-255, 255], b in [-128, 127], so a + b in [-383, 382] fits int16, a pair of products
 * < 2^19 fits int32, and every later sum is modulo 2^32, where the identity is exact. Any signedness, any zero point.
 * Per 32 MACs: 2 vpaddw, 1 vpmaddwd, 1 vpaddd; plain widening needs 2 vpmaddwd, 2 vpaddd, and Zen has two multipliers on
 * four pipes (31.7 against 25.5 MAC a cycle in registers on Zen 3; the two are equal on Intel's three vector pipes).
 * Measured on a Cascade Lake Xeon, one thread, gcc 12, R4 to bytes, another thread on the same core: 67 to 72 percent of the register-only
 * loop timed between the calls; the tile alone, all in the first cache, 80 (tile_avx2.h says why a shared core allows 86). On Zen 5: 90 to 95,
 * by pairs of rows; 74 to 78 by threes. `hwq bench` prints it anew.
 *
 * Blocks: rows of a, as int16 and at most 256 KB, stay in the second-level cache; 32 columns x 256 k of weights, widened once, and
 * one panel of 3 rows, or of 2 on four vector pipes, stay in the first; a tile of 3 x 32 accumulators stays in 12 registers (tile_avx2.h). Fewer than 6 rows do not
 * repay the widening: they read the packed bytes.
 *
 * One row does not widen its weights: a is u8, u = 16 h + l, and sum u w = 16 sum h w + sum l w by two vpmaddubsw of the packed bytes, whose results are
 * added as int16. Bounds: two products of either half are at most 2 * 15 * 128 = 3840 in size, HALVES_DEPTH quads of them 30720 < 2^15; then a
 * vpmaddwd by 16 or by 1 widens them. 4.25 operations for 32 MACs, of which 2.25 multiply; u = 2 h + l, whose high half must be widened at once, takes 5 and
 * 3, scheme W 7 with the widening: 80, 74 and 55 GMAC/s from the second cache (Zen 5). */
#include "epilogue.h"
#include "gemm.h"
#include "isa.h"

#if HWQ_X86
#include <immintrin.h>
#include <string.h>

HWQ_TARGET("avx2,fma")
#include "tile_avx2.h"

enum { ROWS = HWQ_GEMM_ROWS, FEW_PANEL = 3, DEPTH = 64 /* quads of a block of k */, WIDEN_FROM = 6, HALVES_DEPTH = 8 /* quads of int16 sums */ };

typedef struct {
    int16_t widened[DEPTH * TILE_QUAD];   /* a block of k of 32 columns: per quad (b1, b3) of each, then (b0, b2) */
    int32_t block[ROWS * TILE_COLUMNS];   /* their accumulators */
    int32_t sums[ROWS];                   /* sum of a - za */
    int32_t products[ROWS];               /* sum of a0 * a1 */
    int16_t panels[];                     /* per panel of rows: k4 / 4 quads of them x (a0, a2, a1, a3) */
} scratch;

_Static_assert(sizeof(scratch) <= HWQ_GEMM_FIXED, "the workspace holds it");

static inline __m256i load(const void *p) { return _mm256_loadu_si256((const __m256i *)p); }
static inline void store(void *p, __m256i v) { _mm256_storeu_si256((__m256i *)p, v); }

static inline int32_t add_lanes(__m256i v)
{
    __m128i s = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0x4E));
    s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0xB1));
    return _mm_cvtsi128_si32(s);
}

/* 16 k of a, centered, as quads (a0, a2, a1, a3); what they add to the row's sum and products. */
static inline __attribute__((always_inline)) __m256i center(__m128i bytes, uint8_t flip, __m256i zero_point, __m256i *sums, __m256i *products)
{
    const __m256i order = _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15));
    const __m256i wide = _mm256_cvtepu8_epi16(_mm_xor_si128(bytes, _mm_set1_epi8((char)flip)));
    const __m256i v = _mm256_shuffle_epi8(_mm256_sub_epi16(wide, zero_point), order);
    *sums = _mm256_add_epi32(*sums, _mm256_madd_epi16(v, _mm256_set1_epi16(1)));
    *products = _mm256_add_epi32(*products, _mm256_madd_epi16(v, _mm256_srli_epi64(v, 32))); /* the upper pairs meet zeros */
    return v;
}

/* One row of a into its place in a panel, the tail padded with the zero point, that is with 0. */
static inline void pack_row(int64_t panel, const uint8_t *a, int64_t k, uint8_t flip, int32_t zero_point, int16_t *to, int32_t *sum, int32_t *product)
{
    const __m256i zp = _mm256_set1_epi16((short)zero_point);
    __m256i sums = _mm256_setzero_si256(), products = sums;
    int64_t i = 0;
    for (; i + 16 <= k; i += 16, to += panel * 16) {
        const __m256i v = center(_mm_loadu_si128((const __m128i *)(a + i)), flip, zp, &sums, &products);
        const __m128i low = _mm256_castsi256_si128(v), high = _mm256_extracti128_si256(v, 1);
        _mm_storel_epi64((__m128i *)to, low);
        _mm_storeh_pd((double *)(to + panel * 4), _mm_castsi128_pd(low));
        _mm_storel_epi64((__m128i *)(to + panel * 8), high);
        _mm_storeh_pd((double *)(to + panel * 12), _mm_castsi128_pd(high));
    }
    if (i < k) {
        uint8_t tail[16];
        int64_t quad[4];
        memset(tail, (uint8_t)zero_point ^ flip, sizeof tail);
        memcpy(tail, a + i, (size_t)(k - i));
        store(quad, center(_mm_loadu_si128((const __m128i *)tail), flip, zp, &sums, &products));
        for (int64_t j = 0; j < (k - i + 3) / 4; j++, to += panel * 4) memcpy(to, quad + j, 8);
    }
    *sum = add_lanes(sums);
    *product = add_lanes(products);
}

/* Packed bytes of a quad of 16 columns to int16: v[0], v[1] = (b1, b3) of columns 0..7, 8..15; v[2], v[3] = (b0, b2). */
static inline __attribute__((always_inline)) void widen(const int8_t *quad, __m256i v[4])
{
    const __m256i low = load(quad), high = load(quad + 32);
    v[0] = _mm256_srai_epi16(low, 8), v[1] = _mm256_srai_epi16(high, 8);
    v[2] = _mm256_srai_epi16(_mm256_slli_epi16(low, 8), 8), v[3] = _mm256_srai_epi16(_mm256_slli_epi16(high, 8), 8);
}

/* Columns of a strip or two, and which part of k of them a tile takes. */
typedef struct {
    __m256i terms[TILE_VECTORS], zero_points[TILE_VECTORS];
    int with_points, first, last;
} part;

/* Accumulators of one row at the start: what is not a product of the tile, or what earlier parts of k left. */
static inline __attribute__((always_inline)) void begin_row(const int vectors, const part *g, int32_t sum, int32_t product, const int32_t *block, __m256i *acc_s32x8)
{
    for (int v = 0; v < vectors; v++) {
        if (!g->first) acc_s32x8[v] = load(block + 8 * v);
        else acc_s32x8[v] = _mm256_sub_epi32(g->terms[v], _mm256_set1_epi32(product));
        if (g->first && g->with_points) acc_s32x8[v] = _mm256_sub_epi32(acc_s32x8[v], _mm256_mullo_epi32(g->zero_points[v], _mm256_set1_epi32(sum)));
    }
}

static inline __attribute__((always_inline)) void tile_quad_of_k(const int panel, const int rows, const int vectors, const int16_t *a, const int16_t *w,
                                                                 __m256i acc_s32x8[TILE_ROWS][TILE_VECTORS])
{
    if (panel == 2 && rows == 2 && vectors == TILE_VECTORS) tile_pair_of_rows(a, a + HWQ_QUAD, w, acc_s32x8);
    else
#pragma GCC unroll 3
        for (int i = 0; i < rows; i++) tile_row(vectors, 0, a + HWQ_QUAD * i, w, acc_s32x8[i]);
}

/* rows x (8 vectors) of `quads` quads of widened weights; a, and what it adds, from row r on. */
static inline __attribute__((always_inline)) void tile(const int panel, const int rows, const int vectors, const part *g, int64_t quads, const int16_t *a, const scratch *s, int64_t r,
                                                       const finish *f, int32_t *block, char *out)
{
    __m256i acc_s32x8[TILE_ROWS][TILE_VECTORS];
#pragma GCC unroll 3
    for (int i = 0; i < rows; i++) begin_row(vectors, g, s->sums[r + i], s->products[r + i], block + i * TILE_COLUMNS, acc_s32x8[i]);
    const int16_t *w = s->widened;
    for (const int16_t *end = w + (quads & ~(int64_t)1) * TILE_QUAD; w < end; a += 2 * panel * HWQ_QUAD, w += 2 * TILE_QUAD) {
        tile_quad_of_k(panel, rows, vectors, a, w, acc_s32x8);
        tile_quad_of_k(panel, rows, vectors, a + panel * HWQ_QUAD, w + TILE_QUAD, acc_s32x8);
    }
    if (quads & 1) tile_quad_of_k(panel, rows, vectors, a, w, acc_s32x8);
#pragma GCC unroll 3
    for (int i = 0; i < rows; i++) {
        if (g->last && f->fast) finish_row(vectors, f, acc_s32x8[i], out + i * f->stride);
        else
            for (int v = 0; v < vectors; v++) store(block + i * TILE_COLUMNS + 8 * v, acc_s32x8[i][v]);
    }
}

static inline __attribute__((always_inline)) void tiles(const int panel, const int vectors, const part *given, int64_t rows, int64_t quads, int64_t k4, const int16_t *a, scratch *s,
                                                        const finish *given_finish, char *out)
{
    const finish here = *given_finish, *f = &here; /* the output cannot alias them */
    const part part_here = *given, *g = &part_here;
    int64_t r = 0;
#define TILE(count) tile(panel, count, vectors, g, quads, a + r * k4, s, r, f, s->block + r * TILE_COLUMNS, out + r * f->stride)
    for (; r + panel <= rows; r += panel) TILE(panel);
    if (rows - r == 2) TILE(2);
    else if (rows - r == 1) TILE(1);
#undef TILE
}

/* The same of a few rows and one strip, weights widened in registers: all of k at once. Every weight is read once, from far away: asked for
 * before, it comes 1.4 times faster than by the processor's own prefetching (Cascade Lake, 16 MB, 2 KB ahead). */
static inline __attribute__((always_inline)) void narrow_tile(const int rows, const part *g, int64_t quads, const int16_t *a, const int8_t *strip, const scratch *s,
                                                              int64_t r, const finish *f, int32_t *block, char *out)
{
    __m256i acc_s32x8[TILE_ROWS][2];
#pragma GCC unroll 3
    for (int i = 0; i < rows; i++) begin_row(2, g, s->sums[r + i], s->products[r + i], block + i * TILE_COLUMNS, acc_s32x8[i]);
    for (int64_t q = 0; q < quads; q++, a += FEW_PANEL * HWQ_QUAD, strip += HWQ_QUAD * HWQ_STRIP) {
        __m256i w[4];
        _mm_prefetch((const char *)strip + HWQ_GEMM_FAR, _MM_HINT_T0);
        widen(strip, w);
#pragma GCC unroll 3
        for (int i = 0; i < rows; i++) {
            int32_t pairs[2];
            memcpy(pairs, a + HWQ_QUAD * i, 8);
            const __m256i a02 = _mm256_set1_epi32(pairs[0]), a13 = _mm256_set1_epi32(pairs[1]);
            for (int v = 0; v < 2; v++)
                acc_s32x8[i][v] = _mm256_add_epi32(acc_s32x8[i][v], _mm256_madd_epi16(_mm256_add_epi16(a02, w[v]), _mm256_add_epi16(a13, w[2 + v])));
        }
    }
#pragma GCC unroll 3
    for (int i = 0; i < rows; i++) {
        if (f->fast) finish_row(2, f, acc_s32x8[i], out + i * f->stride);
        else
            for (int v = 0; v < 2; v++) store(block + i * TILE_COLUMNS + 8 * v, acc_s32x8[i][v]);
    }
}

static void few_rows(const part *g, int64_t rows, int64_t k4, const int8_t *strip, scratch *s, const finish *f, char *out)
{
    int64_t r = 0;
#define TILE(count) narrow_tile(count, g, k4 / 4, s->panels + r * k4, strip, s, r, f, s->block + r * TILE_COLUMNS, out + r * f->stride)
    for (; r + FEW_PANEL <= rows; r += FEW_PANEL) TILE(FEW_PANEL);
    if (rows - r == 2) TILE(2);
    else if (rows - r == 1) TILE(1);
#undef TILE
}

/* One row as u = 16 h + l, padded with 0 to whole quads: 4 h, then their 4 l. Returns the sum of u. */
static int32_t halve_row(const uint8_t *a, int64_t k, uint8_t flip, uint8_t *halves)
{
    const __m128i flips = _mm_set1_epi8((char)flip), mask = _mm_set1_epi8(15);
    __m128i sums = _mm_setzero_si128();
    int64_t i = 0;
    for (; i + 16 <= k; i += 16, halves += 32) {
        const __m128i u = _mm_xor_si128(_mm_loadu_si128((const __m128i *)(a + i)), flips), low = _mm_and_si128(u, mask);
        const __m128i high = _mm_and_si128(_mm_srli_epi16(u, 4), mask);
        _mm_storeu_si128((__m128i *)halves, _mm_unpacklo_epi32(high, low));
        _mm_storeu_si128((__m128i *)(halves + 16), _mm_unpackhi_epi32(high, low));
        sums = _mm_add_epi64(sums, _mm_sad_epu8(u, _mm_setzero_si128()));
    }
    uint32_t sum = (uint32_t)_mm_cvtsi128_si32(sums) + (uint32_t)_mm_extract_epi32(sums, 2);
    for (; i < k; halves += 2 * HWQ_QUAD)
        for (int j = 0; j < HWQ_QUAD; j++, i++) {
            const uint8_t u = i < k ? a[i] ^ flip : 0;
            halves[j] = u >> 4, halves[HWQ_QUAD + j] = u & 15;
            sum += u;
        }
    return (int32_t)sum;
}

/* At most HALVES_DEPTH quads of one row x 16 columns into sums of int16, which the first begins: high halves, then low ones. */
static inline __attribute__((always_inline)) void halves_of_k(const int64_t quads, const uint8_t *halves, const int8_t *strip, __m256i s_s16x16[2][2])
{
#pragma GCC unroll 8
    for (int64_t q = 0; q < quads; q++, halves += 2 * HWQ_QUAD, strip += HWQ_QUAD * HWQ_STRIP) {
        int32_t four[2];
        memcpy(four, halves, sizeof four);
        _mm_prefetch((const char *)strip + HWQ_GEMM_FAR, _MM_HINT_T0);
#pragma GCC unroll 2
        for (int v = 0; v < 2; v++) {
            __m256i w = load(strip + 32 * v);
            HWQ_IN_REGISTER(w);
#pragma GCC unroll 2
            for (int half = 0; half < 2; half++) {
                const __m256i pairs = _mm256_maddubs_epi16(_mm256_set1_epi32(four[half]), w);
                s_s16x16[half][v] = q ? _mm256_add_epi16(s_s16x16[half][v], pairs) : pairs;
                HWQ_IN_REGISTER(s_s16x16[half][v]);
            }
        }
    }
}

/* One row x strips * 16 columns, all of k, strip after strip. */
static void one_row(int64_t strips, const part *g, int64_t k4, const uint8_t *halves, const int8_t *weights, int32_t sum, const finish *f, int32_t *block, char *out)
{
    const __m256i sixteen = _mm256_set1_epi16(16), one = _mm256_set1_epi16(1);
    __m256i acc_s32x8[TILE_VECTORS], s[2][2];
    begin_row(TILE_VECTORS, g, sum, 0, block, acc_s32x8);
    for (int64_t first = 0; first < 2 * strips; first += 2) {
        const uint8_t *a = halves;
#define ADD_HALVES                                                                                                            \
    for (int v = 0; v < 2; v++)                                                                                               \
        acc_s32x8[first + v] = _mm256_add_epi32(acc_s32x8[first + v], _mm256_add_epi32(_mm256_madd_epi16(s[0][v], sixteen), _mm256_madd_epi16(s[1][v], one)))
        int64_t quads = k4 / HWQ_QUAD;
        for (; quads >= HALVES_DEPTH; quads -= HALVES_DEPTH, a += 2 * HWQ_QUAD * HALVES_DEPTH, weights += HWQ_QUAD * HWQ_STRIP * HALVES_DEPTH) {
            halves_of_k(HALVES_DEPTH, a, weights, s);
            ADD_HALVES;
        }
        if (quads > 0) {
            halves_of_k(quads, a, weights, s);
            ADD_HALVES;
            weights += HWQ_QUAD * HWQ_STRIP * quads;
        }
#undef ADD_HALVES
    }
    if (f->fast && strips == 2) finish_row(4, f, acc_s32x8, out);
    else if (f->fast) finish_row(2, f, acc_s32x8, out);
    else
        for (int v = 0; v < 2 * strips; v++) store(block + 8 * v, acc_s32x8[v]);
}

/* Bias less the columns' products, or what the zero point of a single row adds; the zero points of weights; 0 beyond `width`. */
static void column_terms(const hwq_gemm_args *args, int64_t column, int64_t width, int single, int32_t zero_point, part *g)
{
    const hwq_packed *w = args->weights;
    int32_t terms[TILE_COLUMNS] = {0}, zero_points[TILE_COLUMNS] = {0};
    for (int64_t j = 0; j < width; j++) {
        const int64_t i = args->group * w->n + column + j;
        const uint32_t less = single ? (uint32_t)zero_point * (uint32_t)w->column_sums[i] : (uint32_t)w->column_products[i];
        terms[j] = (int32_t)((args->bias ? (uint32_t)args->bias[i] : 0) - less);
        if (w->zero_points) zero_points[j] = w->zero_points[i];
    }
    g->with_points = w->zero_points != NULL;
    for (int v = 0; v < TILE_VECTORS; v++) g->terms[v] = load(terms + 8 * v), g->zero_points[v] = load(zero_points + 8 * v);
}

static inline __attribute__((always_inline)) void multiply(const int panel, const hwq_gemm_args *args, uint8_t flip, int32_t zero_point)
{
    const hwq_packed *w = args->weights;
    const int64_t k = w->k, n = w->n, k4 = (k + 3) / 4 * 4, base = args->group * n, block = hwq_gemm_block_rows(2 * k4, panel);
    const int8_t *packed = w->quads + args->group * hwq_packed_bytes(k, n);
    const int64_t begin = args->first_strip * HWQ_STRIP, wanted = begin + args->strips * HWQ_STRIP, end = wanted < n ? wanted : n;
    const int64_t out_size = hwq_type_size(args->epilogue->out_type);
    scratch *s = args->workspace;
    finish f = finish_of(args->epilogue, args->out_stride);
    f.fast = f.fast && !args->epilogue->residual_op;

    for (int64_t top = 0; top < args->m; top += block) {
        const int64_t rows = args->m - top < block ? args->m - top : block, most = rows > 1 && rows < WIDEN_FROM ? HWQ_STRIP : TILE_COLUMNS;
        const int64_t held = rows < WIDEN_FROM ? FEW_PANEL : panel;
        if (rows == 1)
            s->sums[0] = (int32_t)((uint32_t)halve_row((const uint8_t *)args->a + top * args->a_stride, k, flip, (uint8_t *)s->panels) -
                                   (uint32_t)k * (uint32_t)zero_point);
        for (int64_t r = 0; rows > 1 && r < rows; r++)
            pack_row(held, (const uint8_t *)args->a + (top + r) * args->a_stride, k, flip, zero_point,
                     s->panels + r / held * held * k4 + r % held * HWQ_QUAD, &s->sums[r], &s->products[r]);
        for (int64_t column = begin; column < end; column += most) {
            const int64_t width = end - column < most ? end - column : most, strips = (width + HWQ_STRIP - 1) / HWQ_STRIP;
            const int8_t *strip = packed + column * k4;
            char *out = (char *)args->out + (top * args->out_stride + column) * out_size;
            part g = {.first = 1, .last = 1};
            column_terms(args, column, width, rows == 1, zero_point, &g);
            finish_columns(&f, args->epilogue, base + column, width);
            if (rows == 1) one_row(strips, &g, k4, (const uint8_t *)s->panels, strip, s->sums[0], &f, s->block, out);
            else if (rows < WIDEN_FROM) few_rows(&g, rows, k4, strip, s, &f, out);
            else
                for (int64_t q = 0; q == 0 || q < k4 / 4; q += DEPTH) {
                    const int64_t quads = k4 / 4 - q < DEPTH ? k4 / 4 - q : DEPTH;
                    /* The block of weights after this one, to come into the second cache while tiles run. */
                    const int8_t *next = strip + (q + DEPTH < k4 / 4 ? (q + DEPTH) * HWQ_QUAD * HWQ_STRIP : TILE_COLUMNS * k4);
                    g.first = q == 0, g.last = q + quads == k4 / 4;
                    for (int64_t half = 0; half < strips; half++)
                        for (int64_t i = 0; i < quads; i++) {
                            __m256i v[4];
                            _mm_prefetch((const char *)(next + half * HWQ_STRIP * k4 + i * HWQ_QUAD * HWQ_STRIP), _MM_HINT_T1);
                            widen(strip + half * HWQ_STRIP * k4 + (q + i) * HWQ_QUAD * HWQ_STRIP, v);
                            for (int j = 0; j < 4; j++) store(s->widened + i * TILE_QUAD + j / 2 * 64 + half * 32 + j % 2 * 16, v[j]);
                        }
                    if (strips == 2) tiles(panel, 4, &g, rows, quads, k4, s->panels + q * panel * HWQ_QUAD, s, &f, out);
                    else tiles(panel, 2, &g, rows, quads, k4, s->panels + q * panel * HWQ_QUAD, s, &f, out);
                }
            if (f.fast) continue;
            const hwq_epilogue epilogue = hwq_epilogue_at(args->epilogue, top, column);
            hwq_requantize(&epilogue, rows, width, base + column, s->block, HWQ_S32, TILE_COLUMNS, out, args->out_stride);
        }
    }
}

static void by_threes(const hwq_gemm_args *args, uint8_t flip, int32_t zero_point) { multiply(3, args, flip, zero_point); }
static void by_pairs(const hwq_gemm_args *args, uint8_t flip, int32_t zero_point) { multiply(2, args, flip, zero_point); }

static void by_processor(const hwq_gemm_args *args, uint8_t flip, int32_t zero_point)
{
    if (args->m >= WIDEN_FROM && hwq_vector_pipes() == 4) by_pairs(args, flip, zero_point);
    else by_threes(args, flip, zero_point);
}

void hwq_gemm_u8s8__avx2(const hwq_gemm_args *args) { by_processor(args, 0, args->a_zero_point); }
void hwq_gemm_s8s8__avx2(const hwq_gemm_args *args) { by_processor(args, 0x80, args->a_zero_point + 128); }

HWQ_TARGET_END
#endif
