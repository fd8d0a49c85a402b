/* Exact int8 GEMM by Winograd's inner product on int16 lanes.
 *
 *   sum over pairs (a0 + b1)(a1 + b0) = sum a*b + sum a0*a1 + sum b0*b1
 *
 * halves the multiplications. The second sum is taken per row while packing a, the third per column while packing weights.
 * Bounds: a is packed as a - za in [-255, 255], b in [-128, 127], so a + b in [-383, 382] fits int16, a pair of products
 * < 2^19 fits int32, and every later sum is modulo 2^32, where the identity is exact. Any signedness, any zero point.
 * Per 32 MACs: 2 vpaddw, 1 vpmaddwd, 1 vpaddd; plain widening needs 2 vpmaddwd, 2 vpaddd, and Zen has two multipliers on
 * four pipes (31.7 against 25.5 MAC a cycle in registers on Zen 3; the two are equal on Intel's three vector pipes).
 * Measured share of the register-only ceiling: reports/kernels, `hwq bench`.
 *
 * Blocks: rows of a, as int16 and at most 256 KB, stay in the second-level cache; a strip of 16 columns x 512 k of weights, widened
 * once, and one 4-row panel stay in the first; a tile of 4 x 16 accumulators stays in 8 registers. Fewer than 8 rows do not
 * repay the widening: they read the packed bytes. */
#include "epilogue.h"
#include "gemm.h"
#include "isa.h"

#if HWQ_X86
#include <immintrin.h>
#include <string.h>

enum { ROWS = HWQ_GEMM_ROWS, PANEL = 4, DEPTH = 128 /* quads of a block of k */, WIDEN_FROM = 8 };

typedef struct {
    int16_t widened[DEPTH * HWQ_QUAD * HWQ_STRIP]; /* a strip's block of k: per quad (b1, b3) x 16, then (b0, b2) x 16 */
    int32_t block[ROWS * HWQ_STRIP];               /* accumulators of one strip */
    int32_t sums[ROWS];                            /* sum of a - za */
    int32_t products[ROWS];                        /* sum of a0 * a1 */
    int16_t panels[];                              /* per 4 rows: k4 / 4 quads of 4 rows x (a0, a2, a1, a3) */
} scratch;

_Static_assert(sizeof(scratch) <= HWQ_GEMM_FIXED, "the workspace holds it");

HWQ_TARGET("avx2,fma")

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
static inline void pack_row(const uint8_t *a, int64_t k, uint8_t flip, int32_t zero_point, int16_t *to, int32_t *sum, int32_t *product)
{
    const __m256i zp = _mm256_set1_epi16((short)zero_point);
    __m256i sums = _mm256_setzero_si256(), products = sums;
    int64_t i = 0;
    for (; i + 16 <= k; i += 16, to += PANEL * 16) {
        const __m256i v = center(_mm_loadu_si128((const __m128i *)(a + i)), flip, zp, &sums, &products);
        const __m128i low = _mm256_castsi256_si128(v), high = _mm256_extracti128_si256(v, 1);
        _mm_storel_epi64((__m128i *)to, low);
        _mm_storeh_pd((double *)(to + PANEL * 4), _mm_castsi128_pd(low));
        _mm_storel_epi64((__m128i *)(to + PANEL * 8), high);
        _mm_storeh_pd((double *)(to + PANEL * 12), _mm_castsi128_pd(high));
    }
    if (i < k) {
        uint8_t tail[16];
        int64_t quad[4];
        memset(tail, (uint8_t)zero_point ^ flip, sizeof tail);
        memcpy(tail, a + i, (size_t)(k - i));
        store(quad, center(_mm_loadu_si128((const __m128i *)tail), flip, zp, &sums, &products));
        for (int64_t j = 0; j < (k - i + 3) / 4; j++, to += PANEL * 4) memcpy(to, quad + j, 8);
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

/* One row of one quad. The intrinsics say what it does; the assembly, tested equal, keeps gcc 12 from hoisting the broadcasts
 * of all rows and spilling accumulators. */
static inline __attribute__((always_inline)) void row_by_intrinsics(const int16_t *a, const __m256i b[4], __m256i acc_s32x8[2])
{
    int32_t pairs[2];
    memcpy(pairs, a, 8);
    const __m256i a02 = _mm256_set1_epi32(pairs[0]), a13 = _mm256_set1_epi32(pairs[1]);
    acc_s32x8[0] = _mm256_add_epi32(acc_s32x8[0], _mm256_madd_epi16(_mm256_add_epi16(a02, b[0]), _mm256_add_epi16(a13, b[2])));
    acc_s32x8[1] = _mm256_add_epi32(acc_s32x8[1], _mm256_madd_epi16(_mm256_add_epi16(a02, b[1]), _mm256_add_epi16(a13, b[3])));
}
#if defined(__GNUC__) && defined(__x86_64__) && !defined(HWQ_NO_ASM)
#define LONG "%{vex3%} " /* 5 bytes: no more than 6 instructions in 32, the line of Intel's cache of decoded ones */
static inline __attribute__((always_inline)) void row(const int16_t *a, const __m256i b[4], __m256i acc_s32x8[2])
{
    __m256i a02, a13, s, t;
    __asm__("vpbroadcastd %[a], %[a02]\n\tvpbroadcastd 4+%[a], %[a13]\n\t"
            LONG "vpaddw %[b0], %[a02], %[s]\n\t" LONG "vpaddw %[b2], %[a13], %[t]\n\t"
            LONG "vpmaddwd %[t], %[s], %[s]\n\t" LONG "vpaddd %[s], %[c0], %[c0]\n\t"
            LONG "vpaddw %[b1], %[a02], %[a02]\n\t" LONG "vpaddw %[b3], %[a13], %[a13]\n\t"
            LONG "vpmaddwd %[a13], %[a02], %[a02]\n\t" LONG "vpaddd %[a02], %[c1], %[c1]"
            : [c0] "+x"(acc_s32x8[0]), [c1] "+x"(acc_s32x8[1]), [a02] "=&x"(a02), [a13] "=&x"(a13), [s] "=&x"(s), [t] "=&x"(t)
            : [b0] "x"(b[0]), [b1] "x"(b[1]), [b2] "x"(b[2]), [b3] "x"(b[3]), [a] "o"(*(const int64_t(*)[1])a));
}
#else
#define row row_by_intrinsics
#endif

/* rows x 16 accumulators of `quads` quads added to c, which lies HWQ_STRIP apart. */
static inline __attribute__((always_inline)) void tile(const int rows, const int widened, int64_t quads, const int16_t *a, const void *b, int32_t *c)
{
    __m256i acc_s32x8[PANEL][2];
    for (int r = 0; r < rows; r++)
        for (int half = 0; half < 2; half++) acc_s32x8[r][half] = load(c + r * HWQ_STRIP + 8 * half);
    const char *from = b;
    for (int64_t q = 0; q < quads; q++, a += PANEL * 4, from += widened ? 128 : 64) {
        __m256i v[4];
        if (widened)
            for (int i = 0; i < 4; i++) v[i] = load(from + 32 * i);
        else widen((const int8_t *)from, v);
        for (int r = 0; r < rows; r++) row(a + 4 * r, v, acc_s32x8[r]);
    }
    for (int r = 0; r < rows; r++)
        for (int half = 0; half < 2; half++) store(c + r * HWQ_STRIP + 8 * half, acc_s32x8[r][half]);
}

static inline __attribute__((always_inline)) void tiles(const int widened, int64_t rows, int64_t quads, int64_t k4, const int16_t *a, const void *b, int32_t *c)
{
    for (; rows >= PANEL; rows -= PANEL, a += PANEL * k4, c += PANEL * HWQ_STRIP) tile(4, widened, quads, a, b, c);
    if (rows == 3) tile(3, widened, quads, a, b, c);
    else if (rows == 2) tile(2, widened, quads, a, b, c);
    else if (rows == 1) tile(1, widened, quads, a, b, c);
}

/* c[r] = terms - products[r] (- zero_points * sums[r]): what is not a product of the tile. */
static void begin_block(int64_t rows, const int32_t *terms, const int32_t *zero_points, const scratch *s, int32_t *c)
{
    const __m256i term[2] = {load(terms), load(terms + 8)};
    if (!zero_points) {
        for (int64_t r = 0; r < rows; r++)
            for (int half = 0; half < 2; half++)
                store(c + r * HWQ_STRIP + 8 * half, _mm256_sub_epi32(term[half], _mm256_set1_epi32(s->products[r])));
        return;
    }
    const __m256i z[2] = {load(zero_points), load(zero_points + 8)};
    for (int64_t r = 0; r < rows; r++)
        for (int half = 0; half < 2; half++) {
            const __m256i v = _mm256_sub_epi32(term[half], _mm256_mullo_epi32(z[half], _mm256_set1_epi32(s->sums[r])));
            store(c + r * HWQ_STRIP + 8 * half, _mm256_sub_epi32(v, _mm256_set1_epi32(s->products[r])));
        }
}

static void multiply(const hwq_gemm_args *args, uint8_t flip, int32_t zero_point)
{
    const hwq_packed *w = args->weights;
    const int64_t k = w->k, n = w->n, k4 = (k + 3) / 4 * 4, base = args->group * n, block = hwq_gemm_block_rows(2 * k4, PANEL);
    const int8_t *packed = w->quads + args->group * hwq_packed_bytes(k, n);
    const int64_t begin = args->first_strip * HWQ_STRIP, wanted = begin + args->strips * HWQ_STRIP, end = wanted < n ? wanted : n;
    const int64_t out_size = hwq_type_size(args->epilogue->out_type);
    scratch *s = args->workspace;

    for (int64_t top = 0; top < args->m; top += block) {
        const int64_t rows = args->m - top < block ? args->m - top : block;
        for (int64_t r = 0; r < rows; r++)
            pack_row((const uint8_t *)args->a + (top + r) * args->a_stride, k, flip, zero_point,
                     s->panels + r / PANEL * PANEL * k4 + r % PANEL * 4, &s->sums[r], &s->products[r]);
        for (int64_t column = begin; column < end; column += HWQ_STRIP) {
            const int64_t width = end - column < HWQ_STRIP ? end - column : HWQ_STRIP;
            const int8_t *strip = packed + column * k4;
            int32_t terms[HWQ_STRIP] = {0}, zero_points[HWQ_STRIP] = {0};
            for (int64_t j = 0; j < width; j++) {
                const uint32_t bias = args->bias ? (uint32_t)args->bias[base + column + j] : 0;
                terms[j] = (int32_t)(bias - (uint32_t)w->column_products[base + column + j]);
                if (w->zero_points) zero_points[j] = w->zero_points[base + column + j];
            }
            begin_block(rows, terms, w->zero_points ? zero_points : NULL, s, s->block);
            for (int64_t q = 0; q < k4 / 4; q += DEPTH) {
                const int64_t quads = k4 / 4 - q < DEPTH ? k4 / 4 - q : DEPTH;
                const int16_t *a = s->panels + q * PANEL * 4;
                if (rows < WIDEN_FROM) {
                    tiles(0, rows, quads, k4, a, strip + q * 64, s->block);
                    continue;
                }
                for (int64_t i = 0; i < quads; i++) {
                    __m256i v[4];
                    widen(strip + (q + i) * 64, v);
                    for (int j = 0; j < 4; j++) store(s->widened + 64 * i + 16 * j, v[j]);
                }
                tiles(1, rows, quads, k4, a, s->widened, s->block);
            }
            const hwq_epilogue epilogue = hwq_epilogue_at(args->epilogue, top, column);
            hwq_requantize(&epilogue, rows, width, base + column, s->block, HWQ_S32, HWQ_STRIP,
                           (char *)args->out + (top * args->out_stride + column) * out_size, args->out_stride);
        }
    }
}

void hwq_gemm_u8s8__avx2(const hwq_gemm_args *args) { multiply(args, 0, args->a_zero_point); }
void hwq_gemm_s8s8__avx2(const hwq_gemm_args *args) { multiply(args, 0x80, args->a_zero_point + 128); }

HWQ_TARGET_END
#endif
