/* gemm_s4_vnni.h on 512 bits: a vector is one strip; 24 accumulators of 32 registers. On Zen 5 a few rows, 4 x 2 strips at a time, run 1.2 to 2.3 times
 * as fast as one strip at a time; 8 to 31 of them 1.0 to 1.37 times as fast so as unpacked to memory first. */
#include "gemm_s4.h"
#include "isa.h"

#if HWQ_X86
#include <immintrin.h>
#include <string.h>

HWQ_TARGET("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,fma")

#define VECTOR __m512i
#define FLOATS __m512
#define SET1 _mm512_set1_epi32
#define ADD _mm512_add_epi32
#define SUB _mm512_sub_epi32
#define AND _mm512_and_si512
#define SHIFT_RIGHT _mm512_srli_epi32
#define SUB_BYTES _mm512_sub_epi8
#define MULLO _mm512_mullo_epi32
#define TO_FLOATS _mm512_cvtepi32_ps
#define LOAD_FLOATS _mm512_loadu_ps
#define FMA _mm512_fmadd_ps
#define ZERO_FLOATS _mm512_setzero_ps()
#define DOT_BY_INTRINSICS _mm512_dpbusd_epi32
#define DOT_PREFIX ""
enum { LANES = 16, ROWS = 6, STRIPS = 4, FEW_STRIPS = 4, SOME_STRIPS = 2, UNPACK_FROM = 32 /* where shifts and masks find ports of their own, few rows stay as fast as many (Zen 5) */, COLUMNS = 4, FEW_SIGNED = 1, PANEL = 1, PART = 512, SUMS_HELD = 1, SCALED_STRIPS = 2 };
#include "gemm_s4_vnni.h"

/* As hwq_requantize__avx512vnni. */
static inline __attribute__((always_inline)) void finish_lines(const int rows, const int vectors, const strips_of *s, VECTOR acc[ROWS][WIDE], char *out)
{
    const hwq_epilogue e = *s->epilogue; /* the output cannot alias it */
    const __m512 lo = _mm512_set1_ps((float)(e.lo - e.zero_point)), hi = _mm512_set1_ps((float)(e.hi - e.zero_point));
    const __m512i zero_point = _mm512_set1_epi32(e.zero_point);
    const int64_t width = s->fast->width, stride = s->fast->stride;
#pragma GCC unroll 4
    for (int v = 0; v < vectors; v++) {
        const int64_t left = width - 16 * v;
        const __mmask16 mask = left >= 16 ? 0xFFFF : left > 0 ? (__mmask16)((1u << left) - 1) : 0;
        const __m512 scale = e.channel_step ? _mm512_maskz_loadu_ps(mask, e.scales_f32 + s->column + 16 * v) : _mm512_set1_ps(e.scales_f32[0]);
#pragma GCC unroll 8
        for (int r = 0; r < rows; r++) {
            const __m512i q = _mm512_cvtps_epi32(_mm512_min_ps(_mm512_max_ps(_mm512_mul_ps(_mm512_cvtepi32_ps(acc[r][v]), scale), lo), hi));
            _mm512_mask_cvtepi32_storeu_epi8(out + r * stride + 16 * v, mask, _mm512_add_epi32(q, zero_point));
        }
    }
}

static inline __attribute__((always_inline)) void finish_sums(const int rows, const int vectors, const strips_of *s, __m512 y[ROWS][WIDE], char *out)
{
    const hwq_epilogue e = *s->epilogue;
    const int64_t width = s->fast->width, stride = s->fast->stride;
#pragma GCC unroll 4
    for (int v = 0; v < vectors; v++) {
        const int64_t left = width - 16 * v;
        const __mmask16 mask = left >= 16 ? 0xFFFF : left > 0 ? (__mmask16)((1u << left) - 1) : 0;
        const __m512 scale = e.channel_step ? _mm512_maskz_loadu_ps(mask, e.scales_f32 + s->column + 16 * v) : _mm512_set1_ps(e.scales_f32[0]);
        const __m512 bias = e.float_bias ? _mm512_maskz_loadu_ps(mask, e.float_bias + s->column + 16 * v) : _mm512_setzero_ps();
#pragma GCC unroll 8
        for (int r = 0; r < rows; r++) {
            const __m512 x = _mm512_mul_ps(y[r][v], scale);
            _mm512_mask_storeu_ps((float *)out + r * stride + 16 * v, mask, e.float_bias ? _mm512_add_ps(x, bias) : x);
        }
    }
}

void hwq_gemm_s4__avx512vnni(const hwq_gemm_s4_args *args) { multiply(args); }

HWQ_TARGET_END
#endif
