/* A tile of 4 rows x 12 columns holds 12 chains of 4 lanes: 12 fused multiply-adds per 7 loads. Columns are lanes, so what hangs over
 * the last column is masked off and rows of b are read in place. k is cut so that the rows of b that a cut reads stay in the caches;
 * a chain goes on from `out`, which holds it exactly. */
#include "isa.h"

#if HWQ_X86
#include <immintrin.h>

HWQ_TARGET("avx2,fma")

enum { ROWS = 4, VECTORS = 3, COLUMNS = 4 * VECTORS, CUT = 256 };

static inline __attribute__((always_inline)) __m256d take(const int whole, const double *from, __m256i mask)
{
    return whole ? _mm256_loadu_pd(from) : _mm256_maskload_pd(from, mask);
}

static inline __attribute__((always_inline)) void tile(const int rows, const int whole, const hwq_gemm_f64_args *args, int64_t row, int64_t column,
                                                       int64_t first, int64_t last, const __m256i masks[VECTORS])
{
    const double *a = args->a + row * args->a_row + first * args->a_step, *b = args->b + first * args->b_stride + column;
    double *out = args->out + row * args->out_stride + column;
    __m256d chain[ROWS][VECTORS];
#pragma GCC unroll 4
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 3
        for (int v = 0; v < VECTORS; v++)
            chain[r][v] = first || args->accumulate ? take(whole, out + r * args->out_stride + 4 * v, masks[v]) : _mm256_setzero_pd();
    for (int64_t i = first; i < last; i++, a += args->a_step, b += args->b_stride) {
        __m256d right[VECTORS];
#pragma GCC unroll 3
        for (int v = 0; v < VECTORS; v++) right[v] = take(whole, b + 4 * v, masks[v]);
#pragma GCC unroll 4
        for (int r = 0; r < rows; r++) {
            const __m256d left = _mm256_broadcast_sd(a + r * args->a_row);
#pragma GCC unroll 3
            for (int v = 0; v < VECTORS; v++) chain[r][v] = _mm256_fmadd_pd(left, right[v], chain[r][v]);
        }
    }
#pragma GCC unroll 4
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 3
        for (int v = 0; v < VECTORS; v++) {
            if (whole) _mm256_storeu_pd(out + r * args->out_stride + 4 * v, chain[r][v]);
            else _mm256_maskstore_pd(out + r * args->out_stride + 4 * v, masks[v], chain[r][v]);
        }
}

static __m256i lanes(int64_t count) /* the first `count` of 4 */
{
    return _mm256_cmpgt_epi64(_mm256_set1_epi64x(count), _mm256_setr_epi64x(0, 1, 2, 3));
}

void hwq_gemm_f64__avx2(const hwq_gemm_f64_args *args)
{
    if (args->k <= 0) {
        hwq_gemm_f64__ref(args);
        return;
    }
    for (int64_t first = 0; first < args->k; first += CUT) {
        const int64_t last = args->k - first < CUT ? args->k : first + CUT;
        for (int64_t column = 0; column < args->n; column += COLUMNS) {
            const int64_t width = args->n - column;
            const __m256i masks[VECTORS] = {lanes(width), lanes(width - 4), lanes(width - 8)};
            for (int64_t row = 0; row < args->m; row += ROWS)
                if (width >= COLUMNS && args->m - row >= ROWS) tile(ROWS, 1, args, row, column, first, last, masks);
                else
                    switch (args->m - row) {
                    case 1: tile(1, 0, args, row, column, first, last, masks); break;
                    case 2: tile(2, 0, args, row, column, first, last, masks); break;
                    case 3: tile(3, 0, args, row, column, first, last, masks); break;
                    default: tile(ROWS, 0, args, row, column, first, last, masks);
                    }
        }
    }
}

HWQ_TARGET_END
#endif
