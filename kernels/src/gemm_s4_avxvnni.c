/* gemm_s4_vnni.h on 256 bits in the VEX encoding: a strip is two vectors; 12 accumulators of 16 registers. */
#include "gemm_s4.h"
#include "isa.h"

#if HWQ_X86
#include <immintrin.h>
#include <string.h>

HWQ_TARGET("avx2,fma,avxvnni")

#define VECTOR __m256i
#define FLOATS __m256
#define SET1 _mm256_set1_epi32
#define ADD _mm256_add_epi32
#define SUB _mm256_sub_epi32
#define AND _mm256_and_si256
#define SHIFT_RIGHT _mm256_srli_epi32
#define SUB_BYTES _mm256_sub_epi8
#define MULLO _mm256_mullo_epi32
#define TO_FLOATS _mm256_cvtepi32_ps
#define LOAD_FLOATS _mm256_loadu_ps
#define FMA _mm256_fmadd_ps
#define ZERO_FLOATS _mm256_setzero_ps()
#define DOT_BY_INTRINSICS _mm256_dpbusd_avx_epi32
#define DOT_PREFIX "%{vex%} "
enum { LANES = 8, ROWS = 6, STRIPS = 1, FEW_STRIPS = 2, SOME_STRIPS = 1, UNPACK_FROM = 8, COLUMNS = 4, FEW_SIGNED = 1, PANEL = 1, PART = 512, SUMS_HELD = 0, SCALED_STRIPS = STRIPS };
#include "gemm_s4_vnni.h"

static inline __attribute__((always_inline)) void finish_lines(const int rows, const int vectors, const strips_of *s, VECTOR acc[ROWS][WIDE], char *out)
{
    for (int r = 0; r < rows; r++) finish_row(vectors, s->fast, acc[r], out + r * s->fast->stride);
}

static inline __attribute__((always_inline)) void finish_sums(const int rows, const int vectors, const strips_of *s, FLOATS y[ROWS][WIDE], char *out)
{
    (void)rows, (void)vectors, (void)s, (void)y, (void)out; /* they lie in memory */
}

void hwq_gemm_s4__avxvnni(const hwq_gemm_s4_args *args) { multiply(args); }

HWQ_TARGET_END
#endif
