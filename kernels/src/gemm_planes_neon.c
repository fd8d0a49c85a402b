/* gemm_planes.h on Advanced SIMD: TBL looks 16 columns up in each table, ZIP joins low and high bytes to 16-bit sums. An unsigned 16-bit lane takes 32 pairs
 * of groups, 64 * 1020 = 65,280 < 2^16, before it is widened. */
#include "isa.h"

#if HWQ_ARM
#include "gemm_planes.h"

#include <arm_neon.h>
#include <string.h>

enum { RUN = 32 };

static void plane(int64_t pairs, const uint8_t *bytes, const uint8_t *tables, int32_t bit, uint32_t *sums)
{
    for (int64_t first = 0; first < pairs; first += RUN) {
        const int64_t last = pairs - first < RUN ? pairs : first + RUN;
        uint16x8_t eight[4]; /* columns 0..7, 8..15, .. */
        for (int i = 0; i < 4; i++) eight[i] = vdupq_n_u16(0);
        for (int64_t pair = first; pair < last; pair++)
            for (int half = 0; half < 2; half++) {
                const uint8x16_t low = vld1q_u8(tables + 64 * pair + 32 * half), high = vld1q_u8(tables + 64 * pair + 32 * half + 16);
                for (int i = 0; i < 2; i++) {
                    const uint8x16_t both = vld1q_u8(bytes + 32 * pair + 16 * i), at = half ? vshrq_n_u8(both, 4) : vandq_u8(both, vdupq_n_u8(15));
                    const uint8x16_t l = vqtbl1q_u8(low, at), h = vqtbl1q_u8(high, at);
                    eight[2 * i] = vaddq_u16(eight[2 * i], vreinterpretq_u16_u8(vzip1q_u8(l, h)));
                    eight[2 * i + 1] = vaddq_u16(eight[2 * i + 1], vreinterpretq_u16_u8(vzip2q_u8(l, h)));
                }
            }
        for (int i = 0; i < 4; i++, sums += 8) {
            vst1q_u32(sums, vaddq_u32(vld1q_u32(sums), vshlq_u32(vmovl_u16(vget_low_u16(eight[i])), vdupq_n_s32(bit))));
            vst1q_u32(sums + 4, vaddq_u32(vld1q_u32(sums + 4), vshlq_u32(vmovl_high_u16(eight[i]), vdupq_n_s32(bit))));
        }
        sums -= 32;
    }
}

void hwq_gemm_planes__neon(const hwq_gemm_planes_args *args)
{
    const int64_t pairs = (args->k + 7) / 8, blocks = (args->n + 31) / 32;
    for (int64_t i = 0; i < args->m; i++) {
        build(args->k, args->a + i * args->a_stride, args->scratch);
        for (int64_t block = 0; block < blocks; block++) {
            uint32_t sums[32] = {0};
            for (int32_t bit = 0; bit < args->bits; bit++) plane(pairs, args->planes + (bit * blocks + block) * pairs * 32, args->scratch, bit, sums);
            const int64_t left = args->n - 32 * block;
            memcpy(args->out + i * args->out_stride + 32 * block, sums, (size_t)(left < 32 ? left : 32) * 4);
        }
    }
}
#endif
