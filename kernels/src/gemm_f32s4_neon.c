/* gemm_f32_scaled.h on Advanced SIMD, a nibble a weight: for 16 weights one or two operations, for every 4 of them two and a multiply-add, and a
 * subtraction where there are zero points. */
#include "gemm_s4.h"
#include "isa.h"

#if HWQ_ARM
#include <arm_neon.h>
#include <string.h>

#include "gemm_f32_scaled_neon.h"
enum { DEPTH = 8 };

/* The nibbles of half a line on top of their bytes, symmetric ones in two's complement (stored plus 8: the top bit flips). */
static inline __attribute__((always_inline)) uint8x16_t prepare(uint8x16_t v, const int half, const int weights)
{
    const uint8x16_t high = vandq_u8(half ? v : vshlq_n_u8(v, 4), vdupq_n_u8(0xF0));
    return weights == SYMMETRIC ? veorq_u8(high, vdupq_n_u8(0x80)) : high;
}

static inline __attribute__((always_inline)) float32x4_t element(uint8x16_t v, const int i, uint8x16_t zero_point, const int weights)
{
    const uint8x16_t top = on_top(v, i % 4);
    if (weights == SYMMETRIC) return vcvtq_n_f32_s32(vreinterpretq_s32_u8(top), 28);
    return vsubq_f32(vcvtq_n_f32_u32(vreinterpretq_u32_u8(top), 28), floats_of(zero_point));
}

#define PACKED hwq_packed_s4
#define ARGS hwq_gemm_s4_args
#define STORED nibbles
#include "gemm_f32_scaled.h"

void hwq_gemm_f32s4__neon(const hwq_gemm_s4_args *args) { multiply(args); }
#endif
