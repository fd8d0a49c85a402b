/* int16 x int8 products: weights widened to int16, vpmaddwd pairs of k. A pair is at most 2 * 2^15 * 2^7 = 2^23; a register
 * holds the two halves of a quad apart, so 64 quads reach 2^29 a half and 2^30 a column: then they go to int64. 2 rows x 16
 * columns: 8 accumulators; 8 vpmaddwd (128 MACs) per 4 widened loads and 2 broadcasts. */
#include "gemm_s16.h"

#if HWQ_X86
#include <immintrin.h>
#include <string.h>

enum { RUN = 64 };

HWQ_TARGET("avx2,fma")

static inline __m256i quad_of(const int16_t *a, int64_t left)
{
    int64_t four = 0;
    if (left >= 4) memcpy(&four, a, 8);
    else memcpy(&four, a, (size_t)left * 2);
    return _mm256_set1_epi64x(four);
}

static inline __attribute__((always_inline)) void tile(const int rows, int64_t k, const int16_t *a, int64_t a_stride, const int8_t *b,
                                                       int64_t sums[2][HWQ_STRIP])
{
    memset(sums, 0, 2 * HWQ_STRIP * sizeof(int64_t));
    for (int64_t first = 0; first < k; first += 4 * RUN) {
        const int64_t last = first + 4 * RUN < k ? first + 4 * RUN : k;
        __m256i acc_s32x8[2][4];
        for (int r = 0; r < rows; r++)
            for (int j = 0; j < 4; j++) acc_s32x8[r][j] = _mm256_setzero_si256();
        for (int64_t i = first; i < last; i += 4, b += 4 * HWQ_STRIP) {
            __m256i w[4];
            for (int j = 0; j < 4; j++) w[j] = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)(b + 16 * j)));
            for (int r = 0; r < rows; r++) {
                const __m256i quad = quad_of(a + r * a_stride + i, k - i);
                for (int j = 0; j < 4; j++) acc_s32x8[r][j] = _mm256_add_epi32(acc_s32x8[r][j], _mm256_madd_epi16(quad, w[j]));
            }
        }
        for (int r = 0; r < rows; r++)
            for (int j = 0; j < 4; j++) {
                int32_t halves[8];
                _mm256_storeu_si256((__m256i *)halves, acc_s32x8[r][j]);
                for (int c = 0; c < 4; c++) sums[r][4 * j + c] += halves[2 * c] + halves[2 * c + 1];
            }
    }
}

void hwq_gemm_s16s8__avx2(const hwq_gemm_s16_args *args)
{
    const hwq_packed *w = args->weights;
    const int64_t k = w->k, k4 = (k + 3) / 4 * 4, end = hwq_s16_end(args);
    const int8_t *quads = w->quads + args->group * hwq_packed_bytes(k, w->n);
    for (int64_t row = 0; row < args->m; row += 2) {
        const int16_t *a = args->a + row * args->a_stride;
        const int pair = row + 1 < args->m;
        const int64_t sum = hwq_s16_sum(args, a), next = pair ? hwq_s16_sum(args, a + args->a_stride) : 0;
        for (int64_t column = args->first_strip * HWQ_STRIP; column < end; column += HWQ_STRIP) {
            int64_t sums[2][HWQ_STRIP];
            if (pair) tile(2, k, a, args->a_stride, quads + column * k4, sums);
            else tile(1, k, a, args->a_stride, quads + column * k4, sums);
            hwq_s16_finish(args, row, column, sum, sums[0]);
            if (pair) hwq_s16_finish(args, row + 1, column, next, sums[1]);
        }
    }
}

HWQ_TARGET_END
#endif
