/* FP16 and BF16: all 65536 values and the ties between them; their product against the float32 one; dynamic quantization. */
#include "check.h"
#include "half.h"

#include <math.h>

/* The value by its definition, in double. */
static double meaning(int type, uint16_t h)
{
    const int bits = type == HWQ_F16 ? 10 : 7, bias = type == HWQ_F16 ? 15 : 127, top = type == HWQ_F16 ? 31 : 255;
    const int exponent = (h & 0x7FFF) >> bits, mantissa = h & ((1 << bits) - 1);
    const double sign = h & 0x8000 ? -1 : 1;
    if (exponent == top) return mantissa ? NAN : sign * INFINITY;
    return sign * (exponent ? ldexp(1 + ldexp(mantissa, -bits), exponent - bias) : ldexp(mantissa, 1 - bias - bits));
}

static void values(int type)
{
    enum { N = 65536 };
    guarded h = guard(N * 2, 0), wide = guard(N * 4, 0), back = guard(N * 2, 0);
    uint16_t *bits = h.data, *again = back.data;
    float *x = wide.data;
    int exact = 1, kept = 1, ties = 1;
    for (int i = 0; i < N; i++) bits[i] = (uint16_t)i;
    hwq_widen(type, N, bits, x);
    hwq_narrow(type, N, x, again);
    for (int i = 0; i < N; i++) {
        const double want = meaning(type, bits[i]);
        exact &= want != want ? x[i] != x[i] : (double)x[i] == want && !signbit(x[i]) == !(bits[i] & 0x8000);
        kept &= want != want ? meaning(type, again[i]) != meaning(type, again[i]) : again[i] == bits[i];
    }
    check_true(exact, "widening is exact");
    check_true(kept, "narrowing gives every value back");
    /* Halfway to the next value goes to the even one, the floats beside it to their own side. Beyond the largest: infinity. */
    const uint16_t infinite = type == HWQ_F16 ? 0x7C00 : 0x7F80;
    for (int side = -1; side <= 1; side++) {
        for (int i = 0; i < infinite; i++) {
            const double next = i + 1 < infinite ? meaning(type, (uint16_t)(i + 1)) : 2 * meaning(type, (uint16_t)i) - meaning(type, (uint16_t)(i - 1));
            x[i] = (float)((meaning(type, (uint16_t)i) + next) / 2);
            if (side) x[i] = nextafterf(x[i], side > 0 ? INFINITY : 0.0f);
        }
        hwq_narrow(type, infinite, x, again);
        for (int i = 0; i < infinite; i++) ties &= again[i] == (side < 0 ? i : side > 0 ? i + 1 : i + (i & 1));
    }
    check_true(ties, "nearest, ties to even");
    check_guard(&h), check_guard(&wide), check_guard(&back);
    for (int64_t n = 0; n <= 20; n++) {
        guarded from = guard((size_t)n * 4, 0), to = guard((size_t)n * 2, 0), up = guard((size_t)n * 4, 0);
        int equal = 1;
        for (int64_t i = 0; i < n; i++) ((float *)from.data)[i] = real();
        hwq_narrow(type, n, from.data, to.data);
        hwq_widen(type, n, to.data, up.data);
        for (int64_t i = 0; i < n; i++) {
            const float v = ((float *)from.data)[i];
            equal &= ((uint16_t *)to.data)[i] == (type == HWQ_F16 ? hwq_to_f16(v) : hwq_to_bf16(v));
            equal &= ((float *)up.data)[i] == (float)meaning(type, ((uint16_t *)to.data)[i]);
        }
        check_true(equal, "tails");
        check_guard(&from), check_guard(&to), check_guard(&up);
    }
}

static void products(int type, int64_t m, int64_t k, int64_t n)
{
    guarded a = guard((size_t)(m * k) * 2, 0), out = guard((size_t)(m * n) * 2, 0), space = guard((size_t)hwq_gemm_half_workspace(k, n), 0);
    float *wide = calloc((size_t)(m * k + 1), 4), *w = calloc((size_t)(k * n + 1), 4), *sums = calloc((size_t)(m * n + 1), 4);
    float *packed = calloc((size_t)hwq_packed_f32_floats(k, n) + 1, 4);
    uint16_t *want = calloc((size_t)(m * n + 1), 2);
    for (int64_t i = 0; i < m * k; i++) wide[i] = real();
    for (int64_t i = 0; i < k * n; i++) w[i] = real();
    hwq_narrow(type, m * k, wide, a.data);
    hwq_widen(type, m * k, a.data, wide);
    hwq_pack_f32(w, k, n, n, 1, packed);
    const hwq_gemm_half_args args = {.type = type, .m = m, .k = k, .n = n, .a = a.data, .a_stride = k, .weights = packed, .out = out.data,
                                     .out_stride = n, .workspace = space.data};
    hwq_gemm_half(&args);
    const hwq_gemm_f32_args plain = {.m = m, .k = k, .n = n, .a = wide, .a_stride = k, .weights = packed, .out = sums, .out_stride = n};
    hwq_gemm_f32__ref(&plain);
    hwq_narrow__ref(type, m * n, sums, want);
    check_equal(out.data, want, (size_t)(m * n) * 2, "float32 in the fixed order, narrowed once");
    check_guard(&a), check_guard(&out), check_guard(&space);
    free(wide), free(w), free(sums), free(packed), free(want);
}

static void dynamic(int path, int formula, int64_t columns)
{
    enum { ROWS = 7 };
    guarded x = guard((size_t)(ROWS * columns) * 4, 0), out = guard((size_t)(ROWS * columns), 0), want = guard((size_t)(ROWS * columns), 0);
    float scales[2][ROWS], *v = x.data;
    int32_t points[2][ROWS];
    for (int64_t i = 0; i < ROWS * columns; i++) {
        const int64_t row = i / columns; /* mixed, positive, negative, all 0, tiny, halves that make ties, one NaN */
        v[i] = row == 1 ? fabsf(real()) : row == 2 ? -fabsf(real()) : row == 3 ? 0.0f : row == 4 ? real() * 1e-38f : row == 5 ? (float)between(-255, 255) * 0.5f : real();
    }
    if (columns) v[6 * columns + columns / 2] = NAN;
    hwq_dynamic_quantize(formula, ROWS, columns, x.data, out.data, scales[0], points[0]);
    hwq_path_choose(0);
    hwq_dynamic_quantize(formula, ROWS, columns, x.data, want.data, scales[1], points[1]);
    hwq_path_choose(path);
    check_equal(out.data, want.data, (size_t)(ROWS * columns), "ref");
    check_equal(scales[0], scales[1], sizeof scales[0], "ref's scales");
    check_equal(points[0], points[1], sizeof points[0], "ref's zero points");
    check_guard(&x), check_guard(&out), check_guard(&want);
}

static void histogram(int64_t n)
{
    enum { HALF = 16 };
    guarded x = guard((size_t)n * 4, 0), counts = guard(4 * HALF * 8, 0), squares = guard(4 * 8, 0);
    float *v = x.data;
    int64_t want[2 * HALF] = {0}, *got = counts.data;
    double sums[4] = {0};
    memset(counts.data, 0, 4 * HALF * 8), memset(squares.data, 0, 4 * 8);
    for (int64_t i = 0; i < n; i++) /* edges of bins, both neighbors of an edge, 0, -0, denormals, what lies outside, NaN */
        v[i] = i % 9 == 0 ? (float)between(-HALF, HALF) * 0.25f : i % 9 == 1 ? nextafterf((float)between(-HALF, HALF) * 0.25f, -9) : i % 9 == 2 ? -0.0f
             : i % 9 == 3 ? -1e-42f : i % 9 == 4 ? 4.0f : i % 9 == 5 && i > 20 ? NAN : real();
    for (int64_t i = 0; i < n; i++) {
        const double bin = floor((double)v[i] / 0.25);
        if (bin >= -HALF && bin < HALF) want[(int64_t)bin + HALF]++;
        sums[i % 4] += (double)v[i] * (double)v[i];
    }
    hwq_histogram(n, x.data, 4.0, HALF, counts.data, squares.data);
    for (int i = 0; i < 2 * HALF; i++) got[i] += got[i + 2 * HALF];
    check_equal(got, want, sizeof want, "floor(x / width)");
    if (n < 20) check_equal(squares.data, sums, sizeof sums, "four partial sums");
    check_guard(&x), check_guard(&counts), check_guard(&squares);
}

/* Channels side by side and apart: ref's bits, and no value that is not finite goes by. */
static void ranges(int path, int64_t outer, int64_t channels, int64_t inner)
{
    const int64_t n = outer * channels * inner;
    guarded x = guard((size_t)n * 4, 0), low = guard((size_t)channels * 4, 0), high = guard((size_t)channels * 4, 0), total = guard((size_t)channels * 8, 0);
    guarded want_low = guard((size_t)channels * 4, 0), want_high = guard((size_t)channels * 4, 0), want = guard((size_t)channels * 8, 0);
    float *v = x.data;
    for (int64_t i = 0; i < n; i++) v[i] = i % 7 == 3 ? -0.0f : i % 7 == 5 ? 0.0f : i % 11 == 4 ? 3e38f : real();
    check_true(hwq_ranges(outer, channels, inner, v, low.data, high.data, total.data), "all finite");
    hwq_path_choose(0);
    check_true(hwq_ranges(outer, channels, inner, v, want_low.data, want_high.data, want.data), "all finite: ref");
    hwq_path_choose(path);
    check_equal(low.data, want_low.data, (size_t)channels * 4, "ref's minima");
    check_equal(high.data, want_high.data, (size_t)channels * 4, "ref's maxima");
    check_equal(total.data, want.data, (size_t)channels * 8, "ref's sums");
    for (int bad = 0; bad < 3; bad++) {
        const int64_t at = between(0, (int)n - 1);
        const float held = v[at];
        v[at] = bad == 0 ? NAN : bad == 1 ? INFINITY : -INFINITY;
        check_true(!hwq_ranges(outer, channels, inner, v, low.data, high.data, total.data), "not finite");
        v[at] = held;
    }
    check_guard(&x), check_guard(&low), check_guard(&high), check_guard(&total), check_guard(&want_low), check_guard(&want_high), check_guard(&want);
}

void check_half(void)
{
    EACH_PATH(path)
    {
        check_begin("histogram", path);
        for (int64_t n = 0; n < 60; n += n < 40 ? 1 : 7) histogram(n);
        check_begin("ranges", path);
        for (int64_t n = 1; n < 40; n++) ranges(path, 1, 1, n), ranges(path, n, 1, 1), ranges(path, 3, n, 1), ranges(path, 2, 3, n);
        for (int type = HWQ_F16; type <= HWQ_BF16; type++) {
            check_begin(type == HWQ_F16 ? "FP16" : "BF16", path);
            values(type);
            for (int64_t m = 0; m <= 4; m++) products(type, m, 9, 5);
            products(type, 50, 33, 18), products(type, 3, 0, 4);
        }
        check_begin("dynamic_quantize", path);
        for (int formula = HWQ_DYNAMIC_ONNX; formula <= HWQ_DYNAMIC_SYMMETRIC; formula++)
            for (int64_t columns = 0; columns <= 50; columns += columns < 36 ? 1 : 7) dynamic(path, formula, columns);
    }
}
