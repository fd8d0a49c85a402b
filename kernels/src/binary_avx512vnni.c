/* The quantized sums of onnxruntime and XNNPACK, 64 bytes at a time, then 16: the same steps as the plain reading (XNNPACK's in int32 and in
 * pairs, as binary_avx2.c explains). Every other operator runs as on AVX2. */
#include "isa.h"

#if HWQ_X86
#include <immintrin.h>

HWQ_TARGET("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")

static inline __m512i integers(int32_t type, __m128i bytes) { return type == HWQ_U8 ? _mm512_cvtepu8_epi32(bytes) : _mm512_cvtepi8_epi32(bytes); }
static inline __m128i load16(const char *x) { return _mm_loadu_si128((const __m128i *)x); }

/* 64 integers to bytes in [lo, hi]: packing saturates to the type, which holds both. */
static inline void put64(int32_t type, const __m512i v[4], __m512i lo, __m512i hi, char *out)
{
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15); /* packing works in quarters */
    const __m512i first = _mm512_packs_epi32(v[0], v[1]), second = _mm512_packs_epi32(v[2], v[3]);
    __m512i bytes;
    if (type == HWQ_U8) bytes = _mm512_min_epu8(_mm512_max_epu8(_mm512_packus_epi16(first, second), lo), hi);
    else bytes = _mm512_min_epi8(_mm512_max_epi8(_mm512_packs_epi16(first, second), lo), hi);
    _mm512_storeu_si512(out, _mm512_permutexvar_epi32(order, bytes));
}

typedef struct {
    __m512i upper, lower, constant, zero_point;
    __m128i shift;
    int32_t a_type, b_type;
} xnnpack;

static inline __m512i xnnpack16(const xnnpack *k, __m128i x, __m128i y)
{
    const __m512i pairs = _mm512_mask_blend_epi16(0xAAAAAAAA, integers(k->a_type, x), _mm512_slli_epi32(integers(k->b_type, y), 16));
    const __m512i low = _mm512_dpwssd_epi32(k->constant, pairs, k->lower);
    const __m512i high = _mm512_slli_epi32(_mm512_dpwssd_epi32(_mm512_setzero_si512(), pairs, k->upper), 10);
    return _mm512_add_epi32(_mm512_sra_epi32(_mm512_add_epi32(low, high), k->shift), k->zero_point);
}

static void xnnpack_sum(const hwq_binary *p, int64_t n, const char *a, const char *b, char *out)
{
    const int32_t am = p->a_multiplier, bm = p->b_multiplier;
    const uint32_t constant = (UINT32_C(1) << (p->shift - 1)) - (uint32_t)p->a_zero_point * (uint32_t)am - (uint32_t)p->b_zero_point * (uint32_t)bm;
    const xnnpack k = {.upper = _mm512_set1_epi32((int32_t)((uint32_t)(am >> 10 & 0xFFFF) | (uint32_t)(bm >> 10) << 16)),
                       .lower = _mm512_set1_epi32((int32_t)((uint32_t)(am & 1023) | (uint32_t)(bm & 1023) << 16)),
                       .constant = _mm512_set1_epi32((int32_t)constant), .zero_point = _mm512_set1_epi32(p->zero_point),
                       .shift = _mm_cvtsi32_si128(p->shift), .a_type = p->a_type, .b_type = p->b_type};
    const __m512i lo = _mm512_set1_epi32(p->lo), hi = _mm512_set1_epi32(p->hi), lo8 = _mm512_set1_epi8((char)p->lo), hi8 = _mm512_set1_epi8((char)p->hi);
    int64_t i = 0;
    for (; i + 64 <= n; i += 64) {
        __m512i v[4];
        for (int j = 0; j < 4; j++) v[j] = xnnpack16(&k, load16(a + i + 16 * j), load16(b + i + 16 * j));
        put64(p->out_type, v, lo8, hi8, out + i);
    }
    for (; i < n; i += 16) {
        const __mmask16 mask = (__mmask16)(n - i >= 16 ? 0xFFFF : (1 << (n - i)) - 1);
        const __m512i v = xnnpack16(&k, _mm_maskz_loadu_epi8(mask, a + i), _mm_maskz_loadu_epi8(mask, b + i));
        _mm_mask_storeu_epi8(out + i, mask, _mm512_cvtepi32_epi8(_mm512_min_epi32(_mm512_max_epi32(v, lo), hi)));
    }
}

/* a * fa + (b * fb + offset), each product fused, clamped above: minps gives its second operand for NaN, which like all that is below
 * int32 becomes INT32_MIN, and that the lower end. */
typedef struct {
    __m512 a_factor, b_factor, offset, lo, hi;
    int32_t a_type, b_type;
} onnxruntime;

static inline __m512 onnxruntime16(const onnxruntime *k, __m128i x, __m128i y)
{
    const __m512 first = _mm512_cvtepi32_ps(integers(k->a_type, x)), second = _mm512_cvtepi32_ps(integers(k->b_type, y));
    return _mm512_min_ps(k->hi, _mm512_fmadd_ps(first, k->a_factor, _mm512_fmadd_ps(second, k->b_factor, k->offset)));
}

static void onnxruntime_sum(const hwq_binary *p, int64_t n, const char *a, const char *b, char *out)
{
    const onnxruntime k = {.a_factor = _mm512_set1_ps(p->a_factor), .b_factor = _mm512_set1_ps(p->b_factor), .offset = _mm512_set1_ps(p->a_offset),
                           .lo = _mm512_set1_ps((float)p->lo), .hi = _mm512_set1_ps((float)p->hi), .a_type = p->a_type, .b_type = p->b_type};
    const __m512i lo8 = _mm512_set1_epi8((char)p->lo), hi8 = _mm512_set1_epi8((char)p->hi);
    int64_t i = 0;
    for (; i + 64 <= n; i += 64) {
        __m512i v[4];
        for (int j = 0; j < 4; j++) v[j] = _mm512_cvtps_epi32(onnxruntime16(&k, load16(a + i + 16 * j), load16(b + i + 16 * j)));
        put64(p->out_type, v, lo8, hi8, out + i);
    }
    for (; i < n; i += 16) {
        const __mmask16 mask = (__mmask16)(n - i >= 16 ? 0xFFFF : (1 << (n - i)) - 1);
        const __m512 v = onnxruntime16(&k, _mm_maskz_loadu_epi8(mask, a + i), _mm_maskz_loadu_epi8(mask, b + i));
        _mm_mask_storeu_epi8(out + i, mask, _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(_mm512_max_ps(v, k.lo))));
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
    onnxruntime_sum(p, n, a, b, out);
}

HWQ_TARGET_END
#endif
