/* fixedpoint.h for 8 lanes of int32: the same steps, so the same bits. Include inside an AVX2 region, after <immintrin.h>. */
#ifndef HWQ_FIXEDPOINT_AVX2_H
#define HWQ_FIXEDPOINT_AVX2_H

/* Bits 31..62 of every a * b + 2^30. */
static inline __m256i hwq_doubling_high_s32x8(__m256i a, __m256i b)
{
    const __m256i half = _mm256_set1_epi64x(1 << 30);
    const __m256i even = _mm256_add_epi64(_mm256_mul_epi32(a, b), half);
    const __m256i odd = _mm256_add_epi64(_mm256_mul_epi32(_mm256_srli_epi64(a, 32), _mm256_srli_epi64(b, 32)), half);
    return _mm256_blend_epi32(_mm256_srli_epi64(even, 31), _mm256_slli_epi64(odd, 1), 0xAA);
}

/* hwq_srdhm: INT32_MIN^2 saturates. */
static inline __m256i hwq_srdhm_s32x8(__m256i a, __m256i b)
{
    const __m256i least = _mm256_set1_epi32(INT32_MIN);
    const __m256i both = _mm256_and_si256(_mm256_cmpeq_epi32(a, least), _mm256_cmpeq_epi32(b, least));
    return _mm256_xor_si256(hwq_doubling_high_s32x8(a, b), both); /* INT32_MIN there: its complement is INT32_MAX */
}

/* hwq_rdbpot; e in 0..31 */
static inline __m256i hwq_rdbpot_s32x8(__m256i x, __m256i e)
{
    const __m256i mask = _mm256_sub_epi32(_mm256_sllv_epi32(_mm256_set1_epi32(1), e), _mm256_set1_epi32(1));
    const __m256i threshold = _mm256_add_epi32(_mm256_srai_epi32(mask, 1), _mm256_srli_epi32(x, 31));
    return _mm256_sub_epi32(_mm256_srav_epi32(x, e), _mm256_cmpgt_epi32(_mm256_and_si256(x, mask), threshold));
}

/* R1: hwq_round_gemmlowp */
static inline __m256i hwq_round_gemmlowp_s32x8(__m256i acc, __m256i multiplier, __m256i shift)
{
    const __m256i none = _mm256_setzero_si256(), left = _mm256_max_epi32(shift, none), right = _mm256_max_epi32(_mm256_sub_epi32(none, shift), none);
    return hwq_rdbpot_s32x8(hwq_srdhm_s32x8(_mm256_sllv_epi32(acc, left), multiplier), right);
}

#endif
