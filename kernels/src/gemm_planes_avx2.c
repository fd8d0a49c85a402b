/* gemm_planes.h on AVX2: VPSHUFB looks 32 columns up in each table, VPUNPCK joins low and high bytes to 16-bit sums. A 16-bit lane takes 16 pairs of
 * groups, 32 * 1020 = 32,640 < 2^15, before it is widened. */
#include "isa.h"

#if HWQ_X86
#include <immintrin.h>
#include <string.h>

HWQ_TARGET("avx2")
#include "gemm_planes.h"

enum { RUN = 16 };

static inline void widen(__m256i sums_s16x16, int32_t *out, int32_t bit)
{
    const __m128i shift = _mm_cvtsi32_si128(bit);
    const __m256i low = _mm256_cvtepi16_epi32(_mm256_castsi256_si128(sums_s16x16));
    const __m256i high = _mm256_cvtepi16_epi32(_mm256_extracti128_si256(sums_s16x16, 1));
    __m256i *to = (__m256i *)out;
    _mm256_storeu_si256(to, _mm256_add_epi32(_mm256_loadu_si256(to), _mm256_sll_epi32(low, shift)));
    _mm256_storeu_si256(to + 1, _mm256_add_epi32(_mm256_loadu_si256(to + 1), _mm256_sll_epi32(high, shift)));
}

/* Columns 0..7 16..23 go to sums[0..15], 8..15 24..31 to sums[16..31]: VPUNPCK works within 128 bits. */
static inline void plane(int64_t pairs, const uint8_t *bytes, const uint8_t *tables, int32_t bit, int32_t *sums)
{
    const __m256i nibble = _mm256_set1_epi8(15);
    for (int64_t first = 0; first < pairs; first += RUN) {
        const int64_t last = pairs - first < RUN ? pairs : first + RUN;
        __m256i left_s16x16 = _mm256_setzero_si256(), right_s16x16 = _mm256_setzero_si256();
        for (int64_t pair = first; pair < last; pair++) {
            const __m256i both = _mm256_loadu_si256((const __m256i *)(bytes + 32 * pair));
            for (int half = 0; half < 2; half++) {
                const __m128i *table = (const __m128i *)(tables + 64 * pair + 32 * half);
                const __m256i at = _mm256_and_si256(half ? _mm256_srli_epi16(both, 4) : both, nibble);
                const __m256i low = _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(_mm_loadu_si128(table)), at);
                const __m256i high = _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(_mm_loadu_si128(table + 1)), at);
                left_s16x16 = _mm256_add_epi16(left_s16x16, _mm256_unpacklo_epi8(low, high));
                right_s16x16 = _mm256_add_epi16(right_s16x16, _mm256_unpackhi_epi8(low, high));
            }
        }
        widen(left_s16x16, sums, bit);
        widen(right_s16x16, sums + 16, bit);
    }
}

void hwq_gemm_planes__avx2(const hwq_gemm_planes_args *args)
{
    const int64_t pairs = (args->k + 7) / 8, blocks = (args->n + 31) / 32;
    for (int64_t i = 0; i < args->m; i++) {
        build(args->k, args->a + i * args->a_stride, args->scratch);
        for (int64_t block = 0; block < blocks; block++) {
            int32_t sums[32] = {0}, turned[32];
            for (int32_t bit = 0; bit < args->bits; bit++)
                plane(pairs, args->planes + (bit * blocks + block) * pairs * 32, args->scratch, bit, sums);
            memcpy(turned, sums, 32), memcpy(turned + 8, sums + 16, 32);
            memcpy(turned + 16, sums + 8, 32), memcpy(turned + 24, sums + 24, 32);
            const int64_t left = args->n - 32 * block;
            memcpy(args->out + i * args->out_stride + 32 * block, turned, (size_t)(left < 32 ? left : 32) * 4);
        }
    }
}

HWQ_TARGET_END
#endif
