/* Float32 GEMM in the fixed order: each accumulator's 8 lanes are the 8 partial sums, so a tile of rows x 4 columns walks k in
 * blocks of 8 and every element gets the order that the contract states, whatever the tile.
 * 3 x 4 tile: 12 fused multiply-adds per 7 loads. The tree by two horizontal adds: hadd pairs neighbors, as the contract does. */
#include "isa.h"

#if HWQ_X86
#include <immintrin.h>
#include <string.h>

HWQ_TARGET("avx2,fma")

static inline __attribute__((always_inline)) void tile(const int rows, const hwq_gemm_f32_args *args, int64_t row, int64_t column)
{
    const int64_t k = args->k, whole = k / HWQ_LANES, rest = k % HWQ_LANES, k8 = (k + HWQ_LANES - 1) / HWQ_LANES * HWQ_LANES;
    const float *a = args->a + row * args->a_stride, *w = args->weights + column * k8;
    __m256 acc[3][4];
    for (int r = 0; r < rows; r++)
        for (int j = 0; j < 4; j++) acc[r][j] = _mm256_setzero_ps();
    for (int64_t i = 0; i < whole; i++, a += HWQ_LANES, w += 4 * HWQ_LANES)
        for (int r = 0; r < rows; r++) {
            const __m256 left = _mm256_loadu_ps(a + r * args->a_stride);
            for (int j = 0; j < 4; j++) acc[r][j] = _mm256_fmadd_ps(left, _mm256_loadu_ps(w + j * HWQ_LANES), acc[r][j]);
        }
    if (rest)
        for (int r = 0; r < rows; r++) {
            float tail[HWQ_LANES] = {0};
            memcpy(tail, a + r * args->a_stride, (size_t)rest * sizeof(float));
            const __m256 left = _mm256_loadu_ps(tail);
            for (int j = 0; j < 4; j++) acc[r][j] = _mm256_fmadd_ps(left, _mm256_loadu_ps(w + j * HWQ_LANES), acc[r][j]);
        }
    for (int r = 0; r < rows; r++) {
        const __m256 pairs = _mm256_hadd_ps(_mm256_hadd_ps(acc[r][0], acc[r][1]), _mm256_hadd_ps(acc[r][2], acc[r][3]));
        const __m128 y = _mm_add_ps(_mm256_castps256_ps128(pairs), _mm256_extractf128_ps(pairs, 1));
        float *out = args->out + (row + r) * args->out_stride + column;
        const int64_t width = args->n - column < 4 ? args->n - column : 4;
        if (width == 4) {
            _mm_storeu_ps(out, args->bias ? _mm_add_ps(y, _mm_loadu_ps(args->bias + column)) : y);
        } else {
            float four[4];
            _mm_storeu_ps(four, y);
            for (int64_t j = 0; j < width; j++) out[j] = args->bias ? four[j] + args->bias[column + j] : four[j];
        }
    }
}

/* Blocks of columns whose weights stay in the second-level cache (256 KB) while the rows pass. */
void hwq_gemm_f32__avx2(const hwq_gemm_f32_args *args)
{
    int64_t block = (1 << 16) / (args->k > 0 ? args->k : 1) / 4 * 4;
    if (block < 16) block = 16;
    for (int64_t first = 0; first < args->n; first += block) {
        const int64_t last = first + block < args->n ? first + block : args->n;
        for (int64_t row = 0; row < args->m; row += 3)
            for (int64_t column = first; column < last; column += 4)
                switch (args->m - row) {
                case 1: tile(1, args, row, column); break;
                case 2: tile(2, args, row, column); break;
                default: tile(3, args, row, column);
                }
    }
}

HWQ_TARGET_END
#endif
