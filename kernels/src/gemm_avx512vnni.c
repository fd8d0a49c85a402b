/* gemm_vnni.h on 512-bit vectors: 64 MACs an instruction, a vector is one strip. Requantization in the same registers' width. */
#include "epilogue.h"
#include "gemm.h"
#include "isa.h"

#if HWQ_X86
#include <immintrin.h>
#include <string.h>

HWQ_TARGET("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")

#define VECTOR __m512i
#define SET1 _mm512_set1_epi32
#define XOR _mm512_xor_si512
#define SUB _mm512_sub_epi32
#define MULLO _mm512_mullo_epi32
#define DOT_BY_INTRINSICS _mm512_dpbusd_epi32
#define DOT_PREFIX ""
#define FINISH hwq_requantize__avx512vnni
enum { BYTES = 64, ROWS = 12, WIDE = 4 };
#include "gemm_vnni.h"

void hwq_gemm_u8s8__avx512vnni(const hwq_gemm_args *args) { multiply(args, 0, args->a_zero_point); }
void hwq_gemm_s8s8__avx512vnni(const hwq_gemm_args *args) { multiply(args, 0x80, args->a_zero_point + 128); }

HWQ_TARGET_END
#endif
