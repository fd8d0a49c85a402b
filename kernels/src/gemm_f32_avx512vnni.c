/* Float32 GEMM in the fixed order on 512 bits: a vector holds the 8 partial sums of two columns, so a tile of 6 rows x 8 columns has 24
 * accumulators of 32 registers and takes 10 loads for 24 fused multiply-adds. The tree by shuffles within 128 bits, which pair
 * neighbors as the contract does: (l0 + l1), then + (l2 + l3), then the two halves. */
#include "isa.h"

#if HWQ_X86
#include <immintrin.h>
#include <string.h>

HWQ_TARGET("avx512f,avx512bw,avx512vl,avx512dq,fma")

enum { ROWS = 6 };

/* Sums of elements 0 + 1 and 2 + 3 of every 128 bits: two of a, two of b. */
static inline __attribute__((always_inline)) __m512 pair_sums(__m512 a, __m512 b)
{
    return _mm512_add_ps(_mm512_shuffle_ps(a, b, 0x88), _mm512_shuffle_ps(a, b, 0xDD));
}

/* One row's 8 columns: in 128-bit lanes the even columns' lower and upper halves, then the odd columns'. */
static inline __attribute__((always_inline)) __m512 half_sums(const int strips, const __m512 acc[4])
{
    const __m512 first = pair_sums(acc[0], acc[1]);
    return pair_sums(first, strips > 1 ? pair_sums(acc[2], acc[3]) : first);
}

/* 8 k of `rows` rows and of the columns of `vectors` vectors. */
static inline __attribute__((always_inline)) void step(const int rows, const int vectors, const float *a, int64_t a_stride, const float *w, int64_t k8,
                                                       __m512 acc[ROWS][4])
{
    __m512 b[4];
#pragma GCC unroll 4
    for (int v = 0; v < vectors; v++) b[v] = _mm512_loadu_ps(w + v / 2 * 4 * k8 + v % 2 * 16);
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++) {
        const __m512 left = _mm512_broadcast_f32x8(_mm256_loadu_ps(a + r * a_stride));
#pragma GCC unroll 4
        for (int v = 0; v < vectors; v++) acc[r][v] = _mm512_fmadd_ps(left, b[v], acc[r][v]);
    }
}

static inline __attribute__((always_inline)) void tile(const int rows, const int strips, const hwq_gemm_f32_args *args, int64_t row, int64_t column)
{
    const int64_t k = args->k, whole = k / HWQ_LANES, rest = k % HWQ_LANES, k8 = (k + HWQ_LANES - 1) / HWQ_LANES * HWQ_LANES;
    const float *a = args->a + row * args->a_stride, *w = args->weights + column * k8;
    const int vectors = 2 * strips;
    __m512 acc[ROWS][4];
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int v = 0; v < vectors; v++) acc[r][v] = _mm512_setzero_ps();
    for (int64_t i = 0; i < whole; i++, a += HWQ_LANES, w += 4 * HWQ_LANES) step(rows, vectors, a, args->a_stride, w, k8, acc);
    if (rest) {
        float tails[ROWS][HWQ_LANES] = {{0}};
        for (int r = 0; r < rows; r++) memcpy(tails[r], a + r * args->a_stride, (size_t)rest * sizeof(float));
        step(rows, vectors, tails[0], HWQ_LANES, w, k8, acc);
    }
    const int64_t left = args->n - column, width = left < 4 * strips ? left : 4 * strips;
    const __m256i mask = _mm256_cmpgt_epi32(_mm256_set1_epi32((int)width), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
    const __m512i lower = _mm512_set_epi32(27, 19, 26, 18, 25, 17, 24, 16, 11, 3, 10, 2, 9, 1, 8, 0); /* of two rows, columns in order */
    const __m512i upper = _mm512_add_epi32(lower, _mm512_set1_epi32(4));
    const __m256 bias = args->bias ? _mm256_maskload_ps(args->bias + column, mask) : _mm256_setzero_ps();
    float *out = args->out + row * args->out_stride + column;
#pragma GCC unroll 8
    for (int r = 0; r < rows; r += 2) {
        const __m512 one = half_sums(strips, acc[r]), other = r + 1 < rows ? half_sums(strips, acc[r + 1]) : one;
        float y[16];
        _mm512_storeu_ps(y, _mm512_add_ps(_mm512_permutex2var_ps(one, lower, other), _mm512_permutex2var_ps(one, upper, other)));
        for (int s = 0; s < 2 && r + s < rows; s++) {
            const __m256 v = _mm256_loadu_ps(y + 8 * s);
            _mm256_maskstore_ps(out + (r + s) * args->out_stride, mask, args->bias ? _mm256_add_ps(v, bias) : v);
        }
    }
}

static inline __attribute__((always_inline)) void columns(const int rows, const hwq_gemm_f32_args *args, int64_t row, int64_t first, int64_t last)
{
    for (int64_t column = first; column < last; column += 8) {
        if (last - column > 4) tile(rows, 2, args, row, column);
        else tile(rows, 1, args, row, column);
    }
}

/* Blocks of columns whose weights stay in the second-level cache (256 KB) while the rows pass. */
void hwq_gemm_f32__avx512vnni(const hwq_gemm_f32_args *args)
{
    int64_t block = (1 << 16) / (args->k > 0 ? args->k : 1) / 8 * 8;
    if (block < 16) block = 16;
    for (int64_t first = 0; first < args->n; first += block) {
        const int64_t last = first + block < args->n ? first + block : args->n;
        int64_t row = 0;
        for (; row + ROWS <= args->m; row += ROWS) columns(ROWS, args, row, first, last);
        for (; row + 2 <= args->m; row += 2) columns(2, args, row, first, last);
        if (row < args->m) columns(1, args, row, first, last);
    }
}

HWQ_TARGET_END
#endif
