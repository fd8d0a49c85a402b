/* The saturating product by the instructions that saturate: per quad of k VPMADDUBSW, VPMADDWD with ones, VPADDD.
 * Bounds: as in gemm_saturating.c; VPMADDWD adds two int16 pairs in int32, the rest is modulo 2^32. */
#include "epilogue.h"
#include "isa.h"

#if HWQ_X86
#include <immintrin.h>
#include <string.h>

enum { ROWS = 64, PANEL = 4, COLUMNS = 256 };

HWQ_TARGET("avx2,fma")

static inline __attribute__((always_inline)) void tile(const int rows, int64_t k, const uint8_t *a, int64_t a_stride, const int8_t *b,
                                                       const int32_t *terms, int32_t *c)
{
    const __m256i ones = _mm256_set1_epi16(1);
    __m256i acc_s32x8[PANEL][2];
    for (int r = 0; r < rows; r++) {
        acc_s32x8[r][0] = _mm256_loadu_si256((const __m256i *)terms);
        acc_s32x8[r][1] = _mm256_loadu_si256((const __m256i *)(terms + 8));
    }
    for (int64_t i = 0; i < k; i += HWQ_QUAD, b += HWQ_STRIP * HWQ_QUAD) {
        const __m256i b0 = _mm256_loadu_si256((const __m256i *)b), b1 = _mm256_loadu_si256((const __m256i *)(b + 32));
        for (int r = 0; r < rows; r++) {
            uint32_t bytes = 0; /* past the end 0: they meet packed weights that are 0 too */
            if (k - i >= HWQ_QUAD) memcpy(&bytes, a + r * a_stride + i, HWQ_QUAD);
            else for (int64_t j = 0; j < k - i; j++) bytes |= (uint32_t)a[r * a_stride + i + j] << (8 * j);
            const __m256i quad = _mm256_set1_epi32((int)bytes);
            acc_s32x8[r][0] = _mm256_add_epi32(acc_s32x8[r][0], _mm256_madd_epi16(_mm256_maddubs_epi16(quad, b0), ones));
            acc_s32x8[r][1] = _mm256_add_epi32(acc_s32x8[r][1], _mm256_madd_epi16(_mm256_maddubs_epi16(quad, b1), ones));
        }
    }
    for (int r = 0; r < rows; r++, c += COLUMNS) {
        _mm256_storeu_si256((__m256i *)c, acc_s32x8[r][0]);
        _mm256_storeu_si256((__m256i *)(c + 8), acc_s32x8[r][1]);
    }
}

#include "gemm_saturating.h"

void hwq_gemm_saturating__avx2(const hwq_gemm_args *args) { multiply(args); }

HWQ_TARGET_END
#endif
