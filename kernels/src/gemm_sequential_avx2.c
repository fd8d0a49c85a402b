/* A tile of 4 rows x 16 columns holds 8 chains of 8 lanes: 8 fused multiply-adds per 6 loads. Columns are lanes, so what hangs
 * over the last column is masked off and rows of b are read in place. */
#include "isa.h"

#if HWQ_X86
#include <immintrin.h>

HWQ_TARGET("avx2,fma")

static inline __attribute__((always_inline)) __m256 take(const int whole, const float *from, __m256i mask)
{
    return whole ? _mm256_loadu_ps(from) : _mm256_maskload_ps(from, mask);
}

static inline __attribute__((always_inline)) void tile(const int rows, const int whole, const hwq_gemm_sequential_args *args,
                                                       int64_t row, int64_t column, __m256i low, __m256i high)
{
    for (int64_t first = 0; first < args->k; first += args->block) {
        const int64_t last = args->k - first < args->block ? args->k : first + args->block;
        const float *a = args->a + row * args->a_stride, *b = args->b + first * args->b_stride + column;
        __m256 chain[4][2];
        for (int r = 0; r < rows; r++) chain[r][0] = chain[r][1] = _mm256_setzero_ps();
        for (int64_t i = first; i < last; i++, b += args->b_stride) {
            const __m256 left = take(whole, b, low), right = take(whole, b + 8, high);
            for (int r = 0; r < rows; r++) {
                const __m256 factor = _mm256_broadcast_ss(a + r * args->a_stride + i);
                chain[r][0] = _mm256_fmadd_ps(factor, left, chain[r][0]);
                chain[r][1] = _mm256_fmadd_ps(factor, right, chain[r][1]);
            }
        }
        for (int r = 0; r < rows; r++) {
            float *out = args->out + (row + r) * args->out_stride + column;
            for (int half = 0; half < 2; half++) {
                const __m256i mask = half ? high : low;
                __m256 y = chain[r][half];
                if (first || args->accumulate) y = _mm256_add_ps(take(whole, out + 8 * half, mask), y);
                if (whole) _mm256_storeu_ps(out + 8 * half, y);
                else _mm256_maskstore_ps(out + 8 * half, mask, y);
            }
        }
    }
}

static __m256i lanes(int64_t count) /* the first `count` of 8 */
{
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(count > 8 ? 8 : count < 0 ? 0 : (int)count), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

void hwq_gemm_sequential__avx2(const hwq_gemm_sequential_args *args)
{
    if (args->k <= 0) {
        hwq_gemm_sequential__ref(args);
        return;
    }
    for (int64_t column = 0; column < args->n; column += 16) {
        const int64_t width = args->n - column;
        const __m256i low = lanes(width), high = lanes(width - 8);
        for (int64_t row = 0; row < args->m; row += 4)
            switch (args->m - row) {
            case 1: tile(1, width >= 16, args, row, column, low, high); break;
            case 2: tile(2, width >= 16, args, row, column, low, high); break;
            case 3: tile(3, width >= 16, args, row, column, low, high); break;
            default: tile(4, width >= 16, args, row, column, low, high);
            }
    }
}

HWQ_TARGET_END
#endif
