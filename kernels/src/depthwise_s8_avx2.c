/* Depthwise bytes, 16 channels at a time (the scheme and its bounds: depthwise_bytes.h). Interleaving works in halves of 128 bits:
 * `low` holds channels 0-3, 8-11, `high` 4-7, 12-15. */
#include "epilogue.h"
#include "isa.h"

#if HWQ_X86
#include <immintrin.h>
#include <string.h>

HWQ_TARGET("avx2,fma")

enum { LANES = 16 };
typedef __m256i vector;

static inline vector zero(void) { return _mm256_setzero_si256(); }
static inline vector all16(int16_t v) { return _mm256_set1_epi16(v); }
static inline vector all32(int32_t v) { return _mm256_set1_epi32(v); }
static inline vector all_f32(float v) { return _mm256_castps_si256(_mm256_set1_ps(v)); }
static inline vector load(const void *p) { return _mm256_loadu_si256((const __m256i *)p); }
static inline void store(void *p, vector v) { _mm256_storeu_si256((__m256i *)p, v); }
static inline vector interleave_low(vector a, vector b) { return _mm256_unpacklo_epi16(a, b); }
static inline vector interleave_high(vector a, vector b) { return _mm256_unpackhi_epi16(a, b); }
static inline vector dot(vector acc, vector a, vector b) { return _mm256_add_epi32(acc, _mm256_madd_epi16(a, b)); }
static inline vector less(vector acc, vector a, vector b) { return _mm256_sub_epi32(acc, _mm256_mullo_epi32(a, b)); }

/* Of per-channel arrays, `left` elements from here on. */
static inline vector words(const int16_t *x, int64_t left)
{
    int16_t tail[LANES] = {0};
    return load(left >= LANES ? x : memcpy(tail, x, (size_t)left * 2));
}
static inline void halves(const int32_t *x, int64_t step, int64_t left, vector *low, vector *high)
{
    int32_t tail[LANES] = {0};
    if (!step) for (int64_t i = 0; i < LANES; i++) tail[i] = x[0];
    else if (left < LANES) memcpy(tail, x, (size_t)left * 4);
    const int32_t *from = step && left >= LANES ? x : tail;
    *low = _mm256_permute2x128_si256(load(from), load(from + 8), 0x20);
    *high = _mm256_permute2x128_si256(load(from), load(from + 8), 0x31);
}
static inline vector widen(const uint8_t *x, int is_unsigned, int64_t left)
{
    uint8_t tail[LANES] = {0};
    if (left < LANES) x = memcpy(tail, x, (size_t)left);
    const __m128i bytes = _mm_loadu_si128((const __m128i *)x);
    return is_unsigned ? _mm256_cvtepu8_epi16(bytes) : _mm256_cvtepi8_epi16(bytes);
}

/* R4: floats too great for int32 stop at hi; those too small become INT32_MIN, which the packing and the clamp bring to lo. */
static inline void to_bytes(int is_unsigned, vector low, vector high, const float *scales, vector lo, vector hi, vector zero_point, uint8_t *out)
{
    const __m256 first = _mm256_min_ps(_mm256_mul_ps(_mm256_cvtepi32_ps(low), _mm256_loadu_ps(scales)), _mm256_castsi256_ps(hi));
    const __m256 second = _mm256_min_ps(_mm256_mul_ps(_mm256_cvtepi32_ps(high), _mm256_loadu_ps(scales + 8)), _mm256_castsi256_ps(hi));
    const __m256i packed = _mm256_packs_epi32(_mm256_cvtps_epi32(first), _mm256_cvtps_epi32(second));
    const __m256i shifted = _mm256_max_epi16(_mm256_adds_epi16(packed, zero_point), lo);
    const __m128i one = _mm256_castsi256_si128(shifted), two = _mm256_extracti128_si256(shifted, 1);
    _mm_storeu_si128((__m128i *)out, is_unsigned ? _mm_packus_epi16(one, two) : _mm_packs_epi16(one, two));
}
static inline void in_order(vector low, vector high, int32_t *acc)
{
    _mm_storeu_si128((__m128i *)acc, _mm256_castsi256_si128(low));
    _mm_storeu_si128((__m128i *)(acc + 4), _mm256_castsi256_si128(high));
    _mm_storeu_si128((__m128i *)(acc + 8), _mm256_extracti128_si256(low, 1));
    _mm_storeu_si128((__m128i *)(acc + 12), _mm256_extracti128_si256(high, 1));
}

#include "depthwise_bytes.h"

void hwq_depthwise_s32__avx2(const hwq_conv *c) { depthwise(c); }

HWQ_TARGET_END
#endif
