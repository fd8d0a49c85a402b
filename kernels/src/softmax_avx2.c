/* Integer softmax and interpolated tables, 8 lanes at a time by gathers. Distances to a row's largest byte are 0..255, so a
 * table of exponentials made once serves every row. Sums of the float table keep their order: they stay scalar. */
#include "isa.h"
#include "softmax.h"

#if HWQ_X86
#include <immintrin.h>
#include <string.h>

HWQ_TARGET("avx2,fma")
#include "fixedpoint_avx2.h"

static inline __m256i distances(const uint8_t *x, __m256i flip, __m256i top) /* 8 bytes */
{
    return _mm256_sub_epi32(top, _mm256_xor_si256(_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)x)), flip));
}

static inline void store8(void *out, int32_t type, int64_t i, __m256i v) /* the low halves or bytes of 8 values */
{
    const __m256i order = _mm256_setr_epi8(0, 1, 4, 5, 8, 9, 12, 13, 0, 4, 8, 12, -1, -1, -1, -1, 0, 1, 4, 5, 8, 9, 12, 13, 0, 4, 8, 12, -1, -1, -1, -1);
    const __m256i parts = _mm256_shuffle_epi8(v, order);
    const __m128i low = _mm256_castsi256_si128(parts), high = _mm256_extracti128_si256(parts, 1);
    if (type == HWQ_S16) _mm_storeu_si128((__m128i *)((int16_t *)out + i), _mm_unpacklo_epi64(low, high));
    else _mm_storel_epi64((__m128i *)((uint8_t *)out + i), _mm_unpacklo_epi32(_mm_unpackhi_epi64(low, low), _mm_unpackhi_epi64(high, high)));
}

static int32_t largest(int64_t n, const uint8_t *x, uint8_t flip)
{
    __m256i v = _mm256_setzero_si256();
    uint8_t lane[32];
    int32_t top = 0;
    int64_t i = 0;
    for (; i + 32 <= n; i += 32)
        v = _mm256_max_epu8(v, _mm256_xor_si256(_mm256_loadu_si256((const __m256i *)(x + i)), _mm256_set1_epi8((char)flip)));
    _mm256_storeu_si256((__m256i *)lane, v);
    for (int j = 0; j < 32; j++) top = lane[j] > top ? lane[j] : top;
    for (; i < n; i++) top = (x[i] ^ flip) > top ? x[i] ^ flip : top;
    return top;
}

static void row_table(const hwq_softmax *s, int64_t n, const uint8_t *x, uint8_t *out)
{
    const uint8_t flip = s->type == HWQ_S8 ? 0x80 : 0;
    const float *table = s->table + 255 - largest(n, x, flip);
    float sum = 0;
    int64_t i = 0;
    for (; i < n; i++) sum += table[x[i] ^ flip];
    for (i = 0; i + 8 <= n; i += 8) {
        const __m256i at = _mm256_xor_si256(_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(x + i))), _mm256_set1_epi32(flip));
        const __m256 v = _mm256_div_ps(_mm256_mul_ps(_mm256_i32gather_ps(table, at, 4), _mm256_set1_ps(s->inverse)), _mm256_set1_ps(sum));
        const __m256i steps = _mm256_add_epi32(_mm256_cvtps_epi32(v), _mm256_set1_epi32(s->zero_point)); /* too large: INT32_MIN */
        store8(out, HWQ_U8, i, _mm256_min_epi32(steps, _mm256_set1_epi32(255)));
    }
    for (; i < n; i++) {
        const float v = rintf(table[x[i] ^ flip] * s->inverse / sum);
        const int32_t steps = hwq_wrap_add(v < 2147483648.0f ? (int32_t)v : INT32_MIN, s->zero_point);
        out[i] = (uint8_t)(steps > 255 ? 255 : steps);
    }
}

static void row_reciprocal(const hwq_softmax *s, int64_t n, const uint8_t *x, uint8_t *out)
{
    const uint8_t flip = s->type == HWQ_S8 ? 0x80 : 0;
    const float *table = s->table + 255 - largest(n, x, flip);
    const int32_t most = hwq_type_most(s->out_type);
    float sum = 0;
    int64_t i = 0;
    for (; i < n; i++) sum += table[x[i] ^ flip];
    const float inverse = 1.0f / (sum * s->scale);
    for (i = 0; i + 8 <= n; i += 8) {
        const __m256i at = _mm256_xor_si256(_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(x + i))), _mm256_set1_epi32(flip));
        const __m256 v = _mm256_mul_ps(_mm256_i32gather_ps(table, at, 4), _mm256_set1_ps(inverse));
        const __m256i whole = _mm256_cvttps_epi32(v); /* v is not negative: away is up from a half */
        const __m256 up = _mm256_cmp_ps(_mm256_sub_ps(v, _mm256_cvtepi32_ps(whole)), _mm256_set1_ps(0.5f), _CMP_GE_OQ);
        const __m256i steps = _mm256_add_epi32(_mm256_sub_epi32(whole, _mm256_castps_si256(up)), _mm256_set1_epi32(s->zero_point));
        store8(out, HWQ_U8, i, _mm256_min_epi32(steps, _mm256_set1_epi32(most)));
    }
    for (; i < n; i++) {
        const int32_t v = hwq_softmax_away(table[x[i] ^ flip] * inverse) + s->zero_point;
        out[i] = (uint8_t)(v > most ? most : v);
    }
}

static void row_gemmlowp(const hwq_softmax *s, int64_t n, const uint8_t *x, void *out)
{
    const uint8_t flip = s->type == HWQ_S8 ? 0x80 : 0;
    const int32_t top = largest(n, x, flip), least = hwq_type_least(s->out_type), most = hwq_type_most(s->out_type);
    const __m256i flips = _mm256_set1_epi32(flip), tops = _mm256_set1_epi32(top);
    __m256i sums = _mm256_setzero_si256();
    uint32_t lane[8], sum = 0;
    int64_t i = 0;
    int shift;
    for (; i + 8 <= n; i += 8) { /* e + 2^11 < 2^32: as unsigned, and up is away for what is not negative */
        const __m256i e = _mm256_i32gather_epi32(s->exponentials, distances(x + i, flips, tops), 4);
        sums = _mm256_add_epi32(sums, _mm256_srli_epi32(_mm256_add_epi32(e, _mm256_set1_epi32(1 << 11)), 12));
    }
    _mm256_storeu_si256((__m256i *)lane, sums);
    for (int j = 0; j < 8; j++) sum += lane[j];
    for (; i < n; i++) sum += (uint32_t)hwq_rdbpot(s->exponentials[top - (x[i] ^ flip)], 12);
    const int32_t r = hwq_softmax_reciprocal(sum, s->out_type == HWQ_S16 ? 16 : 8, &shift);
    /* Shifts past 31 leave 0, which a logical shift by 32 or more gives too; half of 2^shift fits then no more, nor matters. A sum that wrapped to
     * almost nothing asks for shifts below 1: none. */
    const __m256i half = _mm256_set1_epi32(shift <= 31 && shift > 0 ? 1 << (shift - 1) : 0), lo = _mm256_set1_epi32(least), hi = _mm256_set1_epi32(most);
    for (i = 0; i + 8 <= n; i += 8) {
        const __m256i e = _mm256_i32gather_epi32(s->exponentials, distances(x + i, flips, tops), 4);
        const __m256i v = _mm256_srlv_epi32(_mm256_add_epi32(hwq_srdhm_s32x8(e, _mm256_set1_epi32(r)), half), _mm256_set1_epi32(shift > 0 ? shift : 0));
        store8(out, s->out_type, i, _mm256_min_epi32(_mm256_add_epi32(v, lo), hi));
    }
    for (; i < n; i++) {
        const int64_t v = hwq_up(hwq_srdhm(r, s->exponentials[top - (x[i] ^ flip)]), shift) + least;
        hwq_store_small(out, s->out_type, i, hwq_clamp_s64(v, least, most));
    }
}

/* Samples i and i + 1 are neighbors in memory: one 32-bit gather brings both. */
static inline __m256i interpolate_by(int shift, const int16_t *table, __m256i v)
{
    const __m256i at = _mm256_srai_epi32(_mm256_add_epi32(v, _mm256_set1_epi32(32768)), shift);
    const __m256i pair = _mm256_i32gather_epi32((const int *)(const void *)table, at, 2);
    const __m256i base = _mm256_srai_epi32(_mm256_slli_epi32(pair, 16), 16), slope = _mm256_sub_epi32(_mm256_srai_epi32(pair, 16), base);
    const __m256i part = _mm256_mullo_epi32(slope, _mm256_and_si256(v, _mm256_set1_epi32((1 << shift) - 1)));
    return _mm256_add_epi32(base, _mm256_srai_epi32(_mm256_add_epi32(part, _mm256_set1_epi32((1 << shift) >> 1)), shift));
}

static inline __m256i interpolate(const int16_t *table, __m256i v) { return interpolate_by(7, table, v); }

static inline __m256i load_s16(const int16_t *x) { return _mm256_cvtepi16_epi32(_mm_loadu_si128((const __m128i *)x)); }

static void row_s16(const hwq_softmax *s, int64_t n, const int16_t *x, int16_t *out)
{
    int32_t top = -32768;
    uint32_t sum = 0, lane[8];
    __m256i sums = _mm256_setzero_si256();
    const __m256i zero = sums, limit = _mm256_set1_epi32(32767), m = _mm256_set1_epi32(s->multiplier), e = _mm256_set1_epi32(s->shift);
    int64_t i = 0;
    int shift;
    for (; i < n; i++) top = x[i] > top ? x[i] : top;
    for (i = 0; i + 8 <= n; i += 8) { /* scaled is not positive, so adding 32767 cannot overflow; nor can it pass 32767 */
        const __m256i scaled = hwq_round_gemmlowp_s32x8(_mm256_sub_epi32(load_s16(x + i), _mm256_set1_epi32(top)), m, e);
        const __m256i at = _mm256_min_epi32(_mm256_max_epi32(_mm256_add_epi32(_mm256_min_epi32(scaled, zero), limit), _mm256_set1_epi32(-32768)), limit);
        const __m256i power = interpolate(s->powers, at);
        store8(out, HWQ_S16, i, power);
        sums = _mm256_add_epi32(sums, power);
    }
    _mm256_storeu_si256((__m256i *)lane, sums);
    for (int j = 0; j < 8; j++) sum += lane[j];
    for (; i < n; i++) {
        const int64_t scaled = (int64_t)hwq_round_gemmlowp(x[i] - top, s->multiplier, s->shift) + 32767;
        out[i] = (int16_t)hwq_interpolate(s->powers, hwq_clamp_s64(scaled, INT16_MIN, INT16_MAX));
        sum += (uint32_t)out[i];
    }
    const int32_t r = hwq_interpolate(s->reciprocals, hwq_softmax_position(sum, &shift));
    const __m256i half = _mm256_set1_epi32((int32_t)(UINT32_C(1) << (shift - 1))); /* 2^30 + 2^30 at most: unsigned holds it */
    for (i = 0; i + 8 <= n; i += 8) {
        const __m256i v = _mm256_add_epi32(_mm256_mullo_epi32(load_s16(out + i), _mm256_set1_epi32(r)), half);
        store8(out, HWQ_S16, i, _mm256_min_epi32(_mm256_srlv_epi32(v, _mm256_set1_epi32(shift)), limit));
    }
    for (; i < n; i++) out[i] = (int16_t)hwq_clamp_s64(hwq_up((int64_t)out[i] * r, shift), 0, 32767);
}

#include "softmax_rows.h"

void hwq_softmax_run__avx2(const hwq_softmax *s, int64_t rows, int64_t columns, const void *x, void *out) { each_row(s, rows, columns, x, out); }

void hwq_lut_s16__avx2(int64_t n, int32_t shift, const int16_t *x, const int16_t *table, int16_t *out)
{
    int64_t i = 0;
    for (; i + 8 <= n; i += 8) store8(out, HWQ_S16, i, interpolate_by(shift, table, load_s16(x + i)));
    hwq_lut_s16__ref(n - i, shift, x + i, table, out + i);
}

HWQ_TARGET_END
#endif
