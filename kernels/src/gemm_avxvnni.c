/* gemm_vnni.h on 256-bit vectors in the VEX encoding: 32 MACs an instruction, a strip is two vectors. */
#include "epilogue.h"
#include "gemm.h"
#include "isa.h"

#if HWQ_X86
#include <immintrin.h>
#include <string.h>

HWQ_TARGET("avx2,fma,avxvnni")

#define VECTOR __m256i
#define SET1 _mm256_set1_epi32
#define XOR _mm256_xor_si256
#define ADD _mm256_add_epi32
#define SUB _mm256_sub_epi32
#define MULLO _mm256_mullo_epi32
#define DOT_BY_INTRINSICS _mm256_dpbusd_avx_epi32
#define DOT_PREFIX "%{vex%} "
#define FINISH hwq_requantize__avx2
enum { BYTES = 32, ROWS = 6, WIDE = 4, BLOCK = 4 * WIDE * 8 /* at least ROWS * 2 * 8 */ };
#include "gemm_vnni.h"

void hwq_gemm_u8s8__avxvnni(const hwq_gemm_args *args) { multiply(args, 0, args->a_zero_point); }
void hwq_gemm_s8s8__avxvnni(const hwq_gemm_args *args) { multiply(args, 0x80, args->a_zero_point + 128); }

HWQ_TARGET_END
#endif
