/* The saturating product on Advanced SIMD: 8 products of widened bytes (in [-32640, 32385]: int16 holds them), even and odd k unzipped and added by SQADD,
 * pairs of pairs widened by SADALP: what x86's VPMADDUBSW and VPMADDWD give, bit for bit. Bounds: as in gemm_saturating.c. */
#include "epilogue.h"
#include "isa.h"

#if HWQ_ARM
#include <arm_neon.h>
#include <string.h>

enum { ROWS = 64, PANEL = 4, COLUMNS = 256 };

static inline __attribute__((always_inline)) void tile(const int rows, int64_t k, const uint8_t *a, int64_t a_stride, const int8_t *b,
                                                       const int32_t *terms, int32_t *c)
{
    int32x4_t acc_s32x4[PANEL][4];
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < 4; v++) acc_s32x4[r][v] = vld1q_s32(terms + 4 * v);
    for (int64_t i = 0; i < k; i += HWQ_QUAD, b += HWQ_STRIP * HWQ_QUAD) {
        int16x8_t x[PANEL]; /* a quad, twice */
        for (int r = 0; r < rows; r++) {
            uint32_t bytes = 0; /* past the end 0: they meet packed weights that are 0 too */
            if (k - i >= HWQ_QUAD) memcpy(&bytes, a + r * a_stride + i, HWQ_QUAD);
            else for (int64_t j = 0; j < k - i; j++) bytes |= (uint32_t)a[r * a_stride + i + j] << (8 * j);
            x[r] = vreinterpretq_s16_u16(vmovl_u8(vreinterpret_u8_u32(vdup_n_u32(bytes))));
        }
        for (int v = 0; v < 4; v++) {
            const int8x16_t w = vld1q_s8(b + 16 * v);
            const int16x8_t left = vmovl_s8(vget_low_s8(w)), right = vmovl_high_s8(w);
            for (int r = 0; r < rows; r++) {
                const int16x8_t p = vmulq_s16(x[r], left), q = vmulq_s16(x[r], right);
                acc_s32x4[r][v] = vpadalq_s16(acc_s32x4[r][v], vqaddq_s16(vuzp1q_s16(p, q), vuzp2q_s16(p, q)));
            }
        }
    }
    for (int r = 0; r < rows; r++, c += COLUMNS)
        for (int v = 0; v < 4; v++) vst1q_s32(c + 4 * v, acc_s32x4[r][v]);
}

#include "gemm_saturating.h"

void hwq_gemm_saturating__neon(const hwq_gemm_args *args) { multiply(args); }
#endif
