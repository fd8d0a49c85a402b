/* gemm_f32_scaled.h on 256 bits, nibbles. Symmetric ones, made two's complement by one exclusive or for all 8, stay 4 bits on top of their bytes:
 * a byte shuffle puts those on top of a lane, 2^28 too great, and a conversion makes the float; where a forbids that, two shifts and a
 * conversion; with zero points a shift, a mask, a subtraction and a conversion. 2.5 instructions for 8 weights and the
 * multiply-add, so 7 MACs a cycle of Intel's three vector ports and 2 in front of half a core: bandwidth is not the limit (half of it, 4096 x
 * 4096, Cascade Lake). Tables of the float's two bytes by vpshufb, interleaved: as many instructions, and 0.9 times as fast. */
#include "gemm_s4.h"
#include "isa.h"

#if HWQ_X86
#include <immintrin.h>
#include <string.h>

HWQ_TARGET("avx2,fma")

#include "gemm_f32_scaled_avx2.h"
enum { SHIFT = 28, DEPTH = 8, LEAST_BLOCKS = 6 };

/* For a half of the nibbles: the low ones, or the high ones. */
static inline __attribute__((always_inline)) __m256i prepare(__m256i v, const int half, const int weights)
{
    if (weights == ANY) return v;
    v = _mm256_xor_si256(v, _mm256_set1_epi32((int)0x88888888));
    return weights == SHIFTED ? _mm256_and_si256(half ? v : _mm256_slli_epi32(v, 4), _mm256_set1_epi8((char)0xF0)) : v;
}

/* Byte 0, 1 or 2 of a lane to its top, for a shuffle; byte 3 stays there, alone. */
#define FOUR(...) {__VA_ARGS__, __VA_ARGS__}
#define LANES_OF(b) FOUR(-1, -1, -1, b, -1, -1, -1, 4 + b, -1, -1, -1, 8 + b, -1, -1, -1, 12 + b)
static const _Alignas(32) int8_t ON_TOP[4][32] = {LANES_OF(0), LANES_OF(1), LANES_OF(2),
                                                  FOUR(0, 0, 0, -1, 0, 0, 0, -1, 0, 0, 0, -1, 0, 0, 0, -1)};

/* Nibble i: byte i % 4 of a lane, its low half for i < 4. */
static inline __attribute__((always_inline)) __m256 element(__m256i v, const int i, __m256i zero_point, const int weights)
{
    const int shift = i % 4 * 8 + i / 4 * 4;
    if (weights == SHIFTED) {
#if defined(__GNUC__) && defined(__x86_64__) && !defined(HWQ_NO_ASM)
        __m256 u; /* the mask from memory: in registers the masks would drive out sums */
        if (i % 4 == 3) __asm__("vpand %[mask], %[v], %[u]\n\tvcvtdq2ps %[u], %[u]" : [u] "=x"(u) : [v] "x"(v), [mask] "m"(ON_TOP[3]));
        else __asm__("vpshufb %[mask], %[v], %[u]\n\tvcvtdq2ps %[u], %[u]" : [u] "=x"(u) : [v] "x"(v), [mask] "m"(ON_TOP[i % 4]));
        return u;
#else
        const __m256i mask = load(ON_TOP[i % 4]);
        return _mm256_cvtepi32_ps(i % 4 == 3 ? _mm256_and_si256(v, mask) : _mm256_shuffle_epi8(v, mask));
#endif
    }
    if (weights == SYMMETRIC) return _mm256_cvtepi32_ps(_mm256_srai_epi32(_mm256_slli_epi32(v, 28 - shift), 28));
    return _mm256_cvtepi32_ps(_mm256_sub_epi32(_mm256_and_si256(_mm256_srli_epi32(v, shift), _mm256_set1_epi32(15)), zero_point));
}

#define PACKED hwq_packed_s4
#define ARGS hwq_gemm_s4_args
#define STORED nibbles
#include "gemm_f32_scaled.h"

void hwq_gemm_f32s4__avx2(const hwq_gemm_s4_args *args) { multiply(args); }

HWQ_TARGET_END
#endif
