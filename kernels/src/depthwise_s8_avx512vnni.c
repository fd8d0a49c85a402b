/* Depthwise bytes, 64 at a time (the scheme and its bounds: depthwise_quads.h). */
#include "epilogue.h"
#include "isa.h"

#if HWQ_X86
#include <immintrin.h>
#include <string.h>

HWQ_TARGET("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")

#define VECTOR __m512i
#define DOT_BY_INTRINSICS _mm512_dpbusd_epi32
#define DOT_PREFIX ""
#include "dot_vnni.h"

typedef __m512i vector;

static inline vector zero(void) { return _mm512_setzero_si512(); }
static inline vector all8(int32_t v) { return _mm512_set1_epi8((char)v); }
static inline vector all16(int16_t v) { return _mm512_set1_epi16(v); }
static inline vector all32(int32_t v) { return _mm512_set1_epi32(v); }
static inline vector load(const void *p) { return _mm512_loadu_si512(p); }
static inline void store(void *p, vector v) { _mm512_storeu_si512(p, v); }
static inline vector exclusive_or(vector a, vector b) { return _mm512_xor_si512(a, b); }
static inline vector low8(vector a, vector b) { return _mm512_unpacklo_epi8(a, b); }
static inline vector high8(vector a, vector b) { return _mm512_unpackhi_epi8(a, b); }
static inline vector low16(vector a, vector b) { return _mm512_unpacklo_epi16(a, b); }
static inline vector high16(vector a, vector b) { return _mm512_unpackhi_epi16(a, b); }
static inline vector pack32(vector a, vector b) { return _mm512_packs_epi32(a, b); }
static inline vector pack16(vector a, vector b) { return _mm512_packs_epi16(a, b); }
static inline vector adds16(vector a, vector b) { return _mm512_adds_epi16(a, b); }
static inline vector clamp8(vector a, vector lo, vector hi) { return _mm512_max_epi8(_mm512_min_epi8(a, hi), lo); }
static inline vector less(vector acc, vector a, vector b) { return _mm512_sub_epi32(acc, _mm512_mullo_epi32(a, b)); }
static inline vector scaled(vector acc, vector scale) { return _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_cvtepi32_ps(acc), _mm512_castsi512_ps(scale))); }

static inline __mmask16 sixteen(int64_t left) { return (__mmask16)(left >= 16 ? 0xFFFF : (1 << left) - 1); }

/* Taps of `width` channels as bytes, again and again. */
static inline vector narrow(const int16_t *x, int64_t width, int64_t left)
{
    if (width == 64) return _mm512_inserti64x4(_mm512_castsi256_si512(_mm512_cvtepi16_epi8(load(x))), _mm512_cvtepi16_epi8(load(x + 32)), 1);
    if (width == 32) return _mm512_broadcast_i64x4(_mm512_cvtepi16_epi8(load(x)));
    int16_t tail[16] = {0};
    if (left < 16) x = memcpy(tail, x, (size_t)left * 2);
    return _mm512_broadcast_i32x4(_mm_packs_epi16(_mm_loadu_si128((const __m128i *)x), _mm_loadu_si128((const __m128i *)(x + 8))));
}

/* Two halves or four quarters of a vector, from rows a step apart. */
static inline __attribute__((always_inline)) vector parts(const int groups, const uint8_t *const *rows, int64_t step, int64_t offset, int64_t left)
{
    if (groups == 2) {
        const __m256i first = _mm256_loadu_si256((const __m256i *)(rows[0] + offset)), second = _mm256_loadu_si256((const __m256i *)(rows[step] + offset));
        return _mm512_inserti64x4(_mm512_castsi256_si512(first), second, 1);
    }
    const __mmask16 mask = sixteen(left);
    __m512i all = _mm512_castsi128_si512(_mm_maskz_loadu_epi8(mask, rows[0] + offset));
    all = _mm512_inserti32x4(all, _mm_maskz_loadu_epi8(mask, rows[step] + offset), 1);
    all = _mm512_inserti32x4(all, _mm_maskz_loadu_epi8(mask, rows[2 * step] + offset), 2);
    return _mm512_inserti32x4(all, _mm_maskz_loadu_epi8(mask, rows[3 * step] + offset), 3);
}
static inline __attribute__((always_inline)) void put(const int groups, vector bytes, uint8_t *const *outs, int64_t step, int64_t offset, int64_t left)
{
    if (groups == 1) store(outs[0] + offset, bytes);
    else if (groups == 2) {
        _mm256_storeu_si256((__m256i *)(outs[0] + offset), _mm512_castsi512_si256(bytes));
        _mm256_storeu_si256((__m256i *)(outs[step] + offset), _mm512_extracti64x4_epi64(bytes, 1));
    } else {
        const __mmask16 mask = sixteen(left);
        _mm_mask_storeu_epi8(outs[0] + offset, mask, _mm512_castsi512_si128(bytes));
        _mm_mask_storeu_epi8(outs[step] + offset, mask, _mm512_extracti32x4_epi32(bytes, 1));
        _mm_mask_storeu_epi8(outs[2 * step] + offset, mask, _mm512_extracti32x4_epi32(bytes, 2));
        _mm_mask_storeu_epi8(outs[3 * step] + offset, mask, _mm512_extracti32x4_epi32(bytes, 3));
    }
}

/* Sums to accumulators, a group's positions `stride` apart: 16 channels lie in the same quarter of the four. */
static inline void in_order(const int groups, const vector sums[4], int32_t *acc, int64_t stride)
{
    const vector a = _mm512_shuffle_i32x4(sums[0], sums[1], 0x44), b = _mm512_shuffle_i32x4(sums[2], sums[3], 0x44);
    const vector c = _mm512_shuffle_i32x4(sums[0], sums[1], 0xEE), d = _mm512_shuffle_i32x4(sums[2], sums[3], 0xEE);
    const vector quarters[4] = {_mm512_shuffle_i32x4(a, b, 0x88), _mm512_shuffle_i32x4(a, b, 0xDD), _mm512_shuffle_i32x4(c, d, 0x88),
                                _mm512_shuffle_i32x4(c, d, 0xDD)};
    const int each = 4 / groups; /* quarters of a position */
    for (int i = 0; i < 4; i++) store(acc + i / each * stride + i % each * 16, quarters[i]);
}

#include "depthwise_quads.h"

void hwq_depthwise_s32__avx512vnni(const hwq_conv *c)
{
    if (taps_are_bytes(c)) depthwise(c);
    else hwq_depthwise_s32__avx2(c);
}

HWQ_TARGET_END
#endif
