/* Float32 products on Advanced SIMD. Fixed order: two registers are the contract's 8 lanes; 3 rows x 4 columns hold 24
 * accumulators of 32 registers. The tree by pairwise additions, which pair neighbors as the contract does.
 * Sequential order: columns are lanes, a chain never leaves its lane. */
#include "isa.h"

#if HWQ_ARM
#include <arm_neon.h>
#include <math.h>
#include <string.h>

static inline __attribute__((always_inline)) void tile(const int rows, const hwq_gemm_f32_args *args, int64_t row, int64_t column)
{
    const int64_t k = args->k, whole = k / HWQ_LANES, rest = k % HWQ_LANES, k8 = (k + HWQ_LANES - 1) / HWQ_LANES * HWQ_LANES;
    const float *a = args->a + row * args->a_stride, *w = args->weights + column * k8;
    float32x4_t low[3][4], high[3][4];
    for (int r = 0; r < rows; r++)
        for (int j = 0; j < 4; j++) low[r][j] = high[r][j] = vdupq_n_f32(0);
    for (int64_t i = 0; i < whole + (rest != 0); i++, a += HWQ_LANES, w += 4 * HWQ_LANES)
        for (int r = 0; r < rows; r++) {
            float tail[HWQ_LANES] = {0};
            const float *from = a + r * args->a_stride;
            if (i == whole) from = memcpy(tail, from, (size_t)rest * sizeof(float));
            const float32x4_t first = vld1q_f32(from), second = vld1q_f32(from + 4);
            for (int j = 0; j < 4; j++) {
                low[r][j] = vfmaq_f32(low[r][j], first, vld1q_f32(w + j * HWQ_LANES));
                high[r][j] = vfmaq_f32(high[r][j], second, vld1q_f32(w + j * HWQ_LANES + 4));
            }
        }
    for (int r = 0; r < rows; r++) {
        float32x4_t sums[4];
        for (int j = 0; j < 4; j++) sums[j] = vpaddq_f32(low[r][j], high[r][j]);
        const float32x4_t y = vpaddq_f32(vpaddq_f32(sums[0], sums[1]), vpaddq_f32(sums[2], sums[3]));
        float *out = args->out + (row + r) * args->out_stride + column;
        const int64_t width = args->n - column < 4 ? args->n - column : 4;
        if (width == 4) {
            vst1q_f32(out, args->bias ? vaddq_f32(y, vld1q_f32(args->bias + column)) : y);
        } else {
            float four[4];
            vst1q_f32(four, y);
            for (int64_t j = 0; j < width; j++) out[j] = args->bias ? four[j] + args->bias[column + j] : four[j];
        }
    }
}

void hwq_gemm_f32__neon(const hwq_gemm_f32_args *args)
{
    for (int64_t row = 0; row < args->m; row += 3)
        for (int64_t column = 0; column < args->n; column += 4)
            switch (args->m - row) {
            case 1: tile(1, args, row, column); break;
            case 2: tile(2, args, row, column); break;
            default: tile(3, args, row, column);
            }
}

/* 8 columns of one row; the columns left over are chains of scalars. */
void hwq_gemm_sequential__neon(const hwq_gemm_sequential_args *args)
{
    const int64_t whole = args->k > 0 ? args->n / 8 * 8 : 0;
    for (int64_t row = 0; row < args->m; row++) {
        const float *a = args->a + row * args->a_stride;
        for (int64_t column = 0; column < whole; column += 8) {
            float *out = args->out + row * args->out_stride + column;
            for (int64_t first = 0; first < args->k; first += args->block) {
                const int64_t last = args->k - first < args->block ? args->k : first + args->block;
                float32x4_t low = vdupq_n_f32(0), high = low;
                for (int64_t i = first; i < last; i++) {
                    const float *b = args->b + i * args->b_stride + column;
                    low = vfmaq_n_f32(low, vld1q_f32(b), a[i]);
                    high = vfmaq_n_f32(high, vld1q_f32(b + 4), a[i]);
                }
                if (first || args->accumulate) low = vaddq_f32(vld1q_f32(out), low), high = vaddq_f32(vld1q_f32(out + 4), high);
                vst1q_f32(out, low);
                vst1q_f32(out + 4, high);
            }
        }
    }
    hwq_gemm_sequential_args rest = *args;
    rest.n -= whole, rest.b += whole, rest.out += whole;
    hwq_gemm_sequential__ref(&rest);
}
#endif
