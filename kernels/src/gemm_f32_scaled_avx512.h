/* gemm_f32_scaled.h's vectors of 512 bits. One row walks 4 strips (8: 0.88 times as fast from behind the second cache, 2: 0.96). Include
 * inside an AVX-512 region. */
#define VECTOR __m512i
#define FLOATS __m512
#define LOAD_FLOATS _mm512_loadu_ps
#define SET1_FLOAT _mm512_set1_ps
#define FMA _mm512_fmadd_ps
#define ZERO_FLOATS _mm512_setzero_ps()
enum { LANES = 16, ONE_STRIPS = 4, FOUR_STRIPS = 2, TOGETHER = 4, MANY_ROWS = 6 /* lines of a 4 KB apart share a set of 8 */, MANY_STRIPS = 4 };

static inline __attribute__((always_inline)) __m512i load(const void *p)
{
    __m512i v;
    memcpy(&v, p, sizeof v);
    return v;
}
