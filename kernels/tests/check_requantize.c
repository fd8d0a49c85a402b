/* Epilogues: every path against ref, and ref against exact rational rounding in 128-bit integers where a formula has one. */
#include "check.h"
#include "fixedpoint.h"

enum { ROWS = 40, COLUMNS = 53 };
__extension__ typedef __int128 wide;

static int32_t some_acc(int64_t i)
{
    static const int32_t edges[] = {0, 1, -1, INT32_MAX, INT32_MIN, (1 << 24) + 1, -(1 << 24) - 1};
    if (i % 11 == 0) return edges[i / 11 % 7];
    if (i % 3 == 0) return (int32_t)between(-600, 600); /* with power-of-two scales: ties */
    return (int32_t)((int64_t)draw() >> between(32, 62));
}

/* floor(n / 2^e + 1/2) and ties away, exactly; |n| < 2^126. */
static wide exact_up(wide n, int e) { return e ? (n + ((wide)1 << (e - 1))) >> e : n; }
static wide exact_away(wide n, int e) { return n < 0 ? -exact_up(-n, e) : exact_up(n, e); }
static int32_t clamp(wide v, int32_t lo, int32_t hi) { return (int32_t)(v < lo ? lo : v > hi ? hi : v); }

static void formulas(void)
{
    for (int i = 0; i < (check_brief ? 2000 : 20000); i++) {
        const int32_t acc = some_acc(i), m = (int32_t)between(1 << 30, INT32_MAX), shift = (int32_t)between(-20, 0);
        const int64_t first_up = (int64_t)exact_up((wide)acc * m, 31);
        check_true(hwq_srdhm(acc, m) == first_up, "R1's first stage is the nearest, halves up");
        check_true(hwq_round_gemmlowp(acc, m, shift) == exact_away(first_up, -shift), "R1");
        check_true(hwq_round_ruy(acc, m, shift) == exact_up(first_up, -shift), "R3");
        check_true(hwq_round_single(acc, m, shift) == exact_up((wide)acc * m, 31 - shift), "R7");
        const int right = (int)between(1, 31);
        check_true(hwq_round_xnn_fixed(acc, m >> 8, right) == exact_up((wide)acc * (m >> 8), right), "R6");
        const int64_t large = (int64_t)draw() >> 17, m16 = m < 0x7FFF0000 ? (m + 0x8000) >> 16 : 0x7FFF;
        check_true(hwq_round_mbqm64(large, m, shift) == exact_up((wide)large * m16, 15 - shift), "R5");
        /* float64 of acc * 2^-e is exact, so R2 must be the exact tie-away rounding; R4 the tie-even one below 2^24. */
        const int e = (int)between(1, 20);
        check_true(hwq_round_f64(acc, 1.0 / (1 << e), 3, -128, 127) == clamp(exact_away(acc, e) + 3, -128, 127), "R2");
        if (acc > -(1 << 24) && acc < 1 << 24) {
            wide even = exact_up(acc, e);
            if ((acc & ((1 << e) - 1)) == 1 << (e - 1) && even & 1) even--;
            check_true(hwq_round_fp32((float)acc, 1.0f / (float)(1 << e), 3, -128, 127) == clamp(even + 3, -128, 127), "R4");
        }
        check_true(hwq_rdbpot(acc, 31) == exact_away(acc, 31), "R1's second stage at its greatest shift");
    }
    check_true(hwq_srdhm(INT32_MIN, INT32_MIN) == INT32_MAX, "R1 saturates once");
    check_true(hwq_away_s32(0.49999997f) == 0 && hwq_away_s32(-0.5f) == -1 && hwq_away_s32(2147483648.0f) == INT32_MIN &&
                   hwq_away_s32(-2147483648.0f) == INT32_MIN && hwq_away_s32(NAN) == INT32_MIN && hwq_away_s32(8388609.0f) == 8388609,
               "ties away at the edges");
}

static void epilogues(int path, int rounding, int out_type, int per_column, int columns)
{
    static const int32_t lows[] = {0, -128, 0, -32768}, highs[] = {255, 127, 65535, 32767};
    const int64_t size = hwq_type_size(out_type);
    int32_t multipliers[COLUMNS], shifts[COLUMNS];
    float scales[COLUMNS], bias[COLUMNS];
    double doubles[COLUMNS];
    uint8_t table[256];
    guarded acc = guard((size_t)(ROWS * columns) * 4, 0), got = guard((size_t)(ROWS * columns * size), 0);
    guarded want = guard((size_t)(ROWS * columns * size), 0), residual = guard((size_t)(ROWS * columns * size), 0);
    for (int64_t i = 0; i < ROWS * columns; i++) ((int32_t *)acc.data)[i] = some_acc(i);
    for (int c = 0; c < COLUMNS; c++) {
        doubles[c] = c & 1 ? 1.0 / (double)(1 << between(1, 12)) : (double)(real() * 0.01f + 0.02f);
        scales[c] = (float)doubles[c];
        bias[c] = real() * 100.0f;
        hwq_quantize_multiplier(doubles[c], &multipliers[c], &shifts[c]);
        if (rounding == HWQ_ROUND_XNN_FIXED) shifts[c] = (int32_t)between(1, 31);
    }
    fill_bytes(table, 256, 0);
    fill_bytes(residual.data, ROWS * columns * size, 0);
    hwq_binary add = {.formula = HWQ_BINARY_ORT_ADD, .a_type = out_type, .b_type = out_type, .out_type = out_type, .zero_point = 1,
                      .lo = lows[out_type], .hi = highs[out_type], .a_scale = 0.5f, .b_scale = 0.25f, .scale = 1.0f};
    for (int variant = 0; variant < 4; variant++) {
        hwq_epilogue e = {.kind = HWQ_KIND_REQUANT, .rounding = rounding, .out_type = out_type, .channel_step = per_column,
                          .scales_f32 = scales, .scales_f64 = doubles, .multipliers = multipliers, .shifts = shifts, .zero_point = 5,
                          .lo = lows[out_type], .hi = highs[out_type]};
        if (variant == 1) { e.lo = 0; e.hi = 100; e.float_bias = bias; }
        if (size == 1 && variant == 2) e.lut = table;
        if (variant == 3 && rounding != HWQ_ROUND_XNN_FIXED) /* every shift, multipliers of any sign and the one that saturates */
            for (int c = 0; c < COLUMNS; c++)
                shifts[c] = (int32_t)between(-31, rounding == HWQ_ROUND_MBQM64 ? 7 : rounding == HWQ_ROUND_SINGLE ? 30 : 31),
                multipliers[c] = c % 5 == 0 && rounding != HWQ_ROUND_SINGLE ? INT32_MIN : (int32_t)draw();
        if (size == 1 && variant == 3) {
            check_true(hwq_binary_prepare(&add) == 0, "the operator can be prepared");
            e.residual_op = &add, e.residual = residual.data, e.residual_stride = columns;
        }
        hwq_requantize(&e, ROWS, columns, 0, acc.data, HWQ_S32, columns, got.data, columns);
        hwq_path_choose(0);
        hwq_requantize(&e, ROWS, columns, 0, acc.data, HWQ_S32, columns, want.data, columns);
        hwq_path_choose(path);
        check_equal(got.data, want.data, (size_t)(ROWS * columns * size), "ref");
    }
    check_guard(&acc), check_guard(&got), check_guard(&want), check_guard(&residual);
}

static void others(int path, int columns)
{
    guarded acc = guard((size_t)(ROWS * columns) * 4, 0), got = guard((size_t)(ROWS * columns) * 4, 0), want = guard((size_t)(ROWS * columns) * 4, 0);
    float scales[COLUMNS], bias[COLUMNS];
    for (int64_t i = 0; i < ROWS * columns; i++) ((int32_t *)acc.data)[i] = some_acc(i);
    for (int c = 0; c < COLUMNS; c++) scales[c] = real() * (c & 1 ? 1e-42f : 1.0f), bias[c] = real();
    for (int variant = 0; variant < 3; variant++) {
        const hwq_epilogue e = {.kind = variant ? HWQ_KIND_F32 : HWQ_KIND_S32, .out_type = variant ? HWQ_F32 : HWQ_S32,
                                .channel_step = variant == 1, .scales_f32 = scales, .float_bias = variant == 1 ? bias : NULL};
        hwq_requantize(&e, ROWS, columns, 0, acc.data, HWQ_S32, columns, got.data, columns);
        hwq_path_choose(0);
        hwq_requantize(&e, ROWS, columns, 0, acc.data, HWQ_S32, columns, want.data, columns);
        hwq_path_choose(path);
        check_equal(got.data, want.data, (size_t)(ROWS * columns) * 4, "ref");
    }
    check_guard(&acc), check_guard(&got), check_guard(&want);
}

void check_requantize(void)
{
    check_begin("roundings", 0);
    if (check_wanted(0)) formulas();
    EACH_PATH(path)
    {
        check_begin("requantize", path);
        for (int rounding = HWQ_ROUND_GEMMLOWP; rounding <= HWQ_ROUND_SINGLE; rounding++)
            for (int type = HWQ_U8; type <= HWQ_S16; type++)
                for (int columns = 1; columns <= COLUMNS; columns += columns < 17 ? 5 : 18)
                    epilogues(path, rounding, type, columns & 1, columns);
        for (int columns = 1; columns <= COLUMNS; columns++) {
            epilogues(path, HWQ_ROUND_FP32, columns & 1 ? HWQ_U8 : HWQ_S8, columns & 2, columns);
            others(path, columns);
        }
    }
}
