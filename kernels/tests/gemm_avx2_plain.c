/* AVX2's GEMM once more with the intrinsics twins of its assembly, for four vector pipes, under other names: check_gemm.c holds them equal. */
#ifndef HWQ_NO_ASM
#define HWQ_NO_ASM
#endif
#define hwq_gemm_u8s8__avx2 plain_gemm_u8s8
#define hwq_gemm_s8s8__avx2 plain_gemm_s8s8
#include "../src/isa.h"
#define hwq_vector_pipes() 4
#include "../src/gemm_avx2.c"
