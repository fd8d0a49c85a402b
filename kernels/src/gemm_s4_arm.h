/* Integer products with weights u of at most 4 bits on AArch64; included once by each path, which defines ZIPPED before and `dots` after it.
 *
 *   sum (a - za)(u - zu) = sum a u - za * sum(u - zu) - zu * sum(a), every sum over the block's k, modulo 2^32.
 * a is read as int8 (u8 minus 128, its zero point likewise) in gemm_arm.h's panels of 4 rows; u of 0..15 is an int8 as it is, so nothing is
 * taken from it. Two operations part 16 bytes into 32 weights. A panel or less does that in registers; more rows share PART of k of a strip,
 * unpacked once in the first-level cache. */
#ifndef HWQ_GEMM_S4_ARM_H
#define HWQ_GEMM_S4_ARM_H
#include "gemm_arm.h"
#include "gemm_s4.h"

enum { STRIPS = 4 /* that go out together */, WIDE = STRIPS * HWQ_STRIP, PART = 1024 };
_Static_assert(HWQ_GEMM_ROWS * WIDE * 4 <= HWQ_GEMM_FIXED && (int)STRIPS <= (int)HWQ_S4_STRIPS, "the workspace holds them");

/* What a tile reads beside a: of its strip. */
typedef struct {
    const int32_t *terms, *points; /* blocks x 16: bias - za * sum(u - zu); zu */
    const float *scales;           /* blocks x 16, or NULL */
    int64_t block, first, last;    /* of k: the part, whole blocks where they have scales */
    int64_t sums_stride;           /* from a row's sums of a by block to the next row's */
} strip_of;

/* The weights of 4 columns x 8 k: low and high quads, or (ZIPPED) the 8 k of a column together. */
static inline __attribute__((always_inline)) void split(const uint8_t *b, int8x16_t u[2])
{
    const uint8x16_t x = vld1q_u8(b);
    const int32x4_t low = vreinterpretq_s32_u8(vandq_u8(x, vdupq_n_u8(15))), high = vreinterpretq_s32_u8(vshrq_n_u8(x, 4));
    u[0] = vreinterpretq_s8_s32(ZIPPED ? vzip1q_s32(low, high) : low);
    u[1] = vreinterpretq_s8_s32(ZIPPED ? vzip2q_s32(low, high) : high);
}

/* Those of vector v of a strip's pair of quads, from nibbles or from what `unpack` made of them. */
static inline __attribute__((always_inline)) void weights_of(const int packed, const uint8_t *b, int v, int8x16_t u[2])
{
    if (packed) split(b + 16 * v, u);
    else u[0] = vreinterpretq_s8_u8(vld1q_u8(b + 32 * v)), u[1] = vreinterpretq_s8_u8(vld1q_u8(b + 32 * v + 16));
}

/* acc of `rows` rows x 16 columns += a u over `pairs` pairs of quads: 32 bytes of a panel and 64 (packed) or 128 of a strip each. */
static inline __attribute__((always_inline)) void dots(const int rows, const int packed, int64_t pairs, const int8_t *a, const uint8_t *b, int32x4_t acc[4][4]);

static void unpack(const uint8_t *nibbles, int64_t pairs, uint8_t *to)
{
    for (int64_t i = 0; i < pairs * 4; i++) {
        int8x16_t u[2];
        split(nibbles + 16 * i, u);
        vst1q_s8((int8_t *)to + 32 * i, u[0]);
        vst1q_s8((int8_t *)to + 32 * i + 16, u[1]);
    }
}

/* `rows` rows x 16 columns of the part, WIDE apart: int32, or float sums of scaled blocks. */
static inline __attribute__((always_inline)) void tile(const int rows, const int packed, const int scaled, const strip_of *s, const int8_t *a, const uint8_t *b,
                                                       const int32_t *sums, void *done)
{
    for (int64_t g = s->first / s->block, k = s->first; k < s->last; g++, k += s->block) {
        const int64_t pairs = ((s->last - k < s->block ? s->last - k : s->block) + 7) / 8;
        int32x4_t acc[4][4];
        for (int v = 0; v < 4; v++) {
            const int32x4_t term = vld1q_s32(s->terms + g * HWQ_STRIP + 4 * v), point = vld1q_s32(s->points + g * HWQ_STRIP + 4 * v);
            for (int r = 0; r < rows; r++)
                acc[r][v] = !scaled && s->first ? vld1q_s32((const int32_t *)done + r * WIDE + 4 * v) : vmlsq_n_s32(term, point, sums[r * s->sums_stride + g]);
        }
        dots(rows, packed, pairs, a, b, acc);
        a += pairs * 32, b += pairs * (packed ? 64 : 128);
        for (int v = 0; v < 4; v++)
            for (int r = 0; r < rows; r++)
                if (scaled) {
                    float *y = (float *)done + r * WIDE + 4 * v;
                    vst1q_f32(y, vfmaq_f32(g ? vld1q_f32(y) : vdupq_n_f32(0), vcvtq_f32_s32(acc[r][v]), vld1q_f32(s->scales + g * HWQ_STRIP + 4 * v)));
                } else vst1q_s32((int32_t *)done + r * WIDE + 4 * v, acc[r][v]);
    }
}

static void multiply(const hwq_gemm_s4_args *args)
{
    const hwq_packed_s4 *w = args->weights;
    if (w->k == 0) { /* no block to sum */
        hwq_gemm_s4__ref(args);
        return;
    }
    const int64_t k = w->k, n = w->n, blocks = hwq_s4_blocks(w), line = hwq_gemm_line(k), row_bytes = hwq_s4_row(k, w->block), nibbles = (k + 7) / 8 * 64;
    const int64_t begin = args->first_strip * HWQ_STRIP, wanted = begin + args->strips * HWQ_STRIP, end = wanted < n ? wanted : n;
    const int64_t most = hwq_gemm_block_rows(row_bytes, 12), part = !w->scales ? PART : w->block < PART ? PART / w->block * w->block : w->block;
    const int64_t panel_bytes = HWQ_ARM_PANEL * row_bytes, sums_stride = (row_bytes - line) / 4;
    const int packed = args->m <= HWQ_ARM_PANEL;
    const uint8_t flip = args->a_type == HWQ_U8 ? 0x80 : 0;
    const uint32_t zero_point = (uint32_t)(args->a_zero_point - flip);
    int32_t *done = args->workspace;
    uint8_t *panels = (uint8_t *)args->workspace + HWQ_GEMM_FIXED, *unpacked = panels + most * row_bytes;
    int32_t *terms = (int32_t *)(void *)(unpacked + HWQ_STRIP * ((k + 7) / 8 * 8));

    for (int64_t top = 0; top < args->m; top += most) {
        const int64_t rows = args->m - top < most ? args->m - top : most;
        for (int64_t r = 0; r < rows; r += HWQ_ARM_PANEL)
            for (int64_t g = 0; g < blocks; g++) {
                const int64_t first = g * w->block, depth = k - first < w->block ? k - first : w->block;
                uint8_t *panel = panels + r / HWQ_ARM_PANEL * panel_bytes;
                hwq_arm_panel((const uint8_t *)args->a + (top + r) * args->a_stride + first, args->a_stride, rows - r, depth, (depth + 7) / 8 * 8, flip,
                              (int8_t *)panel + first * HWQ_ARM_PANEL, (int32_t *)(void *)(panel + HWQ_ARM_PANEL * line) + g, sums_stride);
            }
        for (int64_t from = begin; from < end; from += WIDE) {
            const int64_t width = end - from < WIDE ? end - from : WIDE;
            for (int64_t column = from; column < from + width; column += HWQ_STRIP) {
                const int64_t at = column / HWQ_STRIP * blocks * HWQ_STRIP;
                for (int64_t i = 0; i < blocks * HWQ_STRIP; i++) terms[i] = (int32_t)(0 - zero_point * (uint32_t)w->sums[at + i]);
                for (int64_t j = 0; args->bias && j < HWQ_STRIP && column + j < n; j++) terms[j] = (int32_t)((uint32_t)terms[j] + (uint32_t)args->bias[column + j]);
                strip_of s = {.terms = terms, .points = w->zero_points + at, .scales = w->scales ? w->scales + at : NULL, .block = w->block, .sums_stride = sums_stride};
                for (s.first = 0; s.first < k; s.first = s.last) {
                    s.last = packed || k - s.first < part ? k : s.first + part;
                    const uint8_t *b = w->nibbles + column / HWQ_STRIP * nibbles + s.first * 8;
                    if (!packed) unpack(b, (s.last - s.first + 7) / 8, unpacked);
                    for (int64_t r = 0; r < rows; r += HWQ_ARM_PANEL) {
                        const uint8_t *panel = panels + r / HWQ_ARM_PANEL * panel_bytes;
                        const int32_t *sums = (const int32_t *)(const void *)(panel + HWQ_ARM_PANEL * line);
                        const int8_t *a = (const int8_t *)panel + s.first * HWQ_ARM_PANEL;
                        int32_t *to = done + r * WIDE + column - from;
#define TILE(rows, packed, b) (s.scales ? tile(rows, packed, 1, &s, a, b, sums, to) : tile(rows, packed, 0, &s, a, b, sums, to))
                        if (!packed) TILE(4, 0, unpacked);
                        else if (rows > 1) TILE(4, 1, b);
                        else TILE(1, 1, b);
#undef TILE
                    }
                }
            }
            char *out = (char *)args->out + (top * args->out_stride + from) * hwq_type_size(args->epilogue->out_type);
            if (w->scales) {
                hwq_finish_floats(args->epilogue, rows, width, from, (const float *)(const void *)done, WIDE, out, args->out_stride);
            } else {
                const hwq_epilogue epilogue = hwq_epilogue_at(args->epilogue, top, from);
                hwq_requantize(&epilogue, rows, width, from, done, HWQ_S32, WIDE, out, args->out_stride);
            }
        }
    }
}

#endif
