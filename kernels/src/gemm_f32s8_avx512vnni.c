/* gemm_f32_scaled.h on 512 bits, a byte a weight. */
#include "gemm_s4.h"
#include "isa.h"

#if HWQ_X86
#include <immintrin.h>
#include <string.h>

HWQ_TARGET("avx512f,avx512bw,avx512vl,avx512dq,fma")

#define VECTOR __m512i
#define FLOATS __m512
#define LOAD_FLOATS _mm512_loadu_ps
#define SET1_FLOAT _mm512_set1_ps
#define FMA _mm512_fmadd_ps
#define ZERO_FLOATS _mm512_setzero_ps()
enum { TOGETHER = 8, SHIFT = 0, LANES = 16, CHAINS = 8, MANY_ROWS = 6 /* lines of a 4 KB apart share a set of 8 */, MANY_STRIPS = 4 };

static inline __m512i load(const void *p)
{
    __m512i v;
    memcpy(&v, p, sizeof v);
    return v;
}
static inline __attribute__((always_inline)) __m512i prepare(__m512i v, const int symmetric)
{
    (void)symmetric;
    return v;
}
/* Byte i of a lane. */
static inline __attribute__((always_inline)) __m512 element(__m512i v, const int i, __m512i zero_point, const int symmetric)
{
    const __m512i w = _mm512_srai_epi32(_mm512_slli_epi32(v, (unsigned)(24 - 8 * i)), 24);
    return _mm512_cvtepi32_ps(symmetric ? w : _mm512_sub_epi32(w, zero_point));
}
#define PACKED hwq_packed_s8
#define ARGS hwq_gemm_f32s8_args
#define STORED quads
enum { DEPTH = HWQ_QUAD };
#include "gemm_f32_scaled.h"

void hwq_gemm_f32s8__avx512vnni(const hwq_gemm_f32s8_args *args) { multiply(args); }

HWQ_TARGET_END
#endif
