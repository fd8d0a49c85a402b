/* gemm_f32_scaled.h's vectors of 512 bits. One row walks 8 strips: two multiply-adds a cycle that take 4 each want 8 chains (Zen 5, 4096 x 4096
 * nibbles: 1.04 to 1.05 times 4 strips; a Cascade Lake Xeon, which has two vector ports for everything, liked 4 better: 8 gave 0.88 of it from
 * behind the second cache). Include inside an AVX-512 region. */
#define VECTOR __m512i
#define FLOATS __m512
#define LOAD_FLOATS _mm512_loadu_ps
#define SET1_FLOAT _mm512_set1_ps
#define FMA _mm512_fmadd_ps
#define ZERO_FLOATS _mm512_setzero_ps()
enum { LANES = 16, ONE_STRIPS = 8, REST_STRIPS = 4, FOUR_STRIPS = 2, TOGETHER = 4, MANY_FROM = 8, MANY_ROWS = 6 /* lines of a 4 KB apart share a set of 8 */, MANY_STRIPS = 4, BLOCKS = 1, LEAST_BLOCKS = INT32_MAX /* 8 blocks of a strip: 0.9 times 8 strips (Zen 5) */ };

static inline __attribute__((always_inline)) __m512i load(const void *p)
{
    __m512i v;
    memcpy(&v, p, sizeof v);
    return v;
}
