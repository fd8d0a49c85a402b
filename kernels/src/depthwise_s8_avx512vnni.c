/* Depthwise bytes, 32 channels at a time (the scheme and its bounds: depthwise_bytes.h); vpdpwssd adds a pair in one instruction,
 * without saturation. Interleaving works in quarters of 128 bits: `low` holds channels 8 i to 8 i + 3, `high` 8 i + 4 to 8 i + 7. */
#include "epilogue.h"
#include "isa.h"

#if HWQ_X86
#include <immintrin.h>
#include <string.h>

HWQ_TARGET("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")

enum { LANES = 32 };
typedef __m512i vector;

static inline vector zero(void) { return _mm512_setzero_si512(); }
static inline vector all16(int16_t v) { return _mm512_set1_epi16(v); }
static inline vector all32(int32_t v) { return _mm512_set1_epi32(v); }
static inline vector all_f32(float v) { return _mm512_castps_si512(_mm512_set1_ps(v)); }
static inline vector load(const void *p) { return _mm512_loadu_si512(p); }
static inline void store(void *p, vector v) { _mm512_storeu_si512(p, v); }
static inline vector interleave_low(vector a, vector b) { return _mm512_unpacklo_epi16(a, b); }
static inline vector interleave_high(vector a, vector b) { return _mm512_unpackhi_epi16(a, b); }
static inline vector dot(vector acc, vector a, vector b) { return _mm512_dpwssd_epi32(acc, a, b); }
static inline vector less(vector acc, vector a, vector b) { return _mm512_sub_epi32(acc, _mm512_mullo_epi32(a, b)); }
static inline vector quarters(vector a, vector b, vector order) { return _mm512_permutex2var_epi64(a, order, b); }

/* Of per-channel arrays; fewer than 32 channels run on AVX2, so `left` is never less. */
static inline vector words(const int16_t *x, int64_t left) { return (void)left, load(x); }
static inline void halves(const int32_t *x, int64_t step, int64_t left, vector *low, vector *high)
{
    const vector first = step ? load(x) : all32(x[0]), second = step ? load(x + 16) : first;
    (void)left;
    *low = quarters(first, second, _mm512_setr_epi64(0, 1, 4, 5, 8, 9, 12, 13));
    *high = quarters(first, second, _mm512_setr_epi64(2, 3, 6, 7, 10, 11, 14, 15));
}
static inline vector widen(const uint8_t *x, int is_unsigned, int64_t left)
{
    const __m256i bytes = _mm256_loadu_si256((const __m256i *)x);
    (void)left;
    return is_unsigned ? _mm512_cvtepu8_epi16(bytes) : _mm512_cvtepi8_epi16(bytes);
}

/* R4: floats too great for int32 stop at hi; those too small become INT32_MIN, which the packing and the clamp bring to lo. */
static inline void to_bytes(int is_unsigned, vector low, vector high, const float *scales, vector lo, vector hi, vector zero_point, uint8_t *out)
{
    const __m512 first = _mm512_min_ps(_mm512_mul_ps(_mm512_cvtepi32_ps(low), _mm512_loadu_ps(scales)), _mm512_castsi512_ps(hi));
    const __m512 second = _mm512_min_ps(_mm512_mul_ps(_mm512_cvtepi32_ps(high), _mm512_loadu_ps(scales + 16)), _mm512_castsi512_ps(hi));
    const vector packed = _mm512_packs_epi32(_mm512_cvtps_epi32(first), _mm512_cvtps_epi32(second));
    const vector shifted = _mm512_max_epi16(_mm512_adds_epi16(packed, zero_point), lo);
    _mm256_storeu_si256((__m256i *)out, is_unsigned ? _mm512_cvtusepi16_epi8(shifted) : _mm512_cvtsepi16_epi8(shifted));
}
static inline void in_order(vector low, vector high, int32_t *acc)
{
    store(acc, quarters(low, high, _mm512_setr_epi64(0, 1, 8, 9, 2, 3, 10, 11)));
    store(acc + 16, quarters(low, high, _mm512_setr_epi64(4, 5, 12, 13, 6, 7, 14, 15)));
}

#include "depthwise_bytes.h"

void hwq_depthwise_s32__avx512vnni(const hwq_conv *c)
{
    if (c->channels < LANES) hwq_depthwise_s32__avx2(c);
    else depthwise(c);
}

HWQ_TARGET_END
#endif
