/* Sums of byte tensors, 16 elements at a time; the other operators are the loops of binary.h, vectorized by the compiler with
 * AVX2 and FMA. Either way the same steps as the plain reading, so the same bits.
 *
 * XNNPACK's sums fit int32 where both tensors are bytes: |x - zp| <= 255, multipliers at most 2^21 (prepare_xnn_sum), the half
 * at most 2^29, together below 1.61e9; what stands between is modulo 2^32. A multiplier's upper bits, at most 2^11, fit int16. */
#include "epilogue.h"
#include "isa.h"

#if HWQ_X86
#include <immintrin.h>
#include <math.h>
#include <stdint.h>

HWQ_TARGET("avx2,fma")
#include "binary.h"
#include "fixedpoint_avx2.h"

static inline __m256i widen8(int32_t type, const void *x)
{
    const __m128i bytes = _mm_loadl_epi64((const __m128i *)x);
    return type == HWQ_U8 ? _mm256_cvtepu8_epi32(bytes) : _mm256_cvtepi8_epi32(bytes);
}

/* Eight sums, to which the zero point must still be added and which may lie far outside the clamp. */
static inline __attribute__((always_inline)) __m256i sum8(const int formula, const hwq_binary *p, __m256i a, __m256i b)
{
    if (formula == HWQ_BINARY_ORT_ADD) { /* its zero point is in the offset; minps keeps what is too great for int32 away from it */
        const __m256 inner = _mm256_fmadd_ps(_mm256_cvtepi32_ps(b), _mm256_set1_ps(p->b_factor), _mm256_set1_ps(p->a_offset));
        const __m256 v = _mm256_fmadd_ps(_mm256_cvtepi32_ps(a), _mm256_set1_ps(p->a_factor), inner);
        return _mm256_cvtps_epi32(_mm256_min_ps(_mm256_set1_ps((float)p->hi), v));
    }
    if (formula == HWQ_BINARY_XNN_ADD) { /* pairs (a, b) times the upper and the lower 10 bits of the multipliers; zero points in the constant */
        const int32_t am = p->a_multiplier, bm = p->b_multiplier;
        const uint32_t constant = (UINT32_C(1) << (p->shift - 1)) - (uint32_t)p->a_zero_point * (uint32_t)am - (uint32_t)p->b_zero_point * (uint32_t)bm;
        const __m256i upper = _mm256_set1_epi32((int32_t)((uint32_t)(am >> 10 & 0xFFFF) | (uint32_t)(bm >> 10) << 16));
        const __m256i lower = _mm256_set1_epi32((int32_t)((uint32_t)(am & 1023) | (uint32_t)(bm & 1023) << 16));
        const __m256i pairs = _mm256_blend_epi16(a, _mm256_slli_epi32(b, 16), 0xAA);
        const __m256i low = _mm256_add_epi32(_mm256_madd_epi16(pairs, lower), _mm256_set1_epi32((int32_t)constant));
        return _mm256_sra_epi32(_mm256_add_epi32(low, _mm256_slli_epi32(_mm256_madd_epi16(pairs, upper), 10)), _mm_cvtsi32_si128(p->shift));
    }
    a = _mm256_sub_epi32(a, _mm256_set1_epi32(p->a_zero_point)), b = _mm256_sub_epi32(b, _mm256_set1_epi32(p->b_zero_point));
    a = hwq_round_gemmlowp_s32x8(_mm256_sll_epi32(a, _mm_cvtsi32_si128(p->left)), _mm256_set1_epi32(p->a_multiplier), _mm256_set1_epi32(p->a_shift));
    b = hwq_round_gemmlowp_s32x8(_mm256_sll_epi32(b, _mm_cvtsi32_si128(p->left)), _mm256_set1_epi32(p->b_multiplier), _mm256_set1_epi32(p->b_shift));
    return hwq_round_gemmlowp_s32x8(_mm256_add_epi32(a, b), _mm256_set1_epi32(p->multiplier), _mm256_set1_epi32(p->shift));
}

/* Whole sixteens; how many elements they were. A sixteen is read before it is written: in place is safe. Packing saturates, twice and
 * with the zero point between, which changes nothing that the clamp to [lo, hi], inside the byte, does not change. */
static inline __attribute__((always_inline)) int64_t sums(const int formula, const hwq_binary *p, int64_t n, const char *a, const char *b, char *out)
{
    const __m256i zero_point = _mm256_set1_epi16((short)(formula == HWQ_BINARY_ORT_ADD ? 0 : p->zero_point));
    const __m128i lo = _mm_set1_epi8((char)p->lo), hi = _mm_set1_epi8((char)p->hi);
    int64_t i = 0;
    for (; i + 16 <= n; i += 16) {
        const __m256i first = sum8(formula, p, widen8(p->a_type, a + i), widen8(p->b_type, b + i));
        const __m256i second = sum8(formula, p, widen8(p->a_type, a + i + 8), widen8(p->b_type, b + i + 8));
        const __m256i words = _mm256_permute4x64_epi64(_mm256_adds_epi16(_mm256_packs_epi32(first, second), zero_point), 0xD8);
        const __m128i low = _mm256_castsi256_si128(words), high = _mm256_extracti128_si256(words, 1);
        const __m128i bytes = p->out_type == HWQ_U8 ? _mm_min_epu8(_mm_max_epu8(_mm_packus_epi16(low, high), lo), hi)
                                                    : _mm_min_epi8(_mm_max_epi8(_mm_packs_epi16(low, high), lo), hi);
        _mm_storeu_si128((__m128i *)(out + i), bytes);
    }
    return i;
}

void hwq_binary_run__avx2(const hwq_binary *p, int64_t n, const void *a, int64_t a_step, const void *b, int64_t b_step, void *out)
{
    const hwq_binary copy = *p; /* the output cannot alias it */
    int64_t done = 0;
    if (a_step == 1 && b_step == 1 && p->a_type <= HWQ_S8 && p->b_type <= HWQ_S8 && p->out_type <= HWQ_S8) switch (p->formula) {
        case HWQ_BINARY_ORT_ADD: done = sums(HWQ_BINARY_ORT_ADD, &copy, n, a, b, out); break;
        case HWQ_BINARY_XNN_ADD: case HWQ_BINARY_XNN_SUB: done = sums(HWQ_BINARY_XNN_ADD, &copy, n, a, b, out); break;
        case HWQ_BINARY_TFLITE_ADD: case HWQ_BINARY_TFLITE_SUB: done = sums(HWQ_BINARY_TFLITE_ADD, &copy, n, a, b, out); break;
        default: break;
        }
    if (done < n) {
        const int64_t size = hwq_type_size(p->a_type), b_size = hwq_type_size(p->b_type);
        combine_all(p, n - done, (const char *)a + done * a_step * size, a_step, (const char *)b + done * b_step * b_size, b_step,
                    (char *)out + done * hwq_type_size(p->out_type));
    }
}

HWQ_TARGET_END
#endif
