/* The epilogue's common cases, 16 columns at a time with masks for the rest: float32, and R4 to bytes. Others run AVX2's.
 * Clamps as there: maxps and minps return their second operand for NaN. */
#include "epilogue.h"
#include "isa.h"

#if HWQ_X86
#include <immintrin.h>

HWQ_TARGET("avx512f,avx512bw,avx512vl,avx512dq")

void hwq_requantize__avx512vnni(const hwq_epilogue *e, int64_t rows, int64_t columns, int64_t first_column, const void *acc, int32_t acc_type,
                                int64_t acc_stride, void *out, int64_t out_stride)
{
    const int bytes = e->kind == HWQ_KIND_REQUANT && e->rounding == HWQ_ROUND_FP32 && e->out_type <= HWQ_S8;
    if (acc_type != HWQ_S32 || !(bytes || e->kind == HWQ_KIND_F32)) {
        hwq_requantize__avx2(e, rows, columns, first_column, acc, acc_type, acc_stride, out, out_stride);
        return;
    }
    const __m512 lo = _mm512_set1_ps((float)(e->lo - e->zero_point)), hi = _mm512_set1_ps((float)(e->hi - e->zero_point));
    const __m512i zero_point = _mm512_set1_epi32(e->zero_point);
    for (int64_t i = 0; i < columns; i += 16) {
        const __mmask16 mask = columns - i >= 16 ? 0xFFFF : (__mmask16)((1u << (columns - i)) - 1);
        const __m512 scale = e->channel_step ? _mm512_maskz_loadu_ps(mask, e->scales_f32 + first_column + i) : _mm512_set1_ps(e->scales_f32[0]);
        const __m512 bias = e->float_bias ? _mm512_maskz_loadu_ps(mask, e->float_bias + first_column + i) : _mm512_setzero_ps();
        const int32_t *from = (const int32_t *)acc + i;
        if (bytes) {
            uint8_t *to = (uint8_t *)out + i;
            for (int64_t row = 0; row < rows; row++, from += acc_stride, to += out_stride) {
                __m512 v = _mm512_cvtepi32_ps(_mm512_maskz_loadu_epi32(mask, from));
                if (e->float_bias) v = _mm512_add_ps(v, bias);
                v = _mm512_min_ps(_mm512_max_ps(_mm512_mul_ps(v, scale), lo), hi);
                /* the value lies inside the output type: its low byte is the result, signed or not */
                _mm512_mask_cvtepi32_storeu_epi8(to, mask, _mm512_add_epi32(_mm512_cvtps_epi32(v), zero_point));
            }
        } else {
            float *to = (float *)out + i;
            for (int64_t row = 0; row < rows; row++, from += acc_stride, to += out_stride) {
                const __m512 v = _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_maskz_loadu_epi32(mask, from)), scale);
                _mm512_mask_storeu_ps(to, mask, e->float_bias ? _mm512_add_ps(v, bias) : v);
            }
        }
    }
    if (e->lut || e->residual_op)
        for (int64_t row = 0; row < rows; row++) hwq_finish_row(e, row, columns, (char *)out + row * out_stride * hwq_type_size(e->out_type));
}

HWQ_TARGET_END
#endif
