/* The epilogue's common cases, 16 columns at a time: int32, float32, and R4 to bytes. Others run the plain reading.
 * maxps(v, lo) and minps(v, hi) are the contract's clamp, NaN included: both return their second operand then. */
#include "epilogue.h"
#include "fixedpoint.h"
#include "isa.h"

#if HWQ_X86
#include <immintrin.h>
#include <string.h>

HWQ_TARGET("avx2,fma")

typedef struct {
    const float *scales, *bias; /* of the block's first column; scales[0] for all when step is 0 */
    int64_t step;
    __m256 lo, hi;
    __m256i zero_point;
} constants;

static inline __m256i requantize8(const constants *c, const int32_t *acc, int64_t i)
{
    __m256 v = _mm256_cvtepi32_ps(_mm256_loadu_si256((const __m256i *)(acc + i)));
    if (c->bias) v = _mm256_add_ps(v, _mm256_loadu_ps(c->bias + i));
    v = _mm256_mul_ps(v, c->step ? _mm256_loadu_ps(c->scales + i) : _mm256_set1_ps(c->scales[0]));
    v = _mm256_min_ps(_mm256_max_ps(v, c->lo), c->hi);
    return _mm256_add_epi32(_mm256_cvtps_epi32(v), c->zero_point);
}

static void to_bytes(const hwq_epilogue *e, const constants *c, int64_t columns, const int32_t *acc, uint8_t *out)
{
    int64_t i = 0;
    for (; i + 16 <= columns; i += 16) {
        const __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(requantize8(c, acc, i), requantize8(c, acc, i + 8)), 0xD8);
        const __m128i low = _mm256_castsi256_si128(words), high = _mm256_extracti128_si256(words, 1);
        _mm_storeu_si128((__m128i *)(out + i), e->out_type == HWQ_U8 ? _mm_packus_epi16(low, high) : _mm_packs_epi16(low, high));
    }
    for (; i < columns; i++) {
        float v = (float)acc[i];
        if (c->bias) v += c->bias[i];
        out[i] = (uint8_t)hwq_round_fp32(v, c->scales[c->step ? i : 0], e->zero_point, e->lo, e->hi);
    }
}

static void to_floats(const constants *c, int64_t columns, const int32_t *acc, float *out)
{
    int64_t i = 0;
    for (; i + 8 <= columns; i += 8) {
        __m256 v = _mm256_cvtepi32_ps(_mm256_loadu_si256((const __m256i *)(acc + i)));
        v = _mm256_mul_ps(v, c->step ? _mm256_loadu_ps(c->scales + i) : _mm256_set1_ps(c->scales[0]));
        if (c->bias) v = _mm256_add_ps(v, _mm256_loadu_ps(c->bias + i));
        _mm256_storeu_ps(out + i, v);
    }
    for (; i < columns; i++) {
        const float v = (float)acc[i] * c->scales[c->step ? i : 0];
        out[i] = c->bias ? v + c->bias[i] : v;
    }
}

void hwq_requantize__avx2(const hwq_epilogue *e, int64_t rows, int64_t columns, int64_t first_column, const void *acc, int32_t acc_type,
                          int64_t acc_stride, void *out, int64_t out_stride)
{
    const int bytes = e->kind == HWQ_KIND_REQUANT && e->rounding == HWQ_ROUND_FP32 && e->out_type <= HWQ_S8;
    if (acc_type != HWQ_S32 || (e->kind == HWQ_KIND_REQUANT && !bytes)) {
        hwq_requantize__ref(e, rows, columns, first_column, acc, acc_type, acc_stride, out, out_stride);
        return;
    }
    const int64_t first = e->channel_step ? first_column : 0, size = hwq_type_size(e->out_type);
    const constants c = {.scales = e->scales_f32 ? e->scales_f32 + first : NULL, .bias = e->float_bias ? e->float_bias + first_column : NULL,
                         .step = e->channel_step, .lo = _mm256_set1_ps((float)(e->lo - e->zero_point)),
                         .hi = _mm256_set1_ps((float)(e->hi - e->zero_point)), .zero_point = _mm256_set1_epi32(e->zero_point)};
    for (int64_t row = 0; row < rows; row++) {
        const int32_t *from = (const int32_t *)acc + row * acc_stride;
        char *line = (char *)out + row * out_stride * size;
        if (e->kind == HWQ_KIND_S32) memcpy(line, from, (size_t)columns * 4);
        else if (e->kind == HWQ_KIND_F32) to_floats(&c, columns, from, (float *)line);
        else to_bytes(e, &c, columns, from, (uint8_t *)line);
        hwq_finish_row(e, row, columns, line);
    }
}

HWQ_TARGET_END
#endif
