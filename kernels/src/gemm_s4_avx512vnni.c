/* INT4 x INT8 on vpdpbusd: u8 x s8, where nibbles are s8 of 0..15. Exact: no lane saturates on the way; |acc| grows by at most
 * 4 * 255 * 15 a step. */
#include "gemm_s4.h"
#include "isa.h"

#if HWQ_X86
#include <immintrin.h>
#include <string.h>

HWQ_TARGET("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,fma")

#define VECTOR __m512i
#define FLOATS __m512
#define SET1 _mm512_set1_epi32
#define SUB _mm512_sub_epi32
#define MULLO _mm512_mullo_epi32
#define TO_FLOATS _mm512_cvtepi32_ps
#define LOAD_FLOATS _mm512_loadu_ps
#define FMA _mm512_fmadd_ps
#define ZERO_FLOATS _mm512_setzero_ps()
#define DOT_BY_INTRINSICS _mm512_dpbusd_epi32
#define DOT_PREFIX ""
#include "dot_vnni.h"
enum { LANES = 16, ROWS = 12, SIGNED_A = 0 };
#define BLOCK_PRODUCT                                                                                                         \
    static inline __attribute__((always_inline)) void block_product(const int rows, int64_t pairs, const uint8_t *a, int64_t a_stride, \
                                                                    const uint8_t *b, VECTOR acc[ROWS][1])                    \
    {                                                                                                                         \
        const __m512i mask = _mm512_set1_epi32(0x0F0F0F0F);                                                                   \
        for (int r = 0; r < rows; r++) acc[r][0] = SET1(0);                                                                   \
        for (int64_t p = 0; p < pairs; p++) {                                                                                 \
            const __m512i x = load(b + 64 * p), u = _mm512_and_si512(x, mask), v = _mm512_and_si512(_mm512_srli_epi32(x, 4), mask); \
            for (int r = 0; r < rows; r++) {                                                                                  \
                acc[r][0] = DOT(acc[r][0], quad_at(a + r * a_stride + 8 * p), u);                                             \
                acc[r][0] = DOT(acc[r][0], quad_at(a + r * a_stride + 8 * p + 4), v);                                         \
            }                                                                                                                 \
        }                                                                                                                     \
    }
#include "gemm_s4_blocks.h"

void hwq_gemm_s4__avx512vnni(const hwq_gemm_s4_args *args) { multiply(args); }

HWQ_TARGET_END
#endif
