/* INT4 x INT8 with deep int16 accumulation: vpmaddubsw takes u4 x s8, 8 of them join one int16 lane before it is widened.
 * Bound: 16 products of at most 15 * 128 are 30720 < 2^15, so neither the instruction nor the sums saturate or wrap.
 * Per 32 MACs: vpmaddubsw, vpaddw, and a quarter of an instruction to widen; s8 x s8 by scheme W takes four. */
#include "gemm_s4.h"
#include "isa.h"

#if HWQ_X86
#include <immintrin.h>
#include <string.h>

HWQ_TARGET("avx2,fma")

#define VECTOR __m256i
#define FLOATS __m256
#define SET1 _mm256_set1_epi32
#define SUB _mm256_sub_epi32
#define MULLO _mm256_mullo_epi32
#define TO_FLOATS _mm256_cvtepi32_ps
#define LOAD_FLOATS _mm256_loadu_ps
#define FMA _mm256_fmadd_ps
#define ZERO_FLOATS _mm256_setzero_ps()
enum { LANES = 8, ROWS = 4, SIGNED_A = 1, DEPTH = 4 /* pairs of quads: 8 vpmaddubsw */ };
#define BLOCK_PRODUCT                                                                                                         \
    static inline __attribute__((always_inline)) void block_product(const int rows, int64_t pairs, const uint8_t *a, int64_t a_stride, \
                                                                    const uint8_t *b, VECTOR acc[ROWS][2])                    \
    {                                                                                                                         \
        const __m256i mask = _mm256_set1_epi8(15), ones = _mm256_set1_epi16(1);                                               \
        for (int r = 0; r < rows; r++) acc[r][0] = acc[r][1] = _mm256_setzero_si256();                                        \
        for (int64_t done = 0; done < pairs; done += DEPTH) {                                                                 \
            __m256i s[ROWS][2];                                                                                               \
            for (int r = 0; r < rows; r++) s[r][0] = s[r][1] = _mm256_setzero_si256();                                        \
            const int64_t end = done + DEPTH < pairs ? done + DEPTH : pairs;                                                  \
            for (int64_t p = done; p < end; p++) {                                                                            \
                __m256i x = load(b + 64 * p), y = load(b + 64 * p + 32);                                                      \
                for (int half = 0; half < 2; half++) {                                                                        \
                    const __m256i u = _mm256_and_si256(x, mask), v = _mm256_and_si256(y, mask);                               \
                    for (int r = 0; r < rows; r++) {                                                                          \
                        const __m256i q = quad_at(a + r * a_stride + 8 * p + 4 * half);                                       \
                        s[r][0] = _mm256_add_epi16(s[r][0], _mm256_maddubs_epi16(u, q));                                      \
                        s[r][1] = _mm256_add_epi16(s[r][1], _mm256_maddubs_epi16(v, q));                                      \
                    }                                                                                                         \
                    x = _mm256_srli_epi16(x, 4), y = _mm256_srli_epi16(y, 4);                                                 \
                }                                                                                                             \
            }                                                                                                                 \
            for (int r = 0; r < rows; r++)                                                                                    \
                for (int v = 0; v < 2; v++) acc[r][v] = _mm256_add_epi32(acc[r][v], _mm256_madd_epi16(s[r][v], ones));        \
        }                                                                                                                     \
    }
#include "gemm_s4_blocks.h"

void hwq_gemm_s4__avx2(const hwq_gemm_s4_args *args) { multiply(args); }

HWQ_TARGET_END
#endif
