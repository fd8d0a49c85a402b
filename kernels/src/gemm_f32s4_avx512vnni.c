/* gemm_f32_scaled.h on 512 bits: a nibble is an index into a table of 16 floats in one register. */
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
/* The lookup reads the index's low 4 bits only; symmetric zero points are in the table already. */
static inline __attribute__((always_inline)) __m512 nibble(__m512i v, const int i, __m512i zero_point, const int symmetric)
{
    const float first = symmetric ? -8.0f : 0.0f;
    const __m512 table = _mm512_add_ps(_mm512_set_ps(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0), _mm512_set1_ps(first));
    const __m512 u = _mm512_permutexvar_ps(_mm512_srli_epi32(v, (unsigned)(i % 4 * 8 + i / 4 * 4)), table);
    return symmetric ? u : _mm512_sub_ps(u, _mm512_cvtepi32_ps(zero_point));
}
#define element nibble
#define PACKED hwq_packed_s4
#define ARGS hwq_gemm_s4_args
#define STORED nibbles
enum { DEPTH = 8 };
#include "gemm_f32_scaled.h"

void hwq_gemm_f32s4__avx512vnni(const hwq_gemm_s4_args *args) { multiply(args); }

HWQ_TARGET_END
#endif
