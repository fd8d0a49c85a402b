/* onnxruntime's quantized sum, 16 bytes at a time: the same two fused multiply-adds, clamp and rounding as the plain reading.
 * Every other operator runs as on AVX2. */
#include "isa.h"

#if HWQ_X86
#include <immintrin.h>

HWQ_TARGET("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")

static inline __m512 floats(int32_t type, __m128i bytes)
{
    return _mm512_cvtepi32_ps(type == HWQ_U8 ? _mm512_cvtepu8_epi32(bytes) : _mm512_cvtepi8_epi32(bytes));
}

void hwq_binary_run__avx512vnni(const hwq_binary *p, int64_t n, const void *a, int64_t a_step, const void *b, int64_t b_step, void *out)
{
    if (p->formula != HWQ_BINARY_ORT_ADD || a_step != 1 || b_step != 1 || p->a_type > HWQ_S8 || p->b_type > HWQ_S8 || p->out_type > HWQ_S8) {
        hwq_binary_run__avx2(p, n, a, a_step, b, b_step, out);
        return;
    }
    const __m512 a_factor = _mm512_set1_ps(p->a_factor), b_factor = _mm512_set1_ps(p->b_factor), offset = _mm512_set1_ps(p->a_offset);
    const __m512 lo = _mm512_set1_ps((float)p->lo), hi = _mm512_set1_ps((float)p->hi);
    for (int64_t i = 0; i < n; i += 16) {
        const __mmask16 mask = (__mmask16)(n - i >= 16 ? 0xFFFF : (1 << (n - i)) - 1);
        const __m512 x = floats(p->a_type, _mm_maskz_loadu_epi8(mask, (const char *)a + i));
        const __m512 y = floats(p->b_type, _mm_maskz_loadu_epi8(mask, (const char *)b + i));
        const __m512 v = _mm512_fmadd_ps(x, a_factor, _mm512_fmadd_ps(y, b_factor, offset));
        /* maxps and minps give their second operand for NaN, which finite scales never make */
        const __m512i bytes = _mm512_cvtps_epi32(_mm512_min_ps(_mm512_max_ps(v, lo), hi));
        _mm_mask_storeu_epi8((char *)out + i, mask, _mm512_cvtepi32_epi8(bytes));
    }
}

HWQ_TARGET_END
#endif
