/* gemm_f32_scaled.h on Advanced SIMD, a byte a weight: for 4 weights two operations and a multiply-add, and a subtraction where there are zero points. */
#include "gemm_s4.h"
#include "isa.h"

#if HWQ_ARM
#include <arm_neon.h>
#include <string.h>

#include "gemm_f32_scaled_neon.h"
enum { DEPTH = HWQ_QUAD };

static inline __attribute__((always_inline)) uint8x16_t prepare(uint8x16_t v, const int half, const int weights)
{
    (void)half, (void)weights;
    return v;
}

static inline __attribute__((always_inline)) float32x4_t element(uint8x16_t v, const int i, uint8x16_t zero_point, const int weights)
{
    const float32x4_t w = vcvtq_n_f32_s32(vreinterpretq_s32_u8(on_top(v, i)), 24);
    return weights == SYMMETRIC ? w : vsubq_f32(w, floats_of(zero_point));
}

#define PACKED hwq_packed_s8
#define ARGS hwq_gemm_f32s8_args
#define STORED quads
#include "gemm_f32_scaled.h"

void hwq_gemm_f32s8__neon(const hwq_gemm_f32s8_args *args) { multiply(args); }
#endif
