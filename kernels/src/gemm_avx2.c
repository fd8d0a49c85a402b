/* Exact int8 GEMM by Winograd's inner product on int16 lanes.
 *
 *   sum over pairs (a0 + b1)(a1 + b0) = sum a*b + sum a0*a1 + sum b0*b1
 *
 * halves the multiplications. The second sum is taken per row while packing a, the third per column while packing weights.
 * Bounds: a is packed as a - za in [-255, 255], b in [-128, 127], so a + b in [-383, 382] fits int16, a pair of products
 * < 2^19 fits int32, and every later sum is modulo 2^32, where the identity is exact. Any signedness, any zero point.
 * Per 32 MACs: 2 vpaddw, 1 vpmaddwd, 1 vpaddd; plain widening needs 2 vpmaddwd, 2 vpaddd, and CPUs have fewer multipliers. */
#include "epilogue.h"
#include "isa.h"

#if HWQ_X86
#include <immintrin.h>
#include <string.h>

enum { ROWS = 64, PANEL = 4, COLUMNS = 256 };

HWQ_TARGET("avx2,fma")

typedef struct {
    int16_t *panels;        /* ROWS / 4 panels of k4 / 4 quads of 4 rows x (a0, a2, a1, a3) */
    int32_t *block;         /* ROWS x COLUMNS accumulators */
    uint32_t sums[ROWS];    /* sum of a - za */
    uint32_t products[ROWS];/* sum of a0 * a1 */
} scratch;

static inline __m256i widen(__m128i bytes, __m256i zero_point, uint8_t flip)
{
    return _mm256_sub_epi16(_mm256_cvtepu8_epi16(_mm_xor_si128(bytes, _mm_set1_epi8((char)flip))), zero_point);
}

static inline uint32_t add_lanes(__m256i v)
{
    __m128i s = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0x4E));
    s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0xB1));
    return (uint32_t)_mm_cvtsi128_si32(s);
}

/* One row of a into its place in a panel; 16 k at a time, the tail padded with the zero point, that is with 0. */
static inline void pack_row(const uint8_t *a, int64_t k, uint8_t flip, int32_t zero_point, int16_t *to, uint32_t *sum, uint32_t *product)
{
    const __m256i order = _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15));
    const __m256i zp = _mm256_set1_epi16((short)zero_point), ones = _mm256_set1_epi16(1), low = _mm256_set1_epi64x(0xFFFFFFFF);
    __m256i sums = _mm256_setzero_si256(), products = sums;
    for (int64_t i = 0; i < k; i += 16) {
        __m128i bytes;
        int64_t quads = 4;
        if (k - i >= 16) {
            bytes = _mm_loadu_si128((const __m128i *)(a + i));
        } else {
            uint8_t tail[16];
            memset(tail, (uint8_t)zero_point ^ flip, sizeof tail);
            memcpy(tail, a + i, (size_t)(k - i));
            bytes = _mm_loadu_si128((const __m128i *)tail);
            quads = (k - i + 3) / 4;
        }
        __m256i v = _mm256_shuffle_epi8(widen(bytes, zp, flip), order);
        sums = _mm256_add_epi32(sums, _mm256_madd_epi16(v, ones));
        products = _mm256_add_epi32(products, _mm256_madd_epi16(_mm256_and_si256(v, low), _mm256_srli_epi64(v, 32)));
        int64_t quad[4];
        _mm256_storeu_si256((__m256i *)quad, v);
        for (int64_t j = 0; j < quads; j++, to += PANEL * 4) memcpy(to, quad + j, 8);
    }
    *sum = add_lanes(sums);
    *product = add_lanes(products);
}

/* rows x 16 accumulators. c[r] = columns - products[r] (- zero_points * sums[r]) + sum of the pairs. */
static inline __attribute__((always_inline)) void tile(const int rows, int64_t quads, const int16_t *a, const int8_t *b,
                                                       const uint32_t *sums, const uint32_t *products, const int32_t *column_terms,
                                                       const int32_t *zero_points, int32_t *c)
{
    __m256i acc_s32x8[PANEL][2];
    for (int r = 0; r < rows; r++) {
        acc_s32x8[r][0] = _mm256_loadu_si256((const __m256i *)column_terms);
        acc_s32x8[r][1] = _mm256_loadu_si256((const __m256i *)(column_terms + 8));
    }
    for (int64_t q = 0; q < quads; q++, a += PANEL * 4, b += HWQ_STRIP * HWQ_QUAD) {
        const __m256i b0 = _mm256_loadu_si256((const __m256i *)b), b1 = _mm256_loadu_si256((const __m256i *)(b + 32));
        const __m256i odd0 = _mm256_srai_epi16(b0, 8), odd1 = _mm256_srai_epi16(b1, 8);
        const __m256i even0 = _mm256_srai_epi16(_mm256_slli_epi16(b0, 8), 8), even1 = _mm256_srai_epi16(_mm256_slli_epi16(b1, 8), 8);
        for (int r = 0; r < rows; r++) {
            int32_t first, second;
            memcpy(&first, a + 4 * r, 4);
            memcpy(&second, a + 4 * r + 2, 4);
            const __m256i a02 = _mm256_set1_epi32(first), a13 = _mm256_set1_epi32(second);
            acc_s32x8[r][0] = _mm256_add_epi32(acc_s32x8[r][0], _mm256_madd_epi16(_mm256_add_epi16(a02, odd0), _mm256_add_epi16(a13, even0)));
            acc_s32x8[r][1] = _mm256_add_epi32(acc_s32x8[r][1], _mm256_madd_epi16(_mm256_add_epi16(a02, odd1), _mm256_add_epi16(a13, even1)));
        }
    }
    for (int r = 0; r < rows; r++, c += COLUMNS)
        for (int half = 0; half < 2; half++) {
            __m256i v = _mm256_sub_epi32(acc_s32x8[r][half], _mm256_set1_epi32((int)products[r]));
            if (zero_points) {
                const __m256i z = _mm256_loadu_si256((const __m256i *)(zero_points + 8 * half));
                v = _mm256_sub_epi32(v, _mm256_mullo_epi32(z, _mm256_set1_epi32((int)sums[r])));
            }
            _mm256_storeu_si256((__m256i *)(c + 8 * half), v);
        }
}

static inline void multiply(const hwq_gemm_args *args, uint8_t flip, int32_t zero_point)
{
    const hwq_packed *w = args->weights;
    const int64_t k = w->k, n = w->n, k4 = (k + 3) / 4 * 4, base = args->group * n;
    const int8_t *packed = w->quads + args->group * hwq_packed_bytes(k, n);
    const int64_t begin = args->first_strip * HWQ_STRIP, wanted = begin + args->strips * HWQ_STRIP, end = wanted < n ? wanted : n;
    const int64_t out_size = hwq_type_size(args->epilogue->out_type);
    scratch s = {.block = args->workspace, .panels = (int16_t *)((int32_t *)args->workspace + ROWS * COLUMNS)};

    for (int64_t top = 0; top < args->m; top += ROWS) {
        const int64_t rows = args->m - top < ROWS ? args->m - top : ROWS;
        for (int64_t r = 0; r < rows; r++)
            pack_row((const uint8_t *)args->a + (top + r) * args->a_stride, k, flip, zero_point,
                     s.panels + r / PANEL * PANEL * k4 + r % PANEL * 4, &s.sums[r], &s.products[r]);
        for (int64_t first = begin; first < end; first += COLUMNS) {
            const int64_t last = first + COLUMNS < end ? first + COLUMNS : end;
            for (int64_t column = first; column < last; column += HWQ_STRIP) {
                const int64_t width = last - column < HWQ_STRIP ? last - column : HWQ_STRIP;
                const int8_t *strip = packed + column / HWQ_STRIP * k4 * HWQ_STRIP;
                int32_t terms[HWQ_STRIP] = {0}, zero_points[HWQ_STRIP] = {0};
                for (int64_t j = 0; j < width; j++) {
                    const uint32_t bias = args->bias ? (uint32_t)args->bias[base + column + j] : 0;
                    terms[j] = (int32_t)(bias - (uint32_t)w->column_products[base + column + j]);
                    if (w->zero_points) zero_points[j] = w->zero_points[base + column + j];
                }
                const int32_t *z = w->zero_points ? zero_points : NULL;
                int64_t r = 0;
                for (; r + PANEL <= rows; r += PANEL)
                    tile(4, k4 / 4, s.panels + r * k4, strip, s.sums + r, s.products + r, terms, z, s.block + r * COLUMNS + column - first);
                switch (rows - r) {
                case 3: tile(3, k4 / 4, s.panels + r * k4, strip, s.sums + r, s.products + r, terms, z, s.block + r * COLUMNS + column - first); break;
                case 2: tile(2, k4 / 4, s.panels + r * k4, strip, s.sums + r, s.products + r, terms, z, s.block + r * COLUMNS + column - first); break;
                case 1: tile(1, k4 / 4, s.panels + r * k4, strip, s.sums + r, s.products + r, terms, z, s.block + r * COLUMNS + column - first); break;
                default: break;
                }
            }
            const hwq_epilogue epilogue = hwq_epilogue_at(args->epilogue, top, first);
            hwq_requantize(&epilogue, rows, last - first, base + first, s.block, HWQ_S32, COLUMNS,
                           (char *)args->out + (top * args->out_stride + first) * out_size, args->out_stride);
        }
    }
}

void hwq_gemm_u8s8__avx2(const hwq_gemm_args *args) { multiply(args, 0, args->a_zero_point); }
void hwq_gemm_s8s8__avx2(const hwq_gemm_args *args) { multiply(args, 0x80, args->a_zero_point + 128); }

HWQ_TARGET_END
#endif

/* The largest demand of any path: 64 rows as int16, and their 64 x 256 accumulators. */
int64_t hwq_gemm_workspace(int64_t k) { return 64 * 256 * 4 + 64 * ((k + 3) / 4 * 4) * 2; }
