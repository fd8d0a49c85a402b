/* gemm_s4_vnni.h on 512 bits: a vector is one strip; 24 accumulators of 32 registers, or 12 and their float sums. */
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
enum { LANES = 16, ROWS = 12, SCALED_ROWS = 6, STRIPS = 2, FEW_STRIPS = 4, COLUMNS = 4, FEW_SIGNED = 1, PANEL = 1 };
#include "gemm_s4_vnni.h"

void hwq_gemm_s4__avx512vnni(const hwq_gemm_s4_args *args) { multiply(args); }

HWQ_TARGET_END
#endif
