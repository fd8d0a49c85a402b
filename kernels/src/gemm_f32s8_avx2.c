/* gemm_f32_scaled.h on 256 bits, a byte a weight: two shifts and a conversion, and a subtraction where there are zero points. */
#include "gemm_s4.h"
#include "isa.h"

#if HWQ_X86
#include <immintrin.h>
#include <string.h>

HWQ_TARGET("avx2,fma")

#include "gemm_f32_scaled_avx2.h"
enum { SHIFT = 0, DEPTH = HWQ_QUAD, LEAST_BLOCKS = INT32_MAX };

static inline __attribute__((always_inline)) __m256i prepare(__m256i v, const int half, const int weights)
{
    (void)half, (void)weights;
    return v;
}

/* Byte i of a lane. */
static inline __attribute__((always_inline)) __m256 element(__m256i v, const int i, __m256i zero_point, const int weights)
{
    const __m256i w = _mm256_srai_epi32(_mm256_slli_epi32(v, 24 - 8 * i), 24);
    return _mm256_cvtepi32_ps(weights == SYMMETRIC ? w : _mm256_sub_epi32(w, zero_point));
}

#define PACKED hwq_packed_s8
#define ARGS hwq_gemm_f32s8_args
#define STORED quads
#include "gemm_f32_scaled.h"

void hwq_gemm_f32s8__avx2(const hwq_gemm_f32s8_args *args) { multiply(args); }

HWQ_TARGET_END
#endif
