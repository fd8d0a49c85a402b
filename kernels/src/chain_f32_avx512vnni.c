/* Chains on vectors of 16 (chain_f32.h). */
#include "isa.h"

#if HWQ_X86
#include <immintrin.h>

HWQ_TARGET("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")

enum { LANES = 16 };
#define MOST 8
#define FLOATS __m512
#define LOAD _mm512_loadu_ps
#define STORE _mm512_storeu_ps
#define SET1 _mm512_set1_ps
#define FMA _mm512_fmadd_ps
#define MIN _mm512_min_ps
#define MAX _mm512_max_ps
#define NEXT(k) ((k) * HWQ_CHAIN_STRIP) /* floats from a vector of weights to the next: the next strip */
#include "chain_f32.h"

void hwq_conv_chain__avx512vnni(const hwq_conv *c)
{
    if (hwq_chain_fits(c)) drive(c, 0);
    else hwq_conv_chain__ref(c);
}
void hwq_depthwise_chain__avx512vnni(const hwq_conv *c)
{
    if (hwq_chain_fits(c)) drive(c, 1);
    else hwq_depthwise_chain__ref(c);
}

HWQ_TARGET_END
#endif
