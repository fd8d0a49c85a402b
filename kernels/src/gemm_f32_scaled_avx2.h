/* gemm_f32_scaled.h's vectors of 256 bits. One row walks 3 strips, 6 chains, half of them at a time: the sums, what is unpacked and the masks
 * fill 16 registers, and chains interleave closely enough that where a thread has half of the core, and half of its window of
 * instructions, they still overlap (1.17 times 4 strips, 2 vectors at a time). Where weights have blocks, 2 of those of one strip, 4 chains, are one
 * line of addresses: 1.01 to 1.05 times 3 strips (4096 x 4096 nibbles, Zen 5). Include inside an AVX2 region. */
#define VECTOR __m256i
#define FLOATS __m256
#define LOAD_FLOATS _mm256_loadu_ps
#define SET1_FLOAT _mm256_set1_ps
#define FMA _mm256_fmadd_ps
#define ZERO_FLOATS _mm256_setzero_ps()
enum { LANES = 8, ONE_STRIPS = 3, REST_STRIPS = 1, FOUR_STRIPS = 1, TOGETHER = 3, MANY_FROM = 8, MANY_ROWS = 6, MANY_STRIPS = 1, BLOCKS = 2 };

static inline __attribute__((always_inline)) __m256i load(const void *p) { return _mm256_loadu_si256((const __m256i *)p); }
