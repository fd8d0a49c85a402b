/* gemm_f32_scaled.h on 256 bits, a byte a weight: two shifts and a conversion, and a subtraction where there are zero points. */
#include "gemm_s4.h"
#include "isa.h"

#if HWQ_X86
#include <immintrin.h>
#include <string.h>

HWQ_TARGET("avx2,fma")

#define VECTOR __m256i
#define FLOATS __m256
#define LOAD_FLOATS _mm256_loadu_ps
#define SET1_FLOAT _mm256_set1_ps
#define FMA _mm256_fmadd_ps
#define ZERO_FLOATS _mm256_setzero_ps()
enum { TOGETHER = 2, SHIFT = 0, LANES = 8, CHAINS = 8, MANY_ROWS = 6, MANY_STRIPS = 1 };

static inline __m256i load(const void *p) { return _mm256_loadu_si256((const __m256i *)p); }
static inline __attribute__((always_inline)) __m256i prepare(__m256i v, const int symmetric)
{
    (void)symmetric;
    return v;
}
/* Byte i of a lane. */
static inline __attribute__((always_inline)) __m256 element(__m256i v, const int i, __m256i zero_point, const int symmetric)
{
    const __m256i w = _mm256_srai_epi32(_mm256_slli_epi32(v, 24 - 8 * i), 24);
    return _mm256_cvtepi32_ps(symmetric ? w : _mm256_sub_epi32(w, zero_point));
}
#define PACKED hwq_packed_s8
#define ARGS hwq_gemm_f32s8_args
#define STORED quads
enum { DEPTH = HWQ_QUAD };
#include "gemm_f32_scaled.h"

void hwq_gemm_f32s8__avx2(const hwq_gemm_f32s8_args *args) { multiply(args); }

HWQ_TARGET_END
#endif
