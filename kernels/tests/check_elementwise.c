/* Elementwise operators, quantize, dequantize, tables, nibbles: every path against ref on every byte pair, ties and edges. */
#include "check.h"

#include <math.h>

/* Every pair of bytes, then lengths 0..70, broadcast operands, in place. */
static void binaries(int path, int formula, int type)
{
    static const float scales[][3] = {{0.25f, 0.5f, 1.0f}, {0.0123f, 0.0457f, 0.031f}, {0.5f, 0.5f, 0.5f}};
    const int64_t N = check_brief ? 8192 : 65536; /* brief: 32 second operands */
    guarded a = guard((size_t)N, 0), b = guard((size_t)N, 0), out = guard((size_t)N, 0), want = guard((size_t)N, 0);
    for (int64_t i = 0; i < N; i++) ((uint8_t *)a.data)[i] = (uint8_t)i, ((uint8_t *)b.data)[i] = (uint8_t)(i / 256 * (65536 / N));
    for (int s = 0; s < 3; s++) {
        const int32_t lo = type == HWQ_U8 ? 0 : -128;
        hwq_binary op = {.formula = formula, .a_type = type, .b_type = type, .out_type = type, .a_zero_point = lo + 3 * s,
                         .b_zero_point = lo + 100 * s, .zero_point = lo + 90 * s, .lo = lo + s, .hi = lo + 255 - s, .a_scale = scales[s][0],
                         .b_scale = scales[s][1], .scale = scales[s][2]};
        check_true(hwq_binary_prepare(&op) == 0, "the operator can be prepared");
        hwq_path_choose(0);
        hwq_binary_run(&op, N, a.data, 1, b.data, 1, want.data);
        hwq_path_choose(path);
        hwq_binary_run(&op, N, a.data, 1, b.data, 1, out.data);
        check_equal(out.data, want.data, (size_t)N, "ref on every pair");
        memcpy(out.data, a.data, (size_t)N);
        hwq_binary_run(&op, N, out.data, 1, b.data, 1, out.data);
        check_equal(out.data, want.data, (size_t)N, "in place");
        for (int64_t n = 0; n <= 70; n += check_brief ? 7 : 1) {
            guarded tail = guard((size_t)n, (size_t)(n & 7));
            const int64_t from = N - n; /* the ends of a and b touch the guard pages */
            hwq_binary_run(&op, n, (uint8_t *)a.data + from, 1, (uint8_t *)b.data + from, 1, tail.data);
            check_equal(tail.data, (uint8_t *)want.data + from, (size_t)n, "tails");
            check_guard(&tail);
        }
        hwq_binary_run(&op, 256, a.data, 1, (uint8_t *)b.data + 7 * 256, 0, out.data);
        check_equal(out.data, (uint8_t *)want.data + 7 * 256, 256, "one second operand for all");
    }
    check_guard(&a), check_guard(&b), check_guard(&out), check_guard(&want);
}

static void conversions(int path)
{
    static const int32_t lows[] = {0, -128, 0, -32768}, highs[] = {255, 127, 65535, 32767};
    static const float odd[] = {NAN, INFINITY, -INFINITY, 0.0f, -0.0f, 1e-45f, 3.4e38f, -3.4e38f, 2147483648.0f, 0.49999997f};
    enum { OUTER = 3, CHANNELS = 5 };
    for (int64_t inner = 0; inner <= 70; inner += inner < 18 ? 1 : 13) {
        const int64_t n = OUTER * CHANNELS * inner;
        guarded x = guard((size_t)n * 4, 0), out = guard((size_t)n * 4, 0), want = guard((size_t)n * 4, 0);
        guarded small = guard((size_t)n * 2, 0), small_want = guard((size_t)n * 2, 0);
        float scales[CHANNELS] = {0.25f, 0.1f, 1e-40f, 3.0f, 0.003f};
        int32_t points[CHANNELS];
        for (int64_t i = 0; i < n; i++) {
            const float s = scales[i / (inner ? inner : 1) % CHANNELS];
            ((float *)x.data)[i] = i % 9 == 0 ? odd[i / 9 % 10] : i % 2 ? (float)between(-600, 600) * 0.5f * s : real() * 300.0f * s;
        }
        for (int formula = HWQ_QUANTIZE_ONNX; formula <= HWQ_QUANTIZE_ORT_POOL; formula++)
            for (int type = HWQ_U8; type <= HWQ_S16; type++) {
                const size_t size = (size_t)hwq_type_size(type);
                for (int c = 0; c < CHANNELS; c++) points[c] = (int32_t)between(lows[type], highs[type]);
                hwq_quantize(formula, OUTER, CHANNELS, inner, x.data, scales, points, lows[type], highs[type], small.data, type);
                hwq_path_choose(0);
                hwq_quantize(formula, OUTER, CHANNELS, inner, x.data, scales, points, lows[type], highs[type], small_want.data, type);
                hwq_path_choose(path);
                check_equal(small.data, small_want.data, (size_t)n * size, "quantize: ref");
            }
        for (int type = HWQ_U8; type <= HWQ_S16; type++) {
            const int32_t point = (int32_t)between(lows[type], highs[type]);
            hwq_fake_quantize(n, x.data, scales[type], point, lows[type], highs[type], out.data);
            hwq_path_choose(0);
            hwq_quantize(HWQ_QUANTIZE_ONNX, 1, 1, n, x.data, scales + type, &point, lows[type], highs[type], small.data, type);
            hwq_dequantize(1, 1, n, small.data, type, scales + type, &point, want.data);
            hwq_path_choose(path);
            check_equal(out.data, want.data, (size_t)n * 4, "fake_quantize: quantize and dequantize");
        }
        fill_bytes(x.data, n * 4, 0);
        for (int type = HWQ_U8; type <= HWQ_S32; type++) {
            for (int c = 0; c < CHANNELS; c++) points[c] = type == HWQ_S32 ? 0 : (int32_t)between(lows[type], highs[type]);
            hwq_dequantize(OUTER, CHANNELS, inner, x.data, type, scales, points, out.data);
            hwq_path_choose(0);
            hwq_dequantize(OUTER, CHANNELS, inner, x.data, type, scales, points, want.data);
            hwq_path_choose(path);
            check_equal(out.data, want.data, (size_t)n * 4, "dequantize: ref");
        }
        check_guard(&x), check_guard(&out), check_guard(&want), check_guard(&small), check_guard(&small_want);
    }
}

static void bytes(void)
{
    uint8_t table[256];
    fill_bytes(table, 256, 0);
    for (int64_t n = 0; n <= 300; n += n < 70 ? 1 : 23) {
        guarded x = guard((size_t)n, (size_t)(n % 5)), out = guard((size_t)n, 0), packed = guard((size_t)(n + 1) / 2, 0), back = guard((size_t)n, 0);
        int equal = 1, nibbles = 1;
        fill_bytes(x.data, n, 0);
        for (int flip = 0; flip <= 0x80; flip += 0x80) {
            hwq_lut(n, x.data, (uint8_t)flip, table, out.data);
            for (int64_t i = 0; i < n; i++) equal &= ((uint8_t *)out.data)[i] == table[((uint8_t *)x.data)[i] ^ flip];
        }
        check_true(equal, "every entry of the table");
        for (int is_signed = 0; is_signed < 2; is_signed++) {
            for (int64_t i = 0; i < n; i++) ((int8_t *)out.data)[i] = (int8_t)between(is_signed ? -8 : 0, is_signed ? 7 : 15);
            hwq_pack_int4(n, out.data, packed.data);
            for (int64_t i = 0; i < n; i++)
                nibbles &= (((uint8_t *)packed.data)[i / 2] >> (i % 2 * 4) & 15) == (((uint8_t *)out.data)[i] & 15);
            hwq_unpack_int4(n, packed.data, is_signed, back.data);
            nibbles &= n == 0 || memcmp(back.data, out.data, (size_t)n) == 0;
        }
        check_true(nibbles, "nibbles go low first and come back");
        check_guard(&x), check_guard(&out), check_guard(&packed), check_guard(&back);
    }
}

void check_elementwise(void)
{
    EACH_PATH(path)
    {
        check_begin("binary_run", path);
        for (int formula = HWQ_BINARY_ORT_ADD; formula <= HWQ_BINARY_TORCH_MUL; formula++)
            for (int type = HWQ_U8; type <= HWQ_S8; type++) binaries(path, formula, type);
        check_begin("quantize", path);
        conversions(path);
        check_begin("lut", path);
        bytes();
    }
}
