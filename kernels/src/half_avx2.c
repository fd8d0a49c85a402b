/* FP16 by F16C, BF16 by integer shifts: 8 at a time. */
#include "half.h"
#include "isa.h"

#if HWQ_X86
#include <immintrin.h>

HWQ_TARGET("avx2,fma,f16c")

void hwq_widen__avx2(int32_t type, int64_t n, const uint16_t *x, float *out)
{
    const __m256i quiet = _mm256_set1_epi32(0x400000), infinite = _mm256_set1_epi32(0x7F800000), size = _mm256_set1_epi32(0x7FFFFFFF);
    int64_t i = 0;
    for (; i + 8 <= n; i += 8) {
        const __m128i h = _mm_loadu_si128((const __m128i *)(x + i));
        if (type == HWQ_F16) {
            _mm256_storeu_ps(out + i, _mm256_cvtph_ps(h));
        } else {
            const __m256i bits = _mm256_slli_epi32(_mm256_cvtepu16_epi32(h), 16);
            const __m256i nan = _mm256_cmpgt_epi32(_mm256_and_si256(bits, size), infinite);
            _mm256_storeu_si256((__m256i *)(out + i), _mm256_or_si256(bits, _mm256_and_si256(nan, quiet)));
        }
    }
    hwq_widen__ref(type, n - i, x + i, out + i);
}

void hwq_narrow__avx2(int32_t type, int64_t n, const float *x, uint16_t *out)
{
    const __m256i quiet = _mm256_set1_epi32(0x40), infinite = _mm256_set1_epi32(0x7F800000), size = _mm256_set1_epi32(0x7FFFFFFF);
    const __m256i half = _mm256_set1_epi32(0x7FFF), one = _mm256_set1_epi32(1);
    int64_t i = 0;
    for (; i + 8 <= n; i += 8) {
        const __m256 v = _mm256_loadu_ps(x + i);
        if (type == HWQ_F16) {
            _mm_storeu_si128((__m128i *)(out + i), _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
        } else {
            const __m256i bits = _mm256_castps_si256(v), high = _mm256_srli_epi32(bits, 16);
            const __m256i nan = _mm256_cmpgt_epi32(_mm256_and_si256(bits, size), infinite);
            const __m256i even = _mm256_srli_epi32(_mm256_add_epi32(bits, _mm256_add_epi32(half, _mm256_and_si256(high, one))), 16);
            const __m256i y = _mm256_blendv_epi8(even, _mm256_or_si256(high, quiet), nan);
            const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(y, y), 0xD8);
            _mm_storeu_si128((__m128i *)(out + i), _mm256_castsi256_si128(packed));
        }
    }
    hwq_narrow__ref(type, n - i, x + i, out + i);
}

HWQ_TARGET_END
#endif
