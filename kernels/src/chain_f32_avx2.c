/* Chains on vectors of 8 (chain_f32.h). */
#include "isa.h"

#if HWQ_X86
#include <immintrin.h>

HWQ_TARGET("avx2,fma")

enum { LANES = 8 };
#define MOST 6
#define FLOATS __m256
#define LOAD _mm256_loadu_ps
#define STORE _mm256_storeu_ps
#define SET1 _mm256_set1_ps
#define FMA _mm256_fmadd_ps
#define MIN _mm256_min_ps
#define MAX _mm256_max_ps
#define NEXT(k) LANES /* floats from a vector of weights to the next: half a strip */
#include "chain_f32.h"

void hwq_conv_chain__avx2(const hwq_conv *c)
{
    if (hwq_chain_fits(c)) drive(c, 0);
    else hwq_conv_chain__ref(c);
}
void hwq_depthwise_chain__avx2(const hwq_conv *c)
{
    if (hwq_chain_fits(c)) drive(c, 1);
    else hwq_depthwise_chain__ref(c);
}

HWQ_TARGET_END
#endif
