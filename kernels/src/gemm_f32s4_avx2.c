/* gemm_f32_scaled.h on 256 bits. A nibble costs a shift, a mask, a subtraction and a conversion; symmetric ones, made two's complement
 * by one exclusive or for all 8, a byte shuffle and a conversion, 2^28 too great; two shifts and a conversion where a forbids that. */
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
enum { TOGETHER = 2, SHIFT = 28, LANES = 8, CHAINS = 8, MANY_ROWS = 6, MANY_STRIPS = 1 };

static inline __m256i load(const void *p) { return _mm256_loadu_si256((const __m256i *)p); }
static inline __attribute__((always_inline)) __m256i prepare(__m256i v, const int symmetric)
{
    return symmetric ? _mm256_xor_si256(v, _mm256_set1_epi32((int)0x88888888)) : v;
}
/* Byte i % 4 of a lane, its low half for i < 4. */
static inline __attribute__((always_inline)) __m256 nibble(__m256i v, const int i, __m256i zero_point, const int weights)
{
    const int shift = i % 4 * 8 + i / 4 * 4;
    if (weights == 2) { /* shifted: 4 bits on top of each byte, the byte on top of its lane */
        const __m256i halves = _mm256_and_si256(i < 4 ? _mm256_slli_epi32(v, 4) : v, _mm256_set1_epi8((char)0xF0));
        const char n = (char)0x80, b = (char)(i % 4);
        const __m256i on_top = _mm256_setr_epi8(n, n, n, b, n, n, n, 4 + b, n, n, n, 8 + b, n, n, n, 12 + b, n, n, n, b, n, n, n, 4 + b, n, n, n, 8 + b, n,
                                                n, n, 12 + b);
        return _mm256_cvtepi32_ps(i % 4 == 3 ? _mm256_and_si256(halves, _mm256_set1_epi32((int)0xFF000000)) : _mm256_shuffle_epi8(halves, on_top));
    }
    if (weights) return _mm256_cvtepi32_ps(_mm256_srai_epi32(_mm256_slli_epi32(v, 28 - shift), 28));
    return _mm256_cvtepi32_ps(_mm256_sub_epi32(_mm256_and_si256(_mm256_srli_epi32(v, shift), _mm256_set1_epi32(15)), zero_point));
}
#define element nibble
#define PACKED hwq_packed_s4
#define ARGS hwq_gemm_s4_args
#define STORED nibbles
enum { DEPTH = 8 };
#include "gemm_f32_scaled.h"

void hwq_gemm_f32s4__avx2(const hwq_gemm_s4_args *args) { multiply(args); }

HWQ_TARGET_END
#endif
