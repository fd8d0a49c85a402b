/* What calibration gathers, with AVX2: bins of four values at a time, counted one by one into two tables. */
#include "isa.h"

#if HWQ_X86
#include <immintrin.h>
#include <math.h>
#include <string.h>

HWQ_TARGET("avx2,fma")
#include "statistics.h"

int32_t hwq_ranges__avx2(int64_t outer, int64_t channels, int64_t inner, const float *x, float *minima, float *maxima, double *totals)
{
    return ranges_all(outer, channels, inner, x, minima, maxima, totals);
}

/* The square of a float32 has 48 bits, so the fused sum rounds as the separate one does. `half` is at most 2^23, so bins fit int32. */
void hwq_histogram__avx2(int64_t n, const float *x, double inverse, int64_t half, int64_t *counts, double *squares)
{
    const __m256d factor = _mm256_set1_pd(inverse), high = _mm256_set1_pd((double)half), low = _mm256_set1_pd(-(double)half);
    __m256d sums = _mm256_loadu_pd(squares);
    int64_t *even = counts + half, *odd = counts + 3 * half, i = 0;

    for (; i + 4 <= n; i += 4) {
        const __m256d value = _mm256_cvtps_pd(_mm_loadu_ps(x + i)), scaled = _mm256_mul_pd(value, factor);
        const __m256d inside = _mm256_and_pd(_mm256_cmp_pd(scaled, low, _CMP_GE_OQ), _mm256_cmp_pd(scaled, high, _CMP_LT_OQ));
        const int all = _mm256_movemask_pd(inside);
        sums = _mm256_fmadd_pd(value, value, sums);
        const __m128i bins = _mm256_cvttpd_epi32(_mm256_floor_pd(scaled));
        const int64_t first = _mm_cvtsi128_si64(bins), second = _mm_extract_epi64(bins, 1);
        if (all == 15) {
            even[(int32_t)first]++;
            odd[first >> 32]++;
            even[(int32_t)second]++;
            odd[second >> 32]++;
        } else {
            if (all & 1) even[(int32_t)first]++;
            if (all & 2) odd[first >> 32]++;
            if (all & 4) even[(int32_t)second]++;
            if (all & 8) odd[second >> 32]++;
        }
    }
    _mm256_storeu_pd(squares, sums);
    for (int64_t j = i; j < n; j++) { /* i is a multiple of 4: the tail's values keep their sums and tables */
        const double value = x[j], scaled = value * inverse;
        squares[j & 3] += value * value;
        if (scaled >= -(double)half && scaled < (double)half) (j & 1 ? odd : even)[(int64_t)floor(scaled)]++;
    }
}

HWQ_TARGET_END
#endif
