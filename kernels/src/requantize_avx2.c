/* Epilogues, 16 columns at a time, their constants held over all rows. Every rounding of an int32 accumulator but R5, which
 * takes 64 bits and runs the plain reading, as int64 accumulators do. Formulas and bounds: fixedpoint.h; here only what the lanes
 * change. maxps(v, lo) and minps(v, hi) are the contract's clamp, NaN included: both return their second operand then. */
#include "epilogue.h"
#include "isa.h"

#if HWQ_X86
#include <immintrin.h>
#include <string.h>

HWQ_TARGET("avx2,fma")
#include "fixedpoint_avx2.h"

enum { COLUMNS = 16 };

/* What 16 columns need, of the epilogue's own arrays or, at a tail or for one multiplier, copied and padded with 0. */
typedef struct {
    const float *scales, *bias;
    const double *doubles;
    const int32_t *multipliers, *shifts;
    float scale_space[COLUMNS], bias_space[COLUMNS];
    double double_space[COLUMNS];
    int32_t multiplier_space[COLUMNS], shift_space[COLUMNS];
} constants;

#define HWQ_CONSTANTS(type, field, space, from, step, at)                                                                     \
    do {                                                                                                                      \
        const type *given = from;                                                                                             \
        c->field = NULL;                                                                                                      \
        if (!given) break;                                                                                                    \
        c->field = (step) && width == COLUMNS ? given + (at) : c->space;                                                      \
        if (c->field == c->space)                                                                                             \
            for (int64_t i = 0; i < COLUMNS; i++) c->space[i] = i < width ? given[(step) ? (at) + i : 0] : 0;                 \
    } while (0)

static void gather_constants(constants *c, const hwq_epilogue *e, int64_t column, int64_t width)
{
    HWQ_CONSTANTS(float, scales, scale_space, e->scales_f32, e->channel_step, column);
    HWQ_CONSTANTS(float, bias, bias_space, e->float_bias, 1, column);
    HWQ_CONSTANTS(double, doubles, double_space, e->scales_f64, e->channel_step, column);
    HWQ_CONSTANTS(int32_t, multipliers, multiplier_space, e->multipliers, e->channel_step, column);
    HWQ_CONSTANTS(int32_t, shifts, shift_space, e->shifts, e->channel_step, column);
}

#define LOAD(p) _mm256_loadu_si256((const __m256i *)(p))

/* R3: floor(x / 2^e + 1/2) = (x >> e) + bit e - 1 of x, which a logical shift by -1, that is out of range, makes 0 for e = 0. */
static inline __m256i ruy8(__m256i acc, __m256i m, __m256i shift)
{
    const __m256i zero = _mm256_setzero_si256(), one = _mm256_set1_epi32(1);
    const __m256i left = _mm256_max_epi32(shift, zero), right = _mm256_max_epi32(_mm256_sub_epi32(zero, shift), zero);
    const __m256i x = hwq_doubling_high_s32x8(_mm256_sllv_epi32(acc, left), m);
    return _mm256_add_epi32(_mm256_srav_epi32(x, right), _mm256_and_si256(_mm256_srlv_epi32(x, _mm256_sub_epi32(right, one)), one));
}

/* Four products (int64) up by e in 1..62, clamped: the arithmetic shift is a logical one of the number moved up by 2^63. */
static inline __m256i up4(__m256i product, __m256i e, __m256i lo, __m256i hi)
{
    const __m256i top = _mm256_set1_epi64x(INT64_MIN), one = _mm256_set1_epi64x(1);
    const __m256i sum = _mm256_add_epi64(product, _mm256_sllv_epi64(one, _mm256_sub_epi64(e, one)));
    __m256i v = _mm256_sub_epi64(_mm256_srlv_epi64(_mm256_xor_si256(sum, top), e), _mm256_srlv_epi64(top, e));
    v = _mm256_blendv_epi8(v, lo, _mm256_cmpgt_epi64(lo, v));
    return _mm256_blendv_epi8(v, hi, _mm256_cmpgt_epi64(v, hi));
}

/* R6, R7: one 64-bit product, one rounding by e, a clamp to [lo, hi]. */
static inline __m256i up8(__m256i acc, __m256i m, __m256i e, int32_t lo, int32_t hi)
{
    const __m256i low = _mm256_set1_epi64x(lo), high = _mm256_set1_epi64x(hi), half = _mm256_set1_epi64x(0xFFFFFFFF);
    const __m256i even = up4(_mm256_mul_epi32(acc, m), _mm256_and_si256(e, half), low, high);
    const __m256i odd = up4(_mm256_mul_epi32(_mm256_srli_epi64(acc, 32), _mm256_srli_epi64(m, 32)), _mm256_srli_epi64(e, 32), low, high);
    return _mm256_blend_epi32(even, _mm256_slli_epi64(odd, 32), 0xAA);
}

/* R2: clamped, then ties away: adding the double below one half and truncating is exact, because no double below a tie reaches it. */
static inline __m128i f64x4(__m128i acc, const double *scales, __m256d lo, __m256d hi)
{
    const __m256d sign = _mm256_set1_pd(-0.0), below_half = _mm256_set1_pd(0.49999999999999994);
    const __m256d v = _mm256_min_pd(_mm256_max_pd(_mm256_mul_pd(_mm256_cvtepi32_pd(acc), _mm256_loadu_pd(scales)), lo), hi);
    return _mm256_cvttpd_epi32(_mm256_add_pd(v, _mm256_or_pd(_mm256_and_pd(v, sign), below_half)));
}

/* Eight columns from `at`: rounded, clamped, with the zero point. */
static inline __attribute__((always_inline)) __m256i round8(const int rounding, const hwq_epilogue *e, const constants *c, const int32_t *acc, int at)
{
    const int32_t lo = e->lo - e->zero_point, hi = e->hi - e->zero_point;
    const __m256i a = LOAD(acc + at), zero_point = _mm256_set1_epi32(e->zero_point);
    if (rounding == HWQ_ROUND_FP32) {
        __m256 v = _mm256_cvtepi32_ps(a);
        if (c->bias) v = _mm256_add_ps(v, _mm256_loadu_ps(c->bias + at));
        v = _mm256_mul_ps(v, _mm256_loadu_ps(c->scales + at));
        v = _mm256_min_ps(_mm256_max_ps(v, _mm256_set1_ps((float)lo)), _mm256_set1_ps((float)hi));
        return _mm256_add_epi32(_mm256_cvtps_epi32(v), zero_point);
    }
    if (rounding == HWQ_ROUND_F64) {
        const __m256d low = _mm256_set1_pd(lo), high = _mm256_set1_pd(hi);
        const __m128i first = f64x4(_mm256_castsi256_si128(a), c->doubles + at, low, high);
        const __m128i second = f64x4(_mm256_extracti128_si256(a, 1), c->doubles + at + 4, low, high);
        return _mm256_add_epi32(_mm256_set_m128i(second, first), zero_point);
    }
    const __m256i m = LOAD(c->multipliers + at), shift = LOAD(c->shifts + at);
    __m256i v;
    if (rounding == HWQ_ROUND_XNN_FIXED) v = up8(a, m, shift, lo, hi);
    else if (rounding == HWQ_ROUND_SINGLE) v = up8(a, m, _mm256_sub_epi32(_mm256_set1_epi32(31), shift), lo, hi);
    else {
        v = rounding == HWQ_ROUND_RUY ? ruy8(a, m, shift) : hwq_round_gemmlowp_s32x8(a, m, shift);
        v = _mm256_min_epi32(_mm256_max_epi32(v, _mm256_set1_epi32(lo)), _mm256_set1_epi32(hi));
    }
    return _mm256_add_epi32(v, zero_point);
}

/* 16 results, already inside their type, to `width` elements. */
static inline void put(int32_t type, __m256i first, __m256i second, int64_t width, void *out)
{
    const __m256i words = _mm256_permute4x64_epi64(type == HWQ_U16 ? _mm256_packus_epi32(first, second) : _mm256_packs_epi32(first, second), 0xD8);
    uint8_t space[32];
    void *to = width == COLUMNS ? out : space;
    if (type <= HWQ_S8) {
        const __m128i low = _mm256_castsi256_si128(words), high = _mm256_extracti128_si256(words, 1);
        _mm_storeu_si128((__m128i *)to, type == HWQ_U8 ? _mm_packus_epi16(low, high) : _mm_packs_epi16(low, high));
    } else {
        _mm256_storeu_si256((__m256i *)to, words);
    }
    if (to == space) memcpy(out, space, (size_t)(width * hwq_type_size(type)));
}

static inline __attribute__((always_inline)) void requantize(const int rounding, const hwq_epilogue *e, int64_t rows, int64_t columns, int64_t first_column,
                                                             const int32_t *acc, int64_t acc_stride, char *out, int64_t out_stride)
{
    const int64_t size = hwq_type_size(e->out_type);
    for (int64_t column = 0; column < columns; column += COLUMNS) {
        const int64_t width = columns - column < COLUMNS ? columns - column : COLUMNS;
        constants c;
        gather_constants(&c, e, first_column + column, width);
        for (int64_t row = 0; row < rows; row++) {
            const int32_t *from = acc + row * acc_stride + column;
            int32_t tail[COLUMNS] = {0};
            if (width < COLUMNS) from = memcpy(tail, from, (size_t)width * 4);
            put(e->out_type, round8(rounding, e, &c, from, 0), round8(rounding, e, &c, from, 8), width, out + (row * out_stride + column) * size);
        }
    }
}

static void to_floats(const hwq_epilogue *e, int64_t columns, int64_t first_column, const int32_t *acc, float *out)
{
    const float *scales = e->scales_f32 + (e->channel_step ? first_column : 0), *bias = e->float_bias ? e->float_bias + first_column : NULL;
    int64_t i = 0;
    for (; i + 8 <= columns; i += 8) {
        __m256 v = _mm256_cvtepi32_ps(LOAD(acc + i));
        v = _mm256_mul_ps(v, e->channel_step ? _mm256_loadu_ps(scales + i) : _mm256_set1_ps(scales[0]));
        if (bias) v = _mm256_add_ps(v, _mm256_loadu_ps(bias + i));
        _mm256_storeu_ps(out + i, v);
    }
    for (; i < columns; i++) {
        const float v = (float)acc[i] * scales[e->channel_step ? i : 0];
        out[i] = bias ? v + bias[i] : v;
    }
}

void hwq_requantize__avx2(const hwq_epilogue *e, int64_t rows, int64_t columns, int64_t first_column, const void *acc, int32_t acc_type,
                          int64_t acc_stride, void *out, int64_t out_stride)
{
    if (acc_type != HWQ_S32 || (e->kind == HWQ_KIND_REQUANT && e->rounding == HWQ_ROUND_MBQM64)) {
        hwq_requantize__ref(e, rows, columns, first_column, acc, acc_type, acc_stride, out, out_stride);
        return;
    }
    const int32_t *from = acc;
    if (e->kind == HWQ_KIND_REQUANT) {
#define HWQ_CASE(name) case name: requantize(name, e, rows, columns, first_column, from, acc_stride, out, out_stride); break
        switch (e->rounding) {
            HWQ_CASE(HWQ_ROUND_GEMMLOWP);
            HWQ_CASE(HWQ_ROUND_F64);
            HWQ_CASE(HWQ_ROUND_RUY);
            HWQ_CASE(HWQ_ROUND_FP32);
            HWQ_CASE(HWQ_ROUND_XNN_FIXED);
        default: requantize(HWQ_ROUND_SINGLE, e, rows, columns, first_column, from, acc_stride, out, out_stride);
        }
    } else {
        for (int64_t row = 0; row < rows; row++) {
            if (e->kind == HWQ_KIND_F32) to_floats(e, columns, first_column, from + row * acc_stride, (float *)out + row * out_stride);
            else memcpy((int32_t *)out + row * out_stride, from + row * acc_stride, (size_t)columns * 4);
        }
    }
    if (e->lut || e->residual_op)
        for (int64_t row = 0; row < rows; row++) hwq_finish_row(e, row, columns, (char *)out + row * out_stride * hwq_type_size(e->out_type));
}

HWQ_TARGET_END
#endif
