/* Sums in the fixed order: along contiguous k two registers hold the 8 lanes; across k a register holds one lane of 4 columns. */
#include "isa.h"

#if HWQ_ARM
#include <arm_neon.h>

static inline float tree(const float *lane)
{
    return ((lane[0] + lane[1]) + (lane[2] + lane[3])) + ((lane[4] + lane[5]) + (lane[6] + lane[7]));
}

static float along(int64_t k, const float *x)
{
    float lane[HWQ_LANES];
    float32x4_t low = vdupq_n_f32(0), high = low;
    int64_t j = 0;
    for (; j + HWQ_LANES <= k; j += HWQ_LANES) low = vaddq_f32(low, vld1q_f32(x + j)), high = vaddq_f32(high, vld1q_f32(x + j + 4));
    vst1q_f32(lane, low);
    vst1q_f32(lane + 4, high);
    for (int i = 0; j < k; i++, j++) lane[i] += x[j];
    return tree(lane);
}

static void across(int64_t k, int64_t inner, const float *x, float *out)
{
    int64_t i = 0;
    for (; i + 4 <= inner; i += 4) {
        float32x4_t lane[HWQ_LANES];
        for (int l = 0; l < HWQ_LANES; l++) lane[l] = vdupq_n_f32(0);
        for (int64_t j = 0; j < k; j++) lane[j % HWQ_LANES] = vaddq_f32(lane[j % HWQ_LANES], vld1q_f32(x + j * inner + i));
        const float32x4_t a = vaddq_f32(vaddq_f32(lane[0], lane[1]), vaddq_f32(lane[2], lane[3]));
        const float32x4_t b = vaddq_f32(vaddq_f32(lane[4], lane[5]), vaddq_f32(lane[6], lane[7]));
        vst1q_f32(out + i, vaddq_f32(a, b));
    }
    for (; i < inner; i++) {
        float lane[HWQ_LANES] = {0};
        for (int64_t j = 0; j < k; j++) lane[j % HWQ_LANES] += x[j * inner + i];
        out[i] = tree(lane);
    }
}

void hwq_sum_f32__neon(int64_t outer, int64_t k, int64_t inner, const float *x, float *out)
{
    for (int64_t o = 0; o < outer; o++, x += k * inner, out += inner)
        if (inner == 1) *out = along(k, x);
        else across(k, inner, x, out);
}
#endif
