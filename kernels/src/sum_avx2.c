/* Sums in the fixed order: along contiguous k a register holds the 8 lanes; across k it holds one lane of 8 columns. */
#include "isa.h"

#if HWQ_X86
#include <immintrin.h>
#include <string.h>

HWQ_TARGET("avx2,fma")

static inline float tree(const float *lane)
{
    return ((lane[0] + lane[1]) + (lane[2] + lane[3])) + ((lane[4] + lane[5]) + (lane[6] + lane[7]));
}

static float along(int64_t k, const float *x)
{
    float lane[HWQ_LANES];
    __m256 acc = _mm256_setzero_ps();
    int64_t j = 0;
    for (; j + HWQ_LANES <= k; j += HWQ_LANES) acc = _mm256_add_ps(acc, _mm256_loadu_ps(x + j));
    _mm256_storeu_ps(lane, acc);
    for (int i = 0; j < k; i++, j++) lane[i] += x[j];
    return tree(lane);
}

static void across(int64_t k, int64_t inner, const float *x, float *out)
{
    int64_t i = 0;
    for (; i + 8 <= inner; i += 8) {
        __m256 lane[HWQ_LANES];
        int64_t j = 0;
        for (int l = 0; l < HWQ_LANES; l++) lane[l] = _mm256_setzero_ps();
        for (; j + HWQ_LANES <= k; j += HWQ_LANES)
            for (int l = 0; l < HWQ_LANES; l++) lane[l] = _mm256_add_ps(lane[l], _mm256_loadu_ps(x + (j + l) * inner + i));
        for (int l = 0; j < k; l++, j++) lane[l] = _mm256_add_ps(lane[l], _mm256_loadu_ps(x + j * inner + i));
        const __m256 a = _mm256_add_ps(_mm256_add_ps(lane[0], lane[1]), _mm256_add_ps(lane[2], lane[3]));
        const __m256 b = _mm256_add_ps(_mm256_add_ps(lane[4], lane[5]), _mm256_add_ps(lane[6], lane[7]));
        _mm256_storeu_ps(out + i, _mm256_add_ps(a, b));
    }
    for (; i < inner; i++) {
        float lane[HWQ_LANES] = {0};
        for (int64_t j = 0; j < k; j++) lane[j % HWQ_LANES] += x[j * inner + i];
        out[i] = tree(lane);
    }
}

void hwq_sum_f32__avx2(int64_t outer, int64_t k, int64_t inner, const float *x, float *out)
{
    for (int64_t o = 0; o < outer; o++, x += k * inner, out += inner)
        if (inner == 1) *out = along(k, x);
        else across(k, inner, x, out);
}

HWQ_TARGET_END
#endif
