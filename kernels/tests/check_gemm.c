/* Integer GEMM: every path against an int64 reading, which ref meets too: random and extreme data, every tail, zero points,
 * column ranges, K = 0, unaligned operands, guard pages. */
#include "check.h"

typedef struct {
    int64_t m, k, n;
    int a_type, w_type, fill, with_points, shift;
    int64_t first_strip, strips;
} problem;
static int saturating; /* the op that `run` calls */
#if HWQ_X86
hwq_gemm_fn plain_gemm_u8s8, plain_gemm_s8s8, pairs_gemm_u8s8, pairs_gemm_s8s8, threes_gemm_u8s8, threes_gemm_s8s8; /* gemm_avx2_plain.c, ... */
static hwq_gemm_fn *const TWINS[3][2] = {{plain_gemm_u8s8, plain_gemm_s8s8}, {pairs_gemm_u8s8, pairs_gemm_s8s8}, {threes_gemm_u8s8, threes_gemm_s8s8}};
#endif

static int64_t value(int type, const void *x, int64_t i) { return type == HWQ_U8 ? ((const uint8_t *)x)[i] : ((const int8_t *)x)[i]; }

static void run(const problem *p, int path)
{
    (void)path; /* read on x86 alone */
    const int64_t m = p->m, k = p->k, n = p->n, slots = n > 0 ? n : 1;
    guarded a = guard((size_t)(m * k), (size_t)p->shift), w = guard((size_t)(k * n), 0), bias = guard((size_t)n * 4, 0);
    guarded quads = guard((size_t)hwq_packed_bytes(k, n), (size_t)p->shift), out = guard((size_t)(m * n) * 4, 0);
    guarded workspace = guard((size_t)hwq_gemm_workspace(k), 0);
    int32_t *points = calloc((size_t)slots, 4), *stored = calloc((size_t)slots, 4), *sums = calloc((size_t)slots, 4), *products = calloc((size_t)slots, 4);
    int64_t *positive = calloc((size_t)slots, 8), *negative = calloc((size_t)slots, 8);
    fill_bytes(a.data, m * k, p->fill);
    fill_bytes(w.data, k * n, p->fill);
    const int64_t lo_a = p->a_type == HWQ_U8 ? 0 : -128, lo_w = p->w_type == HWQ_U8 ? 0 : -128;
    const int32_t za = p->with_points ? (int32_t)between(lo_a, lo_a + 255) : 0;
    for (int64_t j = 0; j < n; j++) {
        points[j] = p->with_points ? (int32_t)between(lo_w, lo_w + 255) : 0;
        ((int32_t *)bias.data)[j] = (int32_t)between(-1000000, 1000000);
    }
    hwq_pack(w.data, p->w_type, k, n, n, 1, points, quads.data, stored, sums, products, positive, negative);
    const hwq_packed packed = {.k = k, .n = n, .groups = 1, .quads = quads.data,
                               .zero_points = p->with_points || p->w_type == HWQ_U8 ? stored : NULL, .column_sums = sums,
                               .column_products = products};
    const hwq_epilogue epilogue = {.kind = HWQ_KIND_S32, .out_type = HWQ_S32};
    const hwq_gemm_args args = {.m = m, .a = a.data, .a_stride = k, .a_zero_point = za, .weights = &packed, .first_strip = p->first_strip,
                                .strips = p->strips, .bias = bias.data, .epilogue = &epilogue, .out = out.data, .out_stride = n,
                                .workspace = workspace.data};
    if (saturating) hwq_gemm_saturating(&args);
    else if (p->a_type == HWQ_U8) hwq_gemm_u8s8(&args);
    else hwq_gemm_s8s8(&args);

    int equal = 1;
    const int64_t begin = p->first_strip * HWQ_STRIP, end = begin + p->strips * HWQ_STRIP;
    for (int64_t r = 0; r < m; r++)
        for (int64_t j = 0; j < n; j++) {
            int64_t want = ((int32_t *)bias.data)[j];
            for (int64_t i = 0; saturating && i < k; i += 2) { /* what saturation takes away from a pair of raw products */
                int64_t pair = value(HWQ_U8, a.data, r * k + i) * value(HWQ_S8, w.data, i * n + j);
                if (i + 1 < k) pair += value(HWQ_U8, a.data, r * k + i + 1) * value(HWQ_S8, w.data, (i + 1) * n + j);
                want += pair > 32767 ? 32767 - pair : pair < -32768 ? -32768 - pair : 0;
            }
            for (int64_t i = 0; i < k; i++) want += (value(p->a_type, a.data, r * k + i) - za) * (value(p->w_type, w.data, i * n + j) - points[j]);
            const int32_t expected = j >= begin && j < end ? (int32_t)want : (int32_t)0xA5A5A5A5;
            equal &= ((int32_t *)out.data)[r * n + j] == expected;
        }
    check_true(equal, "int64 reading");
#if HWQ_X86
    if (!saturating && strcmp(hwq_path_name(path), "avx2") == 0) {
        int32_t *want = malloc((size_t)(m * n) * 4 + 1);
        memcpy(want, out.data, (size_t)(m * n) * 4);
        for (int twin = 0; twin < 3; twin++) {
            memset(out.data, 0xA5, (size_t)(m * n) * 4);
            TWINS[twin][p->a_type != HWQ_U8](&args);
            check_equal(out.data, want, (size_t)(m * n) * 4, "the assembly, its intrinsics twin, tiles for other processors");
        }
        free(want);
    }
#endif
    for (int64_t j = 0; j < n; j++) {
        int64_t above = 0, below = 0;
        for (int64_t i = 0; i < k; i++) {
            const int64_t v = value(p->w_type, w.data, i * n + j) - points[j];
            if (v > 0) above += v;
            else below -= v;
        }
        check_true(positive[j] == above && negative[j] == below, "the proof's sums");
    }
    check_guard(&a), check_guard(&w), check_guard(&bias), check_guard(&quads), check_guard(&out), check_guard(&workspace);
    free(points), free(stored), free(sums), free(products), free(positive), free(negative);
}

void check_gemm(void)
{
    EACH_PATH(path)
    {
        for (int a_type = HWQ_U8; a_type <= HWQ_S8; a_type++)
            for (int w_type = HWQ_U8; w_type <= HWQ_S8; w_type++) {
                check_begin(a_type == HWQ_U8 ? "gemm_u8s8" : "gemm_s8s8", path);
                for (int64_t n = 0; n <= 66; n += 1 + (n > 3 && n % 16 > 1)) /* tails of n, k, m to two tiles, one at a time */
                    run(&(problem){3, 9, n, a_type, w_type, 0, 1, (int)(n & 3), 0, 5}, path);
                for (int64_t n = 0; n <= 66; n += 1 + (n > 3 && n % 16 > 1)) run(&(problem){7, 9, n, a_type, w_type, 0, (int)(n & 1), (int)(n & 3), 0, 5}, path);
                for (int64_t k = 0; k <= 34; k++) run(&(problem){5, k, 17, a_type, w_type, 0, 1, (int)(k & 3), 0, 2}, path);
                for (int64_t k = 0; k <= 34; k++) run(&(problem){8, k, 33, a_type, w_type, 0, 1, (int)(k & 3), 0, 3}, path);
                for (int64_t m = 0; m <= 25; m++) run(&(problem){m, 12, 19, a_type, w_type, 0, (int)(m & 1), 1, 0, 2}, path);
                for (int fill = 1; fill < FILLS; fill++) run(&(problem){6, 200, 18, a_type, w_type, fill, fill & 1, 0, 0, 2}, path);
                run(&(problem){7, 530, 50, a_type, w_type, 0, 1, 1, 0, 4}, path);   /* past the blocks of k */
                run(&(problem){67, 70, 280, a_type, w_type, 0, 1, 3, 0, 18}, path); /* past the row and column blocks */
                run(&(problem){66, 21, 70, a_type, w_type, 0, 1, 0, 1, 2}, path);   /* a range of columns: the rest untouched */
                run(&(problem){51, 5240, 5, a_type, w_type, 0, 0, 0, 0, 1}, path); /* where panels of 2 hold more rows than panels of 3 */
                run(&(problem){25, 11000, 17, a_type, w_type, 0, a_type == HWQ_U8, 0, 0, 3}, path); /* past the bytes of a block */
                for (int64_t n = 0; n <= 66; n += 1 + (n > 3 && n % 16 > 1)) run(&(problem){1, 9, n, a_type, w_type, 0, 1, (int)(n & 3), 0, 5}, path); /* one row */
                for (int64_t k = 0; k <= 34; k++) run(&(problem){1, k, 33, a_type, w_type, 0, (int)(k & 1), (int)(k & 3), 0, 3}, path);
                for (int fill = 0; fill < FILLS; fill++) run(&(problem){1, 1030, 50, a_type, w_type, fill, fill & 1, 0, 1, 2}, path);
                run(&(problem){2, 5, 40, a_type, w_type, 0, 0, 0, 2, 9}, path);
            }
        check_begin("gemm_saturating", path);
        saturating = 1;
        for (int64_t n = 0; n <= 33; n += 1 + (n > 3)) run(&(problem){3, 9, n, HWQ_U8, HWQ_S8, 0, 1, (int)(n & 3), 0, 5}, path);
        for (int64_t k = 0; k <= 18; k++) run(&(problem){5, k, 17, HWQ_U8, HWQ_S8, 0, 1, (int)(k & 3), 0, 2}, path);
        for (int64_t m = 0; m <= 25; m++) run(&(problem){m, 12, 19, HWQ_U8, HWQ_S8, 0, (int)(m & 1), 1, 0, 2}, path);
        for (int fill = 1; fill < FILLS; fill++) run(&(problem){6, 200, 18, HWQ_U8, HWQ_S8, fill, fill & 1, 0, 0, 2}, path);
        run(&(problem){67, 70, 280, HWQ_U8, HWQ_S8, 2, 1, 3, 0, 18}, path);
        run(&(problem){66, 21, 70, HWQ_U8, HWQ_S8, 2, 1, 0, 1, 2}, path);
        saturating = 0;
        check_begin("gemm wraps", path);
        run(&(problem){1, 40000, 1, HWQ_U8, HWQ_U8, 2, 0, 0, 0, 1}, path); /* 40000 * 255 * 255 > 2^31 */
    }
}
