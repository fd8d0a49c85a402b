/* Chains on pairs of registers, 8 lanes (chain_f32.h): 6 positions x 16 columns are 24 accumulators of 32 registers. */
#include "isa.h"

#if HWQ_ARM
#include <arm_neon.h>

enum { LANES = 8 };
#define MOST 6
#define FLOATS float32x4x2_t
#define LOAD vld1q_f32_x2
#define STORE vst1q_f32_x2
#define SET1 both
#define FMA multiply_add
#define MIN least
#define MAX most
#define NEXT(k) LANES /* floats from a vector of weights to the next: half a strip */
#define HWQ_INLINE static inline __attribute__((always_inline))

HWQ_INLINE float32x4x2_t both(float v) { return (float32x4x2_t){{vdupq_n_f32(v), vdupq_n_f32(v)}}; }
HWQ_INLINE float32x4x2_t multiply_add(float32x4x2_t x, float32x4x2_t w, float32x4x2_t y)
{
    return (float32x4x2_t){{vfmaq_f32(y.val[0], x.val[0], w.val[0]), vfmaq_f32(y.val[1], x.val[1], w.val[1])}};
}

/* As minps and maxps: b where they are equal or not ordered. */
HWQ_INLINE float32x4_t lesser(float32x4_t a, float32x4_t b) { return vbslq_f32(vcltq_f32(a, b), a, b); }
HWQ_INLINE float32x4_t greater(float32x4_t a, float32x4_t b) { return vbslq_f32(vcgtq_f32(a, b), a, b); }
HWQ_INLINE float32x4x2_t least(float32x4x2_t a, float32x4x2_t b) { return (float32x4x2_t){{lesser(a.val[0], b.val[0]), lesser(a.val[1], b.val[1])}}; }
HWQ_INLINE float32x4x2_t most(float32x4x2_t a, float32x4x2_t b) { return (float32x4x2_t){{greater(a.val[0], b.val[0]), greater(a.val[1], b.val[1])}}; }

#include "chain_f32.h"

void hwq_conv_chain__neon(const hwq_conv *c)
{
    if (hwq_chain_fits(c)) drive(c, 0);
    else hwq_conv_chain__ref(c);
}
void hwq_depthwise_chain__neon(const hwq_conv *c)
{
    if (hwq_chain_fits(c)) drive(c, 1);
    else hwq_depthwise_chain__ref(c);
}
#endif
