/* int16 products against an int64 reading; interpolated tables, softmax and layer normalization: every path against ref. */
#include "check.h"

static void products(int64_t m, int64_t k, int64_t n, int extreme, int points, int64_t first_strip, int64_t strips)
{
    guarded a = guard((size_t)(m * k) * 2, 0), w = guard((size_t)(k * n), 0), quads = guard((size_t)hwq_packed_bytes(k, n), 0);
    guarded out = guard((size_t)(m * n) * 4, 0), small = guard((size_t)(m * n) * 2, 0);
    int32_t *columns = calloc((size_t)n * 4 + 1, 4);
    int64_t *bias = calloc((size_t)n * 3 + 1, 8);
    for (int64_t i = 0; i < m * k; i++) ((int16_t *)a.data)[i] = extreme ? -32768 : (int16_t)draw();
    fill_bytes(w.data, k * n, extreme ? 1 : 0);
    for (int64_t j = 0; j < n; j++) columns[j] = points ? (int32_t)between(-128, 127) : 0, bias[j] = (int64_t)draw() >> 20;
    const int32_t za = points ? (int32_t)between(-32768, 32767) : 0;
    hwq_pack(w.data, HWQ_S8, k, n, n, 1, columns, quads.data, columns + n, columns + 2 * n, columns + 3 * n, bias + n, bias + 2 * n);
    const hwq_packed packed = {.k = k, .n = n, .groups = 1, .quads = quads.data, .zero_points = points ? columns + n : NULL,
                               .column_sums = columns + 2 * n, .column_products = columns + 3 * n};
    hwq_epilogue e = {.kind = HWQ_KIND_S32, .out_type = HWQ_S32};
    hwq_gemm_s16_args args = {.m = m, .a = a.data, .a_stride = k, .a_zero_point = za, .weights = &packed, .first_strip = first_strip,
                              .strips = strips, .bias = bias, .acc_type = HWQ_S32, .epilogue = &e, .out = out.data, .out_stride = n};
    hwq_gemm_s16s8(&args);
    const double scale = 1e-7;
    const hwq_epilogue wide = {.kind = HWQ_KIND_REQUANT, .rounding = HWQ_ROUND_F64, .out_type = HWQ_S16, .scales_f64 = &scale, .lo = -32768, .hi = 32767};
    args.acc_type = HWQ_S64, args.epilogue = &wide, args.out = small.data;
    hwq_gemm_s16s8(&args);
    int equal = 1;
    for (int64_t r = 0; r < m; r++)
        for (int64_t j = 0; j < n; j++) {
            int64_t want = bias[j];
            for (int64_t i = 0; i < k; i++) want += (((int16_t *)a.data)[r * k + i] - za) * (int64_t)(((int8_t *)w.data)[i * n + j] - columns[j]);
            const int inside = j >= first_strip * HWQ_STRIP && j < (first_strip + strips) * HWQ_STRIP;
            double rounded = (double)want * scale + (want < 0 ? -0.5 : 0.5); /* truncation then is ties away */
            rounded = rounded < -32768 ? -32768 : rounded > 32767 ? 32767 : rounded;
            equal &= ((int32_t *)out.data)[r * n + j] == (inside ? (int32_t)(uint32_t)(uint64_t)want : (int32_t)0xA5A5A5A5);
            equal &= ((int16_t *)small.data)[r * n + j] == (inside ? (int16_t)rounded : (int16_t)0xA5A5);
        }
    check_true(equal, "int64 reading");
    check_guard(&a), check_guard(&w), check_guard(&quads), check_guard(&out), check_guard(&small);
    free(columns), free(bias);
}

/* Rows that are random, all equal, and one large among small: sums of every size. */
static void softmaxes(int path, int formula, int type, int out_type, int64_t columns, float scale)
{
    enum { ROWS = 4 };
    const int64_t in = ROWS * columns * hwq_type_size(type), outs = ROWS * columns * hwq_type_size(out_type);
    guarded x = guard((size_t)in, 0), out = guard((size_t)outs, 0), want = guard((size_t)outs, 0);
    float table[256];
    hwq_softmax s = {.formula = formula, .type = type, .out_type = out_type, .scale = scale, .beta = 1.0f, .table = table, .inverse = 256.0f,
                     .zero_point = out_type == HWQ_S8 ? -128 : 3};
    for (int i = 0; i < 256; i++) table[i] = (float)(i + 1) * (float)(i + 1) * (formula == HWQ_SOFTMAX_RECIPROCAL ? 1.0f / 65536 : 1e30f);
    if (formula == HWQ_SOFTMAX_RECIPROCAL) s.scale = 1.0f / 256; /* 1 + 1 + ...: halves among the quotients, ties too */
    hwq_softmax_prepare(&s);
    fill_bytes(x.data, in, 0);
    memset(x.data, 0x7F, (size_t)(in / ROWS));
    memset((char *)x.data + in / ROWS, 0x81, (size_t)(in / ROWS));
    hwq_softmax_run(&s, ROWS, columns, x.data, out.data);
    hwq_path_choose(0);
    hwq_softmax_run(&s, ROWS, columns, x.data, want.data);
    hwq_path_choose(path);
    check_equal(out.data, want.data, (size_t)outs, "ref");
    check_guard(&x), check_guard(&out), check_guard(&want);
}

static void tables(int path, int shift)
{
    static int16_t table[65537];
    const int32_t gap = 1 << shift;
    for (int i = 0; i <= 65536 >> shift; i++) table[i] = (int16_t)draw();
    table[7] = -32768, table[8] = 32767;
    for (int64_t n = 0; n <= 65536; n = n < 40 ? n + 1 : n * 5 + 1) {
        const int64_t count = n > 60000 ? 65536 : n;
        guarded x = guard((size_t)count * 2, 0), out = guard((size_t)count * 2, 0);
        int equal = 1;
        for (int64_t i = 0; i < count; i++) ((int16_t *)x.data)[i] = (int16_t)(i * 257);
        hwq_lut_s16(count, shift, x.data, table, out.data);
        for (int64_t i = 0; i < count; i++) {
            const int32_t v = ((int16_t *)x.data)[i], at = (v + 32768) / gap, part = (v + 32768) % gap;
            const int64_t twice = (int64_t)(table[at + 1] - table[at]) * part * 2 + gap; /* floor of (slope * part + gap / 2) / gap */
            equal &= ((int16_t *)out.data)[i] == (int16_t)(table[at] + (twice >= 0 ? twice / (2 * gap) : -((-twice + 2 * gap - 1) / (2 * gap))));
        }
        check_true(equal, "interpolation");
        check_guard(&x), check_guard(&out);
    }
    (void)path;
}

static void norms(int path, int64_t columns, int32_t formula, int64_t epsilon)
{
    enum { ROWS = 5 };
    const size_t bytes = (size_t)(ROWS * columns) * 2;
    guarded x = guard(bytes, 0), out = guard(bytes, 0), want = guard(bytes, 0), weights = guard((size_t)columns * 2, 0), bias = guard((size_t)columns * 4, 0);
    hwq_layer_norm p = {.formula = formula, .epsilon = epsilon, .columns = columns, .weights = weights.data, .bias = columns & 1 ? bias.data : NULL, .variance_limit = 1};
    hwq_quantize_multiplier(0.00037 * (double)(columns + 1), &p.multiplier, &p.shift);
    for (int64_t i = 0; i < ROWS * columns; i++) ((int16_t *)x.data)[i] = (int16_t)(i < columns ? 7 : i < 2 * columns ? (i & 1 ? -32768 : 32767) : (int16_t)draw());
    fill_bytes(weights.data, columns * 2, 0);
    for (int64_t i = 0; i < columns; i++) ((int32_t *)bias.data)[i] = (int32_t)between(-4000000, 4000000);
    hwq_layer_norm_s16(&p, ROWS, x.data, out.data);
    hwq_path_choose(0);
    hwq_layer_norm_s16(&p, ROWS, x.data, want.data);
    hwq_path_choose(path);
    check_equal(out.data, want.data, bytes, "ref");
    check_guard(&x), check_guard(&out), check_guard(&want), check_guard(&weights), check_guard(&bias);
}

static void planes(int path, int64_t m, int64_t n, int64_t k, int32_t bits, int extreme)
{
    const int64_t pairs = (k + 7) / 8, size = (n + 31) / 32 * pairs * 32 * bits;
    guarded a = guard((size_t)(m * k), 0), packed = guard((size_t)size, 0), scratch = guard((size_t)pairs * 64, 0);
    guarded out = guard((size_t)(m * n) * 4, 0), want = guard((size_t)(m * n) * 4, 0);
    fill_bytes(a.data, m * k, 0), fill_bytes(packed.data, size, 0);
    if (extreme) memset(a.data, 255, (size_t)(m * k)), memset(packed.data, 255, (size_t)size);
    hwq_gemm_planes_args args = {.m = m, .n = n, .k = k, .bits = bits, .a = a.data, .a_stride = k, .planes = packed.data,
                                 .out = out.data, .out_stride = n, .scratch = scratch.data};
    hwq_gemm_planes(&args);
    args.out = want.data;
    hwq_path_choose(0);
    hwq_gemm_planes(&args);
    hwq_path_choose(path);
    check_equal(out.data, want.data, (size_t)(m * n) * 4, "ref");
    check_guard(&a), check_guard(&packed), check_guard(&scratch), check_guard(&out), check_guard(&want);
}

void check_int16(void)
{
    static const int cases[][3] = {{HWQ_SOFTMAX_GEMMLOWP, HWQ_S8, HWQ_S8}, {HWQ_SOFTMAX_GEMMLOWP, HWQ_U8, HWQ_U8},
                                   {HWQ_SOFTMAX_GEMMLOWP, HWQ_S8, HWQ_S16}, {HWQ_SOFTMAX_INT16, HWQ_S16, HWQ_S16},
                                   {HWQ_SOFTMAX_TABLE, HWQ_U8, HWQ_U8}, {HWQ_SOFTMAX_TABLE, HWQ_S8, HWQ_S8},
                                   {HWQ_SOFTMAX_RECIPROCAL, HWQ_U8, HWQ_U8}, {HWQ_SOFTMAX_RECIPROCAL, HWQ_S8, HWQ_S8}};
    EACH_PATH(path)
    {
        check_begin("gemm_s16s8", path);
        for (int64_t n = 0; n <= 33; n++) products(3, 9, n, 0, (int)(n & 1), 0, 3);
        for (int64_t k = 0; k <= 17; k++) products(2, k, 17, 0, (int)(k & 1), 0, 2);
        for (int64_t m = 0; m <= 5; m++) products(m, 8, 20, 0, 1, 0, 2);
        products(3, 5000, 17, 1, 0, 0, 2), products(3, 5000, 17, 1, 1, 0, 2); /* past a run of int32, at the extremes */
        products(2, 6, 50, 0, 1, 1, 2);
        check_begin("gemm_planes", path);
        for (int32_t bits = 1; bits <= 3; bits++) {
            for (int64_t n = 0; n <= 66; n++) planes(path, 1, n, 17, bits, 0);
            for (int64_t k = 0; k <= 40; k++) planes(path, 2, 33, k, bits, 0);
            planes(path, 3, 40, 3000, bits, 1), planes(path, 2, 32, 129, bits, 1); /* the 16-bit sums at their bound */
        }
        check_begin("lut_s16", path);
        for (int shift = 0; shift <= 7; shift++) tables(path, shift);
        check_begin("softmax_run", path);
        for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
            for (int64_t columns = 0; columns <= 4000; columns = columns < 70 ? columns + 1 : columns * 5) {
                softmaxes(path, cases[i][0], cases[i][1], cases[i][2], columns, columns & 1 ? 0.06f : 0.0005f);
                if (columns < 5) softmaxes(path, cases[i][0], cases[i][1], cases[i][2], columns, 20.0f);
            }
        check_begin("layer_norm_s16", path);
        for (int64_t columns = 0; columns <= 35; columns++) {
            norms(path, columns, HWQ_LAYER_NORM_LSTM, 0), norms(path, columns, HWQ_LAYER_NORM_EXACT, columns % 3);
            norms(path, columns, HWQ_LAYER_NORM_EXACT, INT64_C(1) << 62);
        }
        norms(path, 3000, HWQ_LAYER_NORM_LSTM, 0), norms(path, 3000, HWQ_LAYER_NORM_EXACT, 12345), norms(path, 65536, HWQ_LAYER_NORM_EXACT, 0);
    }
}
