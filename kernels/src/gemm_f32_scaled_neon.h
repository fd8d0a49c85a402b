/* gemm_f32_scaled.h's vectors of 128 bits. Integers become floats in two operations: a table lookup puts the bits on top of a lane, zeros below, and the
 * conversion from fixed point divides by what that multiplied, exactly. One row walks a strip, 4 chains: 3 operations for 4 MACs hide their latency on two
 * or three pipes (nibbles 32 multiply-adds of 131 instructions, bytes 16 of 59). More rows take floats from the first-level cache, 16 of 26. */
#define VECTOR uint8x16_t
#define FLOATS float32x4_t
#define LOAD_FLOATS vld1q_f32
#define SET1_FLOAT vdupq_n_f32
#define FMA(a, b, c) vfmaq_f32(c, a, b)
#define ZERO_FLOATS vdupq_n_f32(0.0f)
enum { LANES = 4, ONE_STRIPS = 1, REST_STRIPS = 1, FOUR_STRIPS = 1, TOGETHER = 4, MANY_FROM = 2, MANY_ROWS = 4, MANY_STRIPS = 1, SHIFT = 0, BLOCKS = 1, LEAST_BLOCKS = INT32_MAX };

static inline __attribute__((always_inline)) uint8x16_t load(const void *p) { return vld1q_u8(p); }

/* Byte i of every lane on top of it. */
static inline __attribute__((always_inline)) uint8x16_t on_top(uint8x16_t v, const int i)
{
    const uint32x4_t lanes = {0x00FFFFFFu, 0x04FFFFFFu, 0x08FFFFFFu, 0x0CFFFFFFu};
    return vqtbl1q_u8(v, vreinterpretq_u8_u32(vaddq_u32(lanes, vdupq_n_u32((uint32_t)i << 24))));
}

static inline __attribute__((always_inline)) float32x4_t floats_of(uint8x16_t integers) { return vcvtq_f32_s32(vreinterpretq_s32_u8(integers)); }
