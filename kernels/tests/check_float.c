/* Float32 products and sums: every path against the fixed order, spelled out, bit for bit. */
#include "check.h"

#include <math.h>

static float tree(const float *l) { return ((l[0] + l[1]) + (l[2] + l[3])) + ((l[4] + l[5]) + (l[6] + l[7])); }

static float wild(void) /* wide exponents, so that another order shows; sometimes what hurts */
{
    const int64_t pick = between(0, 40);
    if (pick == 0) return ldexpf(real(), -140);
    if (pick == 1) return 0.0f * real();
    return ldexpf(real(), (int)between(-20, 20));
}

static int same(float a, float b) { return memcmp(&a, &b, 4) == 0 || (a != a && b != b); }

static void products(int64_t m, int64_t k, int64_t n, int with_bias, int special)
{
    guarded a = guard((size_t)(m * k) * 4, 0), w = guard((size_t)(k * n) * 4, 0), packed = guard((size_t)hwq_packed_f32_floats(k, n) * 4, 0);
    guarded bias = guard((size_t)n * 4, 0), out = guard((size_t)(m * n) * 4, 0);
    float *x = a.data, *v = w.data, *b = bias.data, *y = out.data;
    for (int64_t i = 0; i < m * k; i++) x[i] = wild();
    for (int64_t i = 0; i < k * n; i++) v[i] = wild();
    for (int64_t i = 0; i < n; i++) b[i] = wild();
    if (special && m * k > 2) { x[0] = NAN; x[m * k - 1] = INFINITY; }
    hwq_pack_f32(v, k, n, n, 1, packed.data);
    const hwq_gemm_f32_args args = {.m = m, .k = k, .n = n, .a = x, .a_stride = k, .weights = packed.data, .bias = with_bias ? b : NULL,
                                    .out = y, .out_stride = n};
    hwq_gemm_f32(&args);
    int equal = 1;
    for (int64_t r = 0; r < m; r++)
        for (int64_t j = 0; j < n; j++) {
            float lane[8] = {0};
            for (int64_t i = 0; i < (k + 7) / 8 * 8; i++)
                lane[i % 8] = i < k ? fmaf(x[r * k + i], v[i * n + j], lane[i % 8]) : fmaf(0.0f, 0.0f, lane[i % 8]);
            equal &= same(y[r * n + j], with_bias ? tree(lane) + b[j] : tree(lane));
        }
    check_true(equal, "the fixed order");
    check_guard(&a), check_guard(&w), check_guard(&packed), check_guard(&bias), check_guard(&out);
}

/* The chain order, and that nothing beyond n columns of a wider row is read as data or written. */
static void sequential(int64_t m, int64_t k, int64_t n, int64_t block, int accumulate)
{
    guarded a = guard((size_t)(m * k) * 4, 0), b = guard((size_t)(k * n) * 4, 0), out = guard((size_t)(m * n) * 4, 0);
    float *x = a.data, *v = b.data, *y = out.data, *before = calloc((size_t)(m * n + 1), 4);
    for (int64_t i = 0; i < m * k; i++) x[i] = wild();
    for (int64_t i = 0; i < k * n; i++) v[i] = wild();
    for (int64_t i = 0; i < m * n; i++) y[i] = before[i] = wild();
    const hwq_gemm_sequential_args args = {.m = m, .k = k, .n = n, .block = block, .a = x, .a_stride = k, .b = v, .b_stride = n,
                                           .accumulate = accumulate, .out = y, .out_stride = n};
    hwq_gemm_sequential(&args);
    int equal = 1;
    for (int64_t r = 0; r < m; r++)
        for (int64_t j = 0; j < n; j++) {
            float want = accumulate ? before[r * n + j] : 0.0f;
            for (int64_t first = 0; first < k; first += block) {
                float chain = 0.0f;
                for (int64_t i = first; i < first + block && i < k; i++) chain = fmaf(x[r * k + i], v[i * n + j], chain);
                want = first || accumulate ? want + chain : chain;
            }
            equal &= same(y[r * n + j], want);
        }
    check_true(equal, "the chain order");
    check_guard(&a), check_guard(&b), check_guard(&out);
    free(before);
}

/* One chain of float64 over rows or columns of a; every path against fma. */
static void doubles(int64_t m, int64_t k, int64_t n, int columns, int accumulate)
{
    guarded a = guard((size_t)(m * k) * 8, 0), b = guard((size_t)(k * n) * 8, 0), out = guard((size_t)(m * n) * 8, 0);
    double *x = a.data, *v = b.data, *y = out.data, *before = calloc((size_t)(m * n + 1), 8);
    for (int64_t i = 0; i < m * k; i++) x[i] = (double)wild() * (1.0 + 1e-9 * real());
    for (int64_t i = 0; i < k * n; i++) v[i] = (double)wild() * (1.0 + 1e-9 * real());
    for (int64_t i = 0; i < m * n; i++) y[i] = before[i] = wild();
    const hwq_gemm_f64_args args = {.m = m, .k = k, .n = n, .a = x, .a_row = columns ? 1 : k, .a_step = columns ? m : 1, .b = v, .b_stride = n,
                                    .accumulate = accumulate, .out = y, .out_stride = n};
    hwq_gemm_f64(&args);
    int equal = 1;
    for (int64_t r = 0; r < m; r++)
        for (int64_t j = 0; j < n; j++) {
            double want = accumulate ? before[r * n + j] : 0.0;
            for (int64_t i = 0; i < k; i++) want = fma(x[columns ? i * m + r : r * k + i], v[i * n + j], want);
            equal &= memcmp(&y[r * n + j], &want, 8) == 0;
        }
    check_true(equal, "the chain");
    check_guard(&a), check_guard(&b), check_guard(&out);
    free(before);
}

static void sums(int64_t outer, int64_t k, int64_t inner)
{
    guarded in = guard((size_t)(outer * k * inner) * 4, 0), out = guard((size_t)(outer * inner) * 4, 0);
    float *x = in.data, *y = out.data;
    for (int64_t i = 0; i < outer * k * inner; i++) x[i] = wild();
    hwq_sum_f32(outer, k, inner, x, y);
    int equal = 1;
    for (int64_t o = 0; o < outer; o++)
        for (int64_t i = 0; i < inner; i++) {
            float lane[8] = {0};
            for (int64_t j = 0; j < k; j++) lane[j % 8] += x[(o * k + j) * inner + i];
            equal &= same(y[o * inner + i], tree(lane));
        }
    check_true(equal, "the fixed order");
    check_guard(&in), check_guard(&out);
}

static void row_scales(int path, int64_t rows, int64_t columns, int64_t each)
{
    const int64_t count = (rows + each - 1) / each;
    guarded acc = guard((size_t)(rows * columns) * 4, 0), scales = guard((size_t)count * 4, 0), points = guard((size_t)count, 0);
    guarded sums = guard((size_t)columns * 4, 0), factors = guard((size_t)columns * 4, 0), bias = guard((size_t)columns * 4, 0);
    guarded out = guard((size_t)(rows * columns) * 4, 0), want = guard((size_t)(rows * columns) * 4, 0);
    fill_bytes(acc.data, rows * columns * 4, 0), fill_bytes(points.data, count, 0), fill_bytes(sums.data, columns * 4, 0);
    for (int64_t i = 0; i < count; i++) ((float *)scales.data)[i] = real();
    for (int64_t i = 0; i < columns; i++) ((float *)factors.data)[i] = real(), ((float *)bias.data)[i] = real();
    int equal = 1;
    for (int how = 0; how < 24; how++) {
        if (how / 8 == HWQ_SCALE_FLOATS)
            for (int64_t i = 0; i < rows * columns; i++) ((float *)acc.data)[i] = real();
        const hwq_row_scales s = {.formula = how / 8, .point_type = how & 4 ? HWQ_U8 : HWQ_S8, .rows = rows, .columns = columns, .each = each, .sums = sums.data, .factors = factors.data,
                                  .bias = how & 1 ? bias.data : NULL, .lo = -1e8f, .hi = 1e8f};
        const void *zeros = how & 2 && s.formula != HWQ_SCALE_FLOATS ? points.data : NULL;
        hwq_scale_sums(&s, acc.data, scales.data, zeros, out.data);
        hwq_path_choose(0);
        hwq_scale_sums(&s, acc.data, scales.data, zeros, want.data);
        hwq_path_choose(path);
        check_equal(out.data, want.data, (size_t)(rows * columns) * 4, "ref");
        for (int64_t i = 0; i < rows * columns; i++) {
            const int64_t column = i % columns, at = i / columns / each;
            const int64_t point = !zeros ? 0 : s.point_type == HWQ_U8 ? ((const uint8_t *)zeros)[at] : ((const int8_t *)zeros)[at];
            const float sum = (float)(int32_t)(uint32_t)(uint64_t)(((const int32_t *)acc.data)[i] - point * ((const int32_t *)sums.data)[column]);
            const float scale = ((const float *)scales.data)[at], factor = ((const float *)factors.data)[column], b = ((const float *)bias.data)[column];
            float y = s.formula == HWQ_SCALE_FLOATS ? ((const float *)acc.data)[i] * scale : sum * (scale * factor);
            if (s.formula == HWQ_SCALE_XNNPACK) y = fmaf(sum * scale, factor, s.bias ? b : 0.0f);
            else if (s.bias) y += b;
            equal &= same(((const float *)out.data)[i], y < s.lo ? s.lo : y > s.hi ? s.hi : y);
        }
    }
    check_true(equal, "the formula");
    check_guard(&acc), check_guard(&scales), check_guard(&points), check_guard(&sums), check_guard(&factors), check_guard(&bias), check_guard(&out);
}

void check_float(void)
{
    EACH_PATH(path)
    {
        check_begin("gemm_f32", path);
        for (int64_t k = 0; k <= 33; k++) products(4, k, 5, (int)(k & 1), 0);
        for (int64_t m = 0; m <= 7; m++)
            for (int64_t n = 0; n <= 9; n++) products(m, 11, n, 1, 0);
        products(7, 40, 70, 0, 1);
        products(2, 5000, 40, 1, 0); /* past the column block */
        check_begin("gemm_sequential", path);
        for (int64_t n = 0; n <= 34; n++) sequential(1 + n % 5, 3 + n % 7, n, 1 + n % 4, (int)(n & 1));
        for (int64_t k = 0; k <= 9; k++) sequential(5, k, 17, 4, (int)(k & 1));
        sequential(9, 300, 40, 128, 0), sequential(0, 3, 4, 1, 0), sequential(4, 5, 16, INT64_MAX / 2, 1);
        check_begin("gemm_f64", path);
        for (int64_t n = 0; n <= 26; n++) doubles(n % 6, 3 + n % 7, n, (int)(n & 1), (int)(n & 2));
        doubles(9, 300, 30, 1, 0), doubles(3, 0, 4, 0, 0), doubles(3, 0, 4, 0, 1), doubles(5, 600, 13, 0, 1);
        check_begin("scale_sums", path);
        for (int64_t n = 0; n <= 34; n++) row_scales(path, 4, n, 1 + n % 2);
        check_begin("sum_f32", path);
        for (int64_t k = 0; k <= 26; k++) sums(3, k, 1), sums(2, k, 19);
        sums(1, 1000, 1), sums(1, 100, 8), sums(0, 3, 4);
    }
}
