/* Integer GEMM on AArch64: the driver that neon, neondot and i8mm share. A path brings its tiles; the rest is here.
 *
 * Bytes are read as int8 (u8 minus 128, its zero point likewise), so one signed tile serves both ops:
 *   sum (a - za)(w - zw) = sum a w - za sum w - zw sum a + K za zw    modulo 2^32, where every step is exact.
 * a is packed as panels of 4 rows: per quad of k, 16 bytes = 4 rows x 4 k, the mirror of the weights' 16 columns x 4 k. k and
 * rows are padded with 0; padded k meets padded weights, which are 0 too, and sum a counts real k only. */
#ifndef HWQ_GEMM_ARM_H
#define HWQ_GEMM_ARM_H
#include "epilogue.h"
#include "isa.h"

#include <arm_neon.h>
#include <string.h>

enum { HWQ_ARM_ROWS = 64, HWQ_ARM_PANEL = 4, HWQ_ARM_COLUMNS = 256 };

/* c[r * stride + j] = sum of a * w for 4 rows, or the first of them, and 16 columns over `quads` quads. */
typedef void hwq_arm_tile(int64_t quads, const int8_t *a, const int8_t *b, int32_t *c, int64_t stride);

/* A panel of at most 4 rows of k, padded with 0 to `padded` (whole quads), and the sums of its rows, `step` apart. */
static inline __attribute__((always_inline)) void hwq_arm_panel(const uint8_t *a, int64_t stride, int64_t rows, int64_t k, int64_t padded, uint8_t flip,
                                                                int8_t *to, int32_t *sums, int64_t step)
{
    int32x4_t four[HWQ_ARM_PANEL];
    int64_t i = 0;
    for (int r = 0; r < HWQ_ARM_PANEL; r++) four[r] = vdupq_n_s32(0);
    for (; i + 16 <= k; i += 16) { /* st4 interleaves by 32 bits: quads */
        int32x4x4_t quads;
        for (int r = 0; r < HWQ_ARM_PANEL; r++) {
            const uint8x16_t v = r < rows ? veorq_u8(vld1q_u8(a + r * stride + i), vdupq_n_u8(flip)) : vdupq_n_u8(0);
            quads.val[r] = vreinterpretq_s32_u8(v);
            four[r] = vpadalq_s16(four[r], vpaddlq_s8(vreinterpretq_s8_u8(v)));
        }
        vst4q_s32((int32_t *)(void *)(to + i * HWQ_ARM_PANEL), quads);
    }
    memset(to + i * HWQ_ARM_PANEL, 0, (size_t)((padded - i) * HWQ_ARM_PANEL));
    for (int r = 0; r < HWQ_ARM_PANEL; r++) {
        uint32_t sum = (uint32_t)vaddvq_s32(four[r]);
        for (int64_t j = i; r < rows && j < k; j++) {
            const int8_t v = (int8_t)(a[r * stride + j] ^ flip);
            to[j / 4 * (4 * HWQ_ARM_PANEL) + r * 4 + j % 4] = v;
            sum += (uint32_t)v;
        }
        sums[r * step] = (int32_t)sum;
    }
}

static inline __attribute__((always_inline)) void hwq_arm_multiply(const hwq_gemm_args *args, uint8_t flip, int32_t zero_point, hwq_arm_tile *tile, hwq_arm_tile *single)
{
    const hwq_packed *w = args->weights;
    const int64_t k = w->k, n = w->n, k4 = (k + 3) / 4 * 4, base = args->group * n;
    const int8_t *packed = w->quads + args->group * hwq_packed_bytes(k, n);
    const int64_t begin = args->first_strip * HWQ_STRIP, wanted = begin + args->strips * HWQ_STRIP, end = wanted < n ? wanted : n;
    const int64_t out_size = hwq_type_size(args->epilogue->out_type);
    int32_t *block = args->workspace; /* 64 rows x 256 columns, then 64 rows of k4 bytes: within hwq_gemm_workspace(k) */
    int8_t *panels = (int8_t *)(block + HWQ_ARM_ROWS * HWQ_ARM_COLUMNS);
    int32_t sums[HWQ_ARM_ROWS];
    for (int64_t top = 0; top < args->m; top += HWQ_ARM_ROWS) {
        const int64_t rows = args->m - top < HWQ_ARM_ROWS ? args->m - top : HWQ_ARM_ROWS;
        for (int64_t r = 0; r < rows; r += HWQ_ARM_PANEL)
            hwq_arm_panel((const uint8_t *)args->a + (top + r) * args->a_stride, args->a_stride, rows - r, k, k4, flip, panels + r * k4, sums + r, 1);
        for (int64_t first = begin; first < end; first += HWQ_ARM_COLUMNS) {
            const int64_t last = first + HWQ_ARM_COLUMNS < end ? first + HWQ_ARM_COLUMNS : end;
            for (int64_t column = first; column < last; column += HWQ_STRIP) {
                const int64_t width = last - column < HWQ_STRIP ? last - column : HWQ_STRIP;
                uint32_t terms[HWQ_STRIP] = {0}, points[HWQ_STRIP] = {0};
                for (int64_t j = 0; j < width; j++) {
                    const int64_t at = base + column + j;
                    const uint32_t zw = w->zero_points ? (uint32_t)w->zero_points[at] : 0, za = (uint32_t)zero_point;
                    terms[j] = (args->bias ? (uint32_t)args->bias[at] : 0) - za * (uint32_t)w->column_sums[at] + (uint32_t)k * za * zw;
                    points[j] = zw;
                }
                for (int64_t r = 0; r < rows; r += HWQ_ARM_PANEL) {
                    int32_t *c = block + r * HWQ_ARM_COLUMNS + column - first;
                    (rows - r == 1 ? single : tile)(k4 / 4, panels + r * k4, packed + column / HWQ_STRIP * k4 * HWQ_STRIP, c, HWQ_ARM_COLUMNS);
                    for (int64_t i = r; i < rows && i < r + HWQ_ARM_PANEL; i++, c += HWQ_ARM_COLUMNS)
                        for (int j = 0; j < HWQ_STRIP; j++) c[j] = (int32_t)((uint32_t)c[j] + terms[j] - points[j] * (uint32_t)sums[i]);
                }
            }
            const hwq_epilogue epilogue = hwq_epilogue_at(args->epilogue, top, first);
            hwq_requantize(&epilogue, rows, last - first, base + first, block, HWQ_S32, HWQ_ARM_COLUMNS,
                           (char *)args->out + (top * args->out_stride + first) * out_size, args->out_stride);
        }
    }
}

#endif
