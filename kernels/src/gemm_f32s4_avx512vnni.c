/* gemm_f32_scaled.h on 512 bits: a nibble is an index into a table of 16 floats in one register. A shift, a lookup and a multiply-add for 16
 * MACs on two ports: 10.7 a cycle. Far weights come at 0.75 to 0.9 of the speed of reading alone (4096 x 4096, Cascade Lake): there
 * bandwidth is the limit. Zen 5 shifts and looks up on two ports of four, so two symmetric nibbles of eight, which lie inside a float's 23 bits of
 * mantissa, are made floats where they lie: a logic operation under an exponent that gives their lowest bit the value 1, and a subtraction, exact.
 * All of that is two operations too. With 8 strips 1.13 to 1.17 times as fast as lookups alone on 4, 17 to 18 MACs a cycle (more such nibbles were slower:
 * their constants fill the registers). */
#include "gemm_s4.h"
#include "isa.h"

#if HWQ_X86
#include <immintrin.h>
#include <string.h>

HWQ_TARGET("avx512f,avx512bw,avx512vl,avx512dq,fma")

#include "gemm_f32_scaled_avx512.h"
enum { SHIFT = 0, DEPTH = 8 };

static inline __attribute__((always_inline)) __m512i prepare(__m512i v, const int half, const int weights)
{
    (void)half, (void)weights;
    return v;
}

/* The lookup reads the index's low 4 bits only; symmetric zero points are in the table, or in what is subtracted, already. */
static inline __attribute__((always_inline)) __m512 element(__m512i v, const int i, __m512i zero_point, const int weights)
{
    const int at = i % 4 * 8 + i / 4 * 4;
    if (weights == SYMMETRIC && (at == 8 || at == 12)) {
        const float one = (float)(1 << (23 - at));
        const __m512i in = _mm512_ternarylogic_epi32(v, _mm512_set1_epi32(15 << at), _mm512_castps_si512(_mm512_set1_ps(one)), 0xEA);
        return _mm512_sub_ps(_mm512_castsi512_ps(in), _mm512_set1_ps(one + 8.0f));
    }
    const float first = weights == SYMMETRIC ? -8.0f : 0.0f;
    const __m512 table = _mm512_add_ps(_mm512_set_ps(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0), _mm512_set1_ps(first));
    const __m512 u = _mm512_permutexvar_ps(_mm512_srli_epi32(v, (unsigned)at), table);
    return weights == SYMMETRIC ? u : _mm512_sub_ps(u, _mm512_cvtepi32_ps(zero_point));
}

#define PACKED hwq_packed_s4
#define ARGS hwq_gemm_s4_args
#define STORED nibbles
#include "gemm_f32_scaled.h"

void hwq_gemm_f32s4__avx512vnni(const hwq_gemm_s4_args *args) { multiply(args); }

HWQ_TARGET_END
#endif
