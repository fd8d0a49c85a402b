/* gemm_f32_scaled.h on 512 bits, a byte a weight. Symmetric bytes 0 and 1 lie inside a float's 23 bits of mantissa and become floats where they lie
 * (gemm_f32s4_avx512vnni.c): on Zen 5 1.11 times as fast with one row, 0.95 with four. */
#include "gemm_s4.h"
#include "isa.h"

#if HWQ_X86
#include <immintrin.h>
#include <string.h>

HWQ_TARGET("avx512f,avx512bw,avx512vl,avx512dq,fma")

#include "gemm_f32_scaled_avx512.h"
enum { SHIFT = 0, DEPTH = HWQ_QUAD };

static inline __attribute__((always_inline)) __m512i prepare(__m512i v, const int half, const int weights)
{
    (void)half, (void)weights;
    return v;
}

/* Byte i of a lane. */
static inline __attribute__((always_inline)) __m512 element(__m512i v, const int i, __m512i zero_point, const int weights)
{
    if (weights == SYMMETRIC && i < 2) {
        const float one = (float)(1 << (23 - 8 * i));
        const __m512i unit = _mm512_xor_si512(_mm512_castps_si512(_mm512_set1_ps(one)), _mm512_set1_epi32(128 << (8 * i)));
        const __m512i in = _mm512_ternarylogic_epi32(v, _mm512_set1_epi32(255 << (8 * i)), unit, 0x6A); /* v & mask ^ unit */
        return _mm512_sub_ps(_mm512_castsi512_ps(in), _mm512_set1_ps(one + 128));
    }
    const __m512i w = _mm512_srai_epi32(_mm512_slli_epi32(v, (unsigned)(24 - 8 * i)), 24);
    return _mm512_cvtepi32_ps(weights == SYMMETRIC ? w : _mm512_sub_epi32(w, zero_point));
}

#define PACKED hwq_packed_s8
#define ARGS hwq_gemm_f32s8_args
#define STORED quads
#include "gemm_f32_scaled.h"

void hwq_gemm_f32s8__avx512vnni(const hwq_gemm_f32s8_args *args) { multiply(args); }

HWQ_TARGET_END
#endif
