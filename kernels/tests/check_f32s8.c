/* Float activations times scaled int8 weights: every path, ref too, against the stated order: random and extreme data, every tail,
 * blocks of 4, 32 and all of k, column ranges, unaligned operands, guard pages. Bytes as floats against exact integers. */
#include "check.h"

#include <math.h>

typedef struct {
    int64_t m, k, n, block;
    int bytes, fill, shift; /* bytes: a holds integers of -255..255 */
    int64_t first_strip, strips;
} problem;

static void run(const problem *p)
{
    const int64_t m = p->m, k = p->k, n = p->n, blocks = (k + p->block - 1) / p->block, n16 = (n + 15) / 16 * 16;
    guarded a = guard((size_t)(m * k * 4), (size_t)(p->shift * 4)), quads = guard((size_t)hwq_packed_bytes(k, n), (size_t)p->shift);
    guarded zero_points = guard((size_t)(blocks * n16) * 4, 0), scales = guard((size_t)(blocks * n16) * 4, 0);
    guarded out = guard((size_t)(m * n) * 4, 0), workspace = guard(HWQ_F32S8_WORKSPACE, 0);
    int8_t *w = malloc((size_t)(k * n) + 1);
    int32_t *columns = calloc((size_t)n + 1, 4 * 4);
    int64_t *sides = calloc((size_t)n + 1, 2 * 8);
    float one = 1.0f;
    fill_bytes(w, k * n, p->fill);
    for (int64_t i = 0; i < blocks * n16; i++) {
        ((int32_t *)zero_points.data)[i] = p->shift & 1 ? (int32_t)between(-128, 127) : 0;
        ((float *)scales.data)[i] = real();
    }
    for (int64_t i = 0; i < m * k; i++) ((float *)a.data)[i] = p->bytes ? (float)between(-255, 255) : real();
    hwq_pack(w, HWQ_S8, k, n, n, 1, NULL, quads.data, columns, columns + n, columns + 2 * n, sides, sides + n);
    const hwq_packed_s8 packed = {.k = k, .n = n, .block = p->block, .quads = quads.data, .scales = scales.data, .zero_points = zero_points.data,
                                  .symmetric = hwq_symmetric(n, (k + p->block - 1) / p->block, zero_points.data, 0)};
    const hwq_epilogue floats = {.kind = HWQ_KIND_F32, .out_type = HWQ_F32, .scales_f32 = &one};
    const hwq_gemm_f32s8_args args = {.m = m, .a = a.data, .a_stride = k, .weights = &packed, .first_strip = p->first_strip, .strips = p->strips,
                                      .epilogue = &floats, .out = out.data, .out_stride = n, .workspace = workspace.data};
    hwq_gemm_f32s8(&args);
    int equal = 1;
    const int64_t begin = p->first_strip * HWQ_STRIP, end = begin + p->strips * HWQ_STRIP;
    for (int64_t r = 0; r < m; r++)
        for (int64_t j = 0; j < n; j++) {
            int32_t want;
            float y = 0.0f;
            for (int64_t g = 0; g < blocks; g++) {
                const int64_t at = (j / 16 * blocks + g) * 16 + j % 16, last = (g + 1) * p->block < k ? (g + 1) * p->block : k;
                const int32_t zw = ((int32_t *)zero_points.data)[at];
                int64_t acc = 0;
                float chain = 0.0f;
                for (int64_t i = g * p->block; i < last; i++) {
                    const float x = ((float *)a.data)[r * k + i];
                    if (p->bytes) acc += (int64_t)x * (w[i * n + j] - zw);
                    else chain = fmaf(x, (float)(w[i * n + j] - zw), chain);
                }
                y = fmaf(p->bytes ? (float)acc : chain, ((float *)scales.data)[at], y);
            }
            y *= one;
            memcpy(&want, &y, 4);
            if (j < begin || j >= end) want = (int32_t)0xA5A5A5A5;
            equal &= ((int32_t *)out.data)[r * n + j] == want;
        }
    check_true(equal, "the stated reading");
    check_guard(&a), check_guard(&quads), check_guard(&zero_points), check_guard(&scales), check_guard(&out), check_guard(&workspace);
    free(w), free(columns), free(sides);
}

void check_f32s8(void)
{
    EACH_PATH(path)
        for (int bytes = 0; bytes < 2; bytes++) {
            check_begin("gemm_f32s8", path);
            for (int64_t n = 0; n <= 34; n++) run(&(problem){3, 41, n, 32, bytes, 0, (int)(n & 3), 0, 3});
            for (int64_t k = 0; k <= 70; k++) run(&(problem){5, k, 17, k & 1 ? 32 : 4, bytes, 0, (int)(k & 3), 0, 2});
            for (int64_t m = 0; m <= 10; m++) run(&(problem){m, 64, 83, 64, bytes, 0, (int)(m & 1), 0, 6});
            for (int64_t k = 0; k <= 70; k++) run(&(problem){9, k, 70, k & 1 ? 32 : 4, bytes, 0, (int)(k & 3), 0, 5}); /* tiles of many rows */
            run(&(problem){131, 230, 83, 96, bytes, 0, 1, 0, 6});                                                  /* in parts of k, rows in two */
            for (int fill = 1; fill < FILLS; fill++) run(&(problem){6, 256, 18, 256, bytes, fill, fill & 1, 0, 2});
            run(&(problem){7, 21, 70, 12, bytes, 0, 1, 1, 2}); /* a range of columns: the rest untouched */
        }
}
