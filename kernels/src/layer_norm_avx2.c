/* Layer normalization, 8 columns at a time: the two fixed-point products by vectors, the 64-bit step between by halves. Away from
 * zero of v / 1024 is the sign times floor((|v| + 512) / 1024), and |v| < 2^47. */
#include "layer_norm.h"

#if HWQ_X86
#include <immintrin.h>

HWQ_TARGET("avx2,fma")
#include "fixedpoint_avx2.h"

static inline __m256i divide(__m256i v) /* 4 x int64, result in the low halves */
{
    const __m256i sign = _mm256_cmpgt_epi64(_mm256_setzero_si256(), v), size = _mm256_sub_epi64(_mm256_xor_si256(v, sign), sign);
    const __m256i part = _mm256_srli_epi64(_mm256_add_epi64(size, _mm256_set1_epi64x(512)), 10);
    return _mm256_sub_epi64(_mm256_xor_si256(part, sign), sign);
}

static inline __m256i bias4(const hwq_layer_norm *p, int64_t i)
{
    return p->bias ? _mm256_cvtepi32_epi64(_mm_loadu_si128((const __m128i *)(p->bias + i))) : _mm256_setzero_si256();
}

void hwq_layer_norm_s16__avx2(const hwq_layer_norm *p, int64_t rows, const int16_t *x, int16_t *out)
{
    const __m256i limit = _mm256_set1_epi32(p->shift + 12), m = _mm256_set1_epi32(p->multiplier);
    for (int64_t r = 0; p->columns && r < rows; r++, x += p->columns, out += p->columns) {
        const hwq_layer_norm_row row = hwq_layer_norm_measure(p, x);
        int64_t i = 0;
        for (; i + 8 <= p->columns; i += 8) {
            const __m256i v = _mm256_cvtepi16_epi32(_mm_loadu_si128((const __m128i *)(x + i)));
            const __m256i w = _mm256_cvtepi16_epi32(_mm_loadu_si128((const __m128i *)(p->weights + i)));
            const __m256i centered = _mm256_sub_epi32(_mm256_slli_epi32(v, 10), _mm256_set1_epi32(row.mean));
            const __m256i scaled = hwq_round_gemmlowp_s32x8(centered, _mm256_set1_epi32(row.root), _mm256_set1_epi32(row.shift));
            const __m256i low = _mm256_mul_epi32(_mm256_cvtepi32_epi64(_mm256_castsi256_si128(scaled)), _mm256_cvtepi32_epi64(_mm256_castsi256_si128(w)));
            const __m256i high = _mm256_mul_epi32(_mm256_cvtepi32_epi64(_mm256_extracti128_si256(scaled, 1)),
                                                  _mm256_cvtepi32_epi64(_mm256_extracti128_si256(w, 1)));
            const __m256i a = divide(_mm256_add_epi64(low, bias4(p, i))), b = divide(_mm256_add_epi64(high, bias4(p, i + 4)));
            const __m256i even = _mm256_setr_epi32(0, 2, 4, 6, 0, 2, 4, 6);
            const __m256i parts = _mm256_blend_epi32(_mm256_permutevar8x32_epi32(a, even), _mm256_permutevar8x32_epi32(b, even), 0xF0);
            const __m256i y = hwq_round_gemmlowp_s32x8(parts, m, limit);
            _mm_storeu_si128((__m128i *)(out + i), _mm_packs_epi32(_mm256_castsi256_si128(y), _mm256_extracti128_si256(y, 1)));
        }
        for (; i < p->columns; i++) out[i] = hwq_layer_norm_one(p, &row, i, x[i]);
    }
}

HWQ_TARGET_END
#endif
