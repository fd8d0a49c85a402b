/* gemm_f32_scaled.h on 512 bits, a byte a weight. */
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
