/* Products with weights of at most 4 bits: every path, ref too, against an int64 reading per block and the stated order of
 * float blocks: random and extreme data, every tail, blocks of 32, 64 and all of k, column ranges, unaligned operands, guard pages. */
#include "check.h"

#include <math.h>

typedef struct {
    int64_t m, k, n, block;
    int a_type, scaled, fill, shift;
    int64_t first_strip, strips;
} problem;

/* Floats on both sides of 2^-98, below which a weight 2^28 too great would cost bits of a. */
enum { TINY = FILLS };

static void run(const problem *p)
{
    const int64_t m = p->m, k = p->k, n = p->n, blocks = (k + p->block - 1) / p->block, n16 = (n + 15) / 16 * 16, a_size = hwq_type_size(p->a_type);
    guarded a = guard((size_t)(m * k * a_size), (size_t)(p->shift * a_size)), nibbles = guard((size_t)hwq_packed_s4_bytes(k, n), (size_t)p->shift);
    guarded sums = guard((size_t)(blocks * n16) * 4, 0), zero_points = guard((size_t)(blocks * n16) * 4, 0), scales = guard((size_t)(blocks * n16) * 4, 0);
    guarded out = guard((size_t)(m * n) * 4, 0), workspace = guard((size_t)hwq_gemm_s4_workspace(k, p->block), 0);
    uint8_t *w = malloc((size_t)(k * n) + 1);
    int32_t *bias = calloc((size_t)n + 1, 4);
    float one = 1.0f;
    fill_bytes(w, k * n, p->fill % FILLS);
    for (int64_t i = 0; i < k * n; i++) w[i] &= 15;
    for (int64_t j = 0; j < n; j++) bias[j] = (int32_t)between(-100000, 100000);
    for (int64_t i = 0; i < blocks * n16; i++) {
        ((int32_t *)zero_points.data)[i] = p->shift & 1 ? (int32_t)between(0, 15) : 8;
        ((float *)scales.data)[i] = real();
    }
    if (p->a_type == HWQ_F32)
        for (int64_t i = 0; i < m * k; i++) ((float *)a.data)[i] = p->fill == TINY ? ldexpf(real(), (int)between(-150, -90)) : real();
    else fill_bytes(a.data, m * k, p->fill);
    const int32_t za = p->a_type == HWQ_F32 ? 0 : p->a_type == HWQ_U8 ? (int32_t)between(0, 255) : (int32_t)between(-128, 127);
    hwq_pack_s4(w, k, n, n, 1, p->block, zero_points.data, nibbles.data, sums.data);
    const hwq_packed_s4 packed = {.k = k, .n = n, .block = p->block, .nibbles = nibbles.data, .scales = p->scaled ? scales.data : NULL,
                                  .zero_points = zero_points.data, .sums = sums.data, .symmetric = hwq_symmetric(n, blocks, zero_points.data, 8)};
    const hwq_epilogue whole = {.kind = HWQ_KIND_S32, .out_type = HWQ_S32}, floats = {.kind = HWQ_KIND_F32, .out_type = HWQ_F32, .scales_f32 = &one};
    const hwq_gemm_s4_args args = {.m = m, .a = a.data, .a_stride = k, .a_type = p->a_type, .a_zero_point = za, .weights = &packed,
                                   .first_strip = p->first_strip, .strips = p->strips, .bias = p->scaled ? NULL : bias,
                                   .epilogue = p->scaled ? &floats : &whole, .out = out.data, .out_stride = n, .workspace = workspace.data};
    if (p->a_type == HWQ_F32) hwq_gemm_f32s4(&args);
    else hwq_gemm_s4(&args);
    int equal = 1;
    const int64_t begin = p->first_strip * HWQ_STRIP, end = begin + p->strips * HWQ_STRIP;
    for (int64_t r = 0; r < m; r++)
        for (int64_t j = 0; j < n; j++) {
            int32_t want = p->scaled ? 0 : bias[j];
            float y = 0.0f;
            for (int64_t g = 0; g < blocks; g++) {
                const int64_t at = (j / 16 * blocks + g) * 16 + j % 16, last = (g + 1) * p->block < k ? (g + 1) * p->block : k;
                const int32_t zw = ((int32_t *)zero_points.data)[at];
                int64_t acc = 0;
                float chain = 0.0f;
                for (int64_t i = g * p->block; i < last; i++) {
                    if (p->a_type == HWQ_F32) chain = fmaf(((float *)a.data)[r * k + i], (float)(w[i * n + j] - zw), chain);
                    else acc += (int64_t)((p->a_type == HWQ_U8 ? ((uint8_t *)a.data)[r * k + i] : ((int8_t *)a.data)[r * k + i]) - za) * (w[i * n + j] - zw);
                }
                if (!p->scaled) want += (int32_t)acc;
                y = fmaf(p->a_type == HWQ_F32 ? chain : (float)acc, ((float *)scales.data)[at], y);
            }
            y *= one;
            if (p->scaled) memcpy(&want, &y, 4);
            if (j < begin || j >= end) want = (int32_t)0xA5A5A5A5;
            equal &= ((int32_t *)out.data)[r * n + j] == want;
        }
    check_true(equal, "the stated reading");
    check_guard(&a), check_guard(&nibbles), check_guard(&sums), check_guard(&zero_points), check_guard(&scales), check_guard(&out), check_guard(&workspace);
    free(w), free(bias);
}

void check_s4(void)
{
    const int types[3] = {HWQ_U8, HWQ_S8, HWQ_F32};
    EACH_PATH(path)
        for (int t = 0; t < 3; t++)
            for (int scaled = types[t] == HWQ_F32; scaled <= 1; scaled++) {
                const int a = types[t];
                check_begin(a == HWQ_F32 ? "gemm_f32s4" : "gemm_s4", path);
                for (int64_t m = 1; a == HWQ_F32 && m <= 9; m += 4) run(&(problem){m, 200, 70, 32, a, 1, TINY, 0, 0, 5});
                for (int64_t n = 0; n <= 34; n++) run(&(problem){3, 41, n, scaled ? 32 : 64, a, scaled, 0, (int)(n & 3), 0, 3});
                for (int64_t k = 0; k <= 70; k++) run(&(problem){5, k, 17, scaled ? 32 : 96, a, scaled, 0, (int)(k & 3), 0, 2});
                for (int64_t m = 0; m <= 26; m++) run(&(problem){m, 64, 19, 64, a, scaled, 0, (int)(m & 1), 0, 2});
                for (int64_t k = 0; k <= 70; k++) run(&(problem){9, k, 70, scaled ? 32 : 96, a, scaled, 0, (int)(k & 3), 0, 5}); /* tiles of many rows */
                run(&(problem){33, 230, 83, scaled ? 96 : 256, a, scaled, 0, 1, 0, 6});                                          /* in parts of k */
                for (int fill = 1; fill < FILLS; fill++) run(&(problem){6, 200, 18, scaled ? 128 : 224, a, scaled, fill, fill & 1, 0, 2});
                run(&(problem){27, 21, 70, 32, a, scaled, 0, 1, 1, 2}); /* a range of columns: the rest untouched */
                run(&(problem){131, 40, 17, scaled ? 32 : 64, a, scaled, 0, 0, 0, 2}); /* more rows than are held */
                run(&(problem){17, 9000, 17, scaled ? 64 : 9024, a, scaled, 2, 0, 0, 2}); /* past the bytes of a block of rows */
            }
}
