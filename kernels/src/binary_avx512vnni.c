/* The quantized sums of onnxruntime and XNNPACK, 16 bytes at a time: the same steps as the plain reading (XNNPACK's in int32 and in
 * pairs, as binary_avx2.c explains). Every other operator runs as on AVX2. */
#include "isa.h"

#if HWQ_X86
#include <immintrin.h>

HWQ_TARGET("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")

static inline __m512 floats(int32_t type, __m128i bytes)
{
    return _mm512_cvtepi32_ps(type == HWQ_U8 ? _mm512_cvtepu8_epi32(bytes) : _mm512_cvtepi8_epi32(bytes));
}

static void xnnpack_sum(const hwq_binary *p, int64_t n, const char *a, const char *b, char *out)
{
    const int32_t am = p->a_multiplier, bm = p->b_multiplier;
    const uint32_t constant = (UINT32_C(1) << (p->shift - 1)) - (uint32_t)p->a_zero_point * (uint32_t)am - (uint32_t)p->b_zero_point * (uint32_t)bm;
    const __m512i upper = _mm512_set1_epi32((int32_t)((uint32_t)(am >> 10 & 0xFFFF) | (uint32_t)(bm >> 10) << 16));
    const __m512i lower = _mm512_set1_epi32((int32_t)((uint32_t)(am & 1023) | (uint32_t)(bm & 1023) << 16));
    const __m512i lo = _mm512_set1_epi32(p->lo), hi = _mm512_set1_epi32(p->hi), zero_point = _mm512_set1_epi32(p->zero_point);
    const __m128i shift = _mm_cvtsi32_si128(p->shift);
    const int32_t a_type = p->a_type, b_type = p->b_type;
    for (int64_t i = 0; i < n; i += 16) {
        const __mmask16 mask = (__mmask16)(n - i >= 16 ? 0xFFFF : (1 << (n - i)) - 1);
        const __m128i x = _mm_maskz_loadu_epi8(mask, a + i), y = _mm_maskz_loadu_epi8(mask, b + i);
        const __m512i first = a_type == HWQ_U8 ? _mm512_cvtepu8_epi32(x) : _mm512_cvtepi8_epi32(x);
        const __m512i second = b_type == HWQ_U8 ? _mm512_cvtepu8_epi32(y) : _mm512_cvtepi8_epi32(y);
        const __m512i pairs = _mm512_mask_blend_epi16(0xAAAAAAAA, first, _mm512_slli_epi32(second, 16));
        const __m512i low = _mm512_dpwssd_epi32(_mm512_set1_epi32((int32_t)constant), pairs, lower);
        const __m512i high = _mm512_slli_epi32(_mm512_dpwssd_epi32(_mm512_setzero_si512(), pairs, upper), 10);
        const __m512i v = _mm512_sra_epi32(_mm512_add_epi32(low, high), shift);
        const __m512i bytes = _mm512_min_epi32(_mm512_max_epi32(_mm512_add_epi32(v, zero_point), lo), hi);
        _mm_mask_storeu_epi8(out + i, mask, _mm512_cvtepi32_epi8(bytes));
    }
}

void hwq_binary_run__avx512vnni(const hwq_binary *p, int64_t n, const void *a, int64_t a_step, const void *b, int64_t b_step, void *out)
{
    const int bytes_alone = a_step == 1 && b_step == 1 && p->a_type <= HWQ_S8 && p->b_type <= HWQ_S8 && p->out_type <= HWQ_S8;
    if (bytes_alone && (p->formula == HWQ_BINARY_XNN_ADD || p->formula == HWQ_BINARY_XNN_SUB)) {
        xnnpack_sum(p, n, a, b, out);
        return;
    }
    if (!bytes_alone || p->formula != HWQ_BINARY_ORT_ADD) {
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
