/* Float32 products on Advanced SIMD. Fixed order: two registers are the contract's 8 lanes; 2 rows x 4 columns are 16
 * multiply-adds in 28 instructions (gcc 12 -O3; 3 rows spill: 24 in 49). The 4 columns stay in the first-level
 * cache for BLOCK rows. The tree by pairwise additions, which pair neighbors as the contract does.
 * Sequential order: columns are lanes, a chain never leaves its lane; 4 rows x 8 columns are 8 chains in flight. */
#include "isa.h"

#if HWQ_ARM
#include <arm_neon.h>
#include <math.h>
#include <string.h>

enum { BLOCK = 64 };

/* 8 of k: rows x 4 columns. */
static inline __attribute__((always_inline)) void step(const int rows, const float *a, int64_t a_stride, const float *w, float32x4_t low[2][4], float32x4_t high[2][4])
{
    for (int j = 0; j < 4; j++) {
        const float32x4_t first = vld1q_f32(w + j * HWQ_LANES), second = vld1q_f32(w + j * HWQ_LANES + 4);
        for (int r = 0; r < rows; r++) {
            low[r][j] = vfmaq_f32(low[r][j], vld1q_f32(a + r * a_stride), first);
            high[r][j] = vfmaq_f32(high[r][j], vld1q_f32(a + r * a_stride + 4), second);
        }
    }
}

static inline __attribute__((always_inline)) void tile(const int rows, const hwq_gemm_f32_args *args, int64_t row, int64_t column)
{
    const int64_t k = args->k, whole = k / HWQ_LANES, rest = k % HWQ_LANES, k8 = (k + HWQ_LANES - 1) / HWQ_LANES * HWQ_LANES;
    const float *a = args->a + row * args->a_stride, *w = args->weights + column * k8;
    float32x4_t low[2][4], high[2][4];
    for (int r = 0; r < rows; r++)
        for (int j = 0; j < 4; j++) low[r][j] = high[r][j] = vdupq_n_f32(0);
    for (int64_t i = 0; i < whole; i++, a += HWQ_LANES, w += 4 * HWQ_LANES) step(rows, a, args->a_stride, w, low, high);
    if (rest) {
        float tail[2 * HWQ_LANES] = {0};
        for (int r = 0; r < rows; r++) memcpy(tail + r * HWQ_LANES, a + r * args->a_stride, (size_t)rest * sizeof(float));
        step(rows, tail, HWQ_LANES, w, low, high);
    }
#pragma GCC unroll 2
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
    for (int64_t top = 0; top < args->m; top += BLOCK) {
        const int64_t bottom = args->m - top < BLOCK ? args->m : top + BLOCK;
        for (int64_t column = 0; column < args->n; column += 4) {
            int64_t row = top;
            for (; row + 2 <= bottom; row += 2) tile(2, args, row, column);
            if (row < bottom) tile(1, args, row, column);
        }
    }
}

static inline __attribute__((always_inline)) void sequential(const int rows, const hwq_gemm_sequential_args *args, int64_t row, int64_t column)
{
    float *out = args->out + row * args->out_stride + column;
    for (int64_t first = 0; first < args->k; first += args->block) {
        const int64_t last = args->k - first < args->block ? args->k : first + args->block;
        const float *a = args->a + row * args->a_stride, *b = args->b + first * args->b_stride + column;
        float32x4_t chain[4][2];
#pragma GCC unroll 4
        for (int r = 0; r < rows; r++) chain[r][0] = chain[r][1] = vdupq_n_f32(0);
        for (int64_t i = first; i < last; i++, b += args->b_stride) {
            const float32x4_t left = vld1q_f32(b), right = vld1q_f32(b + 4);
#pragma GCC unroll 4
            for (int r = 0; r < rows; r++) {
                chain[r][0] = vfmaq_n_f32(chain[r][0], left, a[r * args->a_stride + i]);
                chain[r][1] = vfmaq_n_f32(chain[r][1], right, a[r * args->a_stride + i]);
            }
        }
#pragma GCC unroll 4
        for (int r = 0; r < rows; r++)
#pragma GCC unroll 2
            for (int v = 0; v < 2; v++) {
                float *to = out + r * args->out_stride + 4 * v;
                vst1q_f32(to, first || args->accumulate ? vaddq_f32(vld1q_f32(to), chain[r][v]) : chain[r][v]);
            }
    }
}

/* The columns left over are chains of scalars. */
void hwq_gemm_sequential__neon(const hwq_gemm_sequential_args *args)
{
    const int64_t whole = args->k > 0 ? args->n / 8 * 8 : 0;
    for (int64_t column = 0; column < whole; column += 8) {
        int64_t row = 0;
        for (; row + 4 <= args->m; row += 4) sequential(4, args, row, column);
        for (; row < args->m; row++) sequential(1, args, row, column);
    }
    hwq_gemm_sequential_args rest = *args;
    rest.n -= whole, rest.b += whole, rest.out += whole;
    hwq_gemm_sequential__ref(&rest);
}
#endif
