/* FP16 by fcvtl and fcvtn, BF16 by integer shifts: 4 at a time. */
#include "half.h"
#include "isa.h"

#if HWQ_ARM
#include <arm_neon.h>

void hwq_widen__neon(int32_t type, int64_t n, const uint16_t *x, float *out)
{
    int64_t i = 0;
    for (; i + 4 <= n; i += 4) {
        const uint16x4_t h = vld1_u16(x + i);
        if (type == HWQ_F16) {
            vst1q_f32(out + i, vcvt_f32_f16(vreinterpret_f16_u16(h)));
        } else {
            const uint32x4_t bits = vshll_n_u16(h, 16), size = vandq_u32(bits, vdupq_n_u32(0x7FFFFFFF));
            const uint32x4_t quiet = vandq_u32(vcgtq_u32(size, vdupq_n_u32(0x7F800000)), vdupq_n_u32(0x400000));
            vst1q_f32(out + i, vreinterpretq_f32_u32(vorrq_u32(bits, quiet)));
        }
    }
    hwq_widen__ref(type, n - i, x + i, out + i);
}

void hwq_narrow__neon(int32_t type, int64_t n, const float *x, uint16_t *out)
{
    int64_t i = 0;
    for (; i + 4 <= n; i += 4) {
        const float32x4_t v = vld1q_f32(x + i);
        if (type == HWQ_F16) {
            vst1_u16(out + i, vreinterpret_u16_f16(vcvt_f16_f32(v)));
        } else {
            const uint32x4_t bits = vreinterpretq_u32_f32(v), high = vshrq_n_u32(bits, 16);
            const uint32x4_t nan = vcgtq_u32(vandq_u32(bits, vdupq_n_u32(0x7FFFFFFF)), vdupq_n_u32(0x7F800000));
            const uint32x4_t even = vshrq_n_u32(vaddq_u32(bits, vaddq_u32(vdupq_n_u32(0x7FFF), vandq_u32(high, vdupq_n_u32(1)))), 16);
            vst1_u16(out + i, vmovn_u32(vbslq_u32(nan, vorrq_u32(high, vdupq_n_u32(0x40)), even)));
        }
    }
    hwq_narrow__ref(type, n - i, x + i, out + i);
}
#endif
