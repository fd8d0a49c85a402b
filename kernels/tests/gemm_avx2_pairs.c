/* AVX2's GEMM as four vector pipes run it, on any processor. */
#define hwq_gemm_u8s8__avx2 pairs_gemm_u8s8
#define hwq_gemm_s8s8__avx2 pairs_gemm_s8s8
#include "../src/isa.h"
#define hwq_vector_pipes() 4
#include "../src/gemm_avx2.c"
