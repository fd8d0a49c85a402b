/* Steps of the wider modes, alone in guarded memory on every path, against readings in 64-bit integers and single fused steps: 16 bits
 * as two bytes, convolutions with a range an image, gathered rows with scales in groups, normalization of stored rows, phases. */
#include "check.h"
#include "hwq/program.h"
#include "window.h"

#include <math.h>

enum {
    BATCH = 3, HIGH = 5, WIDE = 6, DEPTH = 6, MAPS = 20, TAPS = 9, PIXELS = HIGH * WIDE, K = TAPS * DEPTH, ROWS = BATCH * PIXELS, SUMS = ROWS * MAPS,
    INPUT = ROWS * DEPTH, BLOCK = 4, BLOCKS = (DEPTH + BLOCK - 1) / BLOCK
};
static const hwq_window WINDOW = {{1, HIGH, WIDE}, {1, 3, 3}, {1, 1, 1}, {1, 1, 1}, {0, 1, 1}, {1, HIGH, WIDE}};

typedef struct {
    int8_t weights[K * MAPS], *quads;
    int32_t points[MAPS], column_sums[MAPS], products[MAPS];
    hwq_packed packed;
    int64_t bias[MAPS];
    double factors[MAPS];
    float steps[MAPS], offsets[MAPS];
} constants;

static void prepare(constants *c)
{
    int64_t positive[MAPS], negative[MAPS];
    memset(c, 0, sizeof *c);
    fill_bytes(c->weights, K * MAPS, 0);
    for (int j = 0; j < MAPS; j++) {
        c->points[j] = (int32_t)between(-9, 9), c->bias[j] = between(-(INT64_C(1) << 40), INT64_C(1) << 40);
        c->factors[j] = ldexp(1.0 + 0.01 * j, -16), c->steps[j] = real(), c->offsets[j] = real();
    }
    c->quads = malloc((size_t)hwq_packed_bytes(K, MAPS));
    static int32_t stored[MAPS];
    hwq_pack(c->weights, HWQ_S8, K, MAPS, MAPS, 1, c->points, c->quads, stored, c->column_sums, c->products, positive, negative);
    c->packed = (hwq_packed){.k = K, .n = MAPS, .groups = 1, .quads = c->quads, .zero_points = stored, .column_sums = c->column_sums, .column_products = c->products};
}

/* The element of an image under a tap, or `padding`. */
static int64_t seen(const int64_t *image, int64_t row, int64_t k, int64_t padding)
{
    int64_t origin[3];
    hwq_window_origin(&WINDOW, row % PIXELS, origin);
    const int64_t pixel = hwq_window_pixel(&WINDOW, origin, 0, k / DEPTH / 3, k / DEPTH % 3);
    return pixel < 0 ? padding : image[(row / PIXELS * PIXELS + pixel) * DEPTH + k % DEPTH];
}

static void run(const hwq_step *steps, int64_t count)
{
    guarded work = guard(((size_t)hwq_program_workspace(steps, count) + 63) / 64 * 64, 0); /* aligned, as the page behind it is */
    void *const bases[1] = {NULL};
    hwq_barrier none = {0, 0};
    hwq_program_run(steps, count, bases, work.data, 0, 1, &none);
    check_guard(&work);
}

static hwq_place at(void *data) { return (hwq_place){0, (intptr_t)data}; }

static hwq_conv convolution(const constants *c, int32_t type, int32_t zero)
{
    return (hwq_conv){.window = WINDOW, .batch = BATCH, .channels = DEPTH, .out_channels = MAPS, .groups = 1, .layout = HWQ_NHWC, .a_type = type,
                      .a_zero_point = zero, .weights = &c->packed, .last = ROWS};
}

static hwq_epilogue short_result(const constants *c)
{
    return (hwq_epilogue){.kind = HWQ_KIND_REQUANT, .rounding = HWQ_ROUND_F64, .out_type = HWQ_S16, .channel_step = 1, .scales_f64 = c->factors,
                          .zero_point = -7, .lo = -32768, .hi = 32767};
}

static void sixteen(const constants *c, int32_t type, int fill)
{
    guarded x = guard(INPUT * 2, 0), high = guard(INPUT, 0), low = guard(INPUT, 0), highs = guard(SUMS * 4, 0), lows = guard(SUMS * 4, 0);
    guarded stored = guard(SUMS * 2, 0), floats = guard(SUMS * 4, 0);
    static int64_t image[INPUT], sums[SUMS];
    static int16_t want[SUMS];
    const int64_t zero = 1234;
    fill_bytes(x.data, INPUT * 2, fill);
    for (int64_t i = 0; i < INPUT; i++) image[i] = type == HWQ_S16 ? ((int16_t *)x.data)[i] : ((uint16_t *)x.data)[i] - 32768;
    int equal = 1;
    for (int64_t i = 0; i < SUMS; i++) {
        int64_t sum = c->bias[i % MAPS];
        for (int64_t k = 0; k < K; k++) sum += (seen(image, i / MAPS, k, zero) - zero) * (c->weights[k * MAPS + i % MAPS] - c->points[i % MAPS]);
        sums[i] = sum;
    }
    const hwq_epilogue plain = {.kind = HWQ_KIND_S32, .out_type = HWQ_S32}, leave = short_result(c);
    hwq_requantize(&leave, ROWS, MAPS, 0, sums, HWQ_S64, MAPS, want, MAPS);
    const hwq_step_join join = {.rows = ROWS, .columns = MAPS, .bias = c->bias}, real_join = {ROWS, MAPS, c->bias, c->factors, c->offsets};
    const hwq_step steps[] = {
        {.op = HWQ_STEP_SPLIT, .a = at(x.data), .b = at(low.data), .out = at(high.data), .as.split = {INPUT, type}},
        {.op = HWQ_STEP_CONV, .a = at(high.data), .out = at(highs.data), .epilogue = plain, .as.conv = convolution(c, HWQ_S8, (int32_t)(zero >> 8))},
        {.op = HWQ_STEP_CONV, .a = at(low.data), .out = at(lows.data), .epilogue = plain, .as.conv = convolution(c, HWQ_U8, (int32_t)(zero & 255))},
        {.op = HWQ_STEP_JOIN, .a = at(highs.data), .b = at(lows.data), .out = at(stored.data), .epilogue = leave, .as.join = join},
        {.op = HWQ_STEP_JOIN, .a = at(highs.data), .b = at(lows.data), .out = at(floats.data), .as.join = real_join},
    };
    run(steps, 5);
    for (int64_t i = 0; i < SUMS; i++) {
        const float real_sum = (float)((double)sums[i] * c->factors[i % MAPS]) + c->offsets[i % MAPS];
        equal &= memcmp(&real_sum, (float *)floats.data + i, 4) == 0;
    }
    check_true(equal, "float results of two bytes");
    check_equal(stored.data, want, SUMS * 2, "stored results of two bytes");
    check_guard(&x), check_guard(&high), check_guard(&low), check_guard(&highs), check_guard(&lows), check_guard(&stored), check_guard(&floats);
}

/* A scale and a zero point for every image. */
static void by_image(const constants *c, int32_t type)
{
    guarded x = guard(INPUT, 0), scales = guard(BATCH * 4, 0), points = guard(BATCH, 0), out = guard(SUMS * 4, 0);
    static int64_t image[INPUT];
    fill_bytes(x.data, INPUT, 0), fill_bytes(points.data, BATCH, 0);
    for (int64_t i = 0; i < INPUT; i++) image[i] = type == HWQ_U8 ? ((uint8_t *)x.data)[i] : ((int8_t *)x.data)[i];
    for (int i = 0; i < BATCH; i++) ((float *)scales.data)[i] = real();
    const hwq_epilogue floats = {.kind = HWQ_KIND_F32, .out_type = HWQ_F32, .channel_step = 1, .scales_f32 = c->steps, .float_bias = c->offsets};
    const hwq_step step = {.op = HWQ_STEP_CONV, .run_time = 2, .a = at(x.data), .out = at(out.data), .scale = at(scales.data), .zero_point = at(points.data),
                           .epilogue = floats, .as.conv = convolution(c, type, 0)};
    run(&step, 1);
    int equal = 1;
    for (int64_t i = 0; i < SUMS; i++) {
        const int64_t n = i / MAPS / PIXELS, zero = type == HWQ_U8 ? ((uint8_t *)points.data)[n] : ((int8_t *)points.data)[n];
        int64_t sum = 0;
        for (int64_t k = 0; k < K; k++) sum += (seen(image, i / MAPS, k, zero) - zero) * (c->weights[k * MAPS + i % MAPS] - c->points[i % MAPS]);
        const float want = (float)sum * (((float *)scales.data)[n] * c->steps[i % MAPS]) + c->offsets[i % MAPS];
        equal &= memcmp(&want, (float *)out.data + i, 4) == 0;
    }
    check_true(equal, "a range for every image");
    check_guard(&x), check_guard(&scales), check_guard(&points), check_guard(&out);
}

/* Blocks of 4 channels filled up to `width`: y = fma(f32(sum), scale, y) over tap and block. `each`: zero points at run time. */
static void gathered(int32_t op, int32_t type, int64_t each)
{
    const int is_s4 = op == HWQ_STEP_GEMM_S4, centered = each || !is_s4;
    const int64_t width = is_s4 ? 32 : 4, k = TAPS * BLOCKS * width, blocks = TAPS * BLOCKS;
    guarded x = guard(INPUT, 0), points = guard(ROWS, 0), out = guard(SUMS * 4, 0);
    uint8_t *w = calloc((size_t)(k * MAPS), 1), *nibbles = malloc((size_t)hwq_packed_s4_bytes(k, MAPS));
    int8_t *quads = malloc((size_t)hwq_packed_bytes(k, MAPS));
    float *scales = malloc((size_t)blocks * 32 * 4), one = 1.0f;
    int32_t *zeros = calloc((size_t)blocks * 32, 4), *sums = malloc((size_t)blocks * 32 * 4), scratch[3][MAPS];
    int64_t sides[2][MAPS];
    static int64_t image[INPUT];
    fill_bytes(x.data, INPUT, 0), fill_bytes(points.data, ROWS, 0), fill_bytes(w, k * MAPS, 0);
    for (int64_t i = 0; i < k * MAPS; i++) w[i] &= is_s4 ? 15 : 255;
    for (int64_t i = 0; i < blocks * 32; i++) scales[i] = real(), zeros[i] = (int32_t)(is_s4 ? between(0, 15) : between(-128, 127));
    for (int64_t i = 0; i < INPUT; i++) image[i] = type == HWQ_U8 ? ((uint8_t *)x.data)[i] : ((int8_t *)x.data)[i];
    hwq_pack_s4(w, is_s4 ? k : 0, MAPS, MAPS, 1, width, zeros, nibbles, sums);
    hwq_pack(w, HWQ_S8, k, MAPS, MAPS, 1, NULL, quads, scratch[0], scratch[1], scratch[2], sides[0], sides[1]);
    const hwq_packed_s4 fours = {.k = k, .n = MAPS, .block = width, .nibbles = nibbles, .scales = scales, .zero_points = zeros, .sums = sums};
    const hwq_packed_s8 eights = {.k = k, .n = MAPS, .block = width, .quads = quads, .scales = scales, .zero_points = zeros};
    const int32_t zero = type == HWQ_U8 ? 131 : -77;
    hwq_step step = {.op = op, .a = at(x.data), .out = at(out.data), .zero_point = at(points.data),
                     .epilogue = {.kind = HWQ_KIND_F32, .out_type = HWQ_F32, .scales_f32 = &one}};
    step.as.scaled.gathers = 1;
    step.as.scaled.rows = (hwq_step_rows){WINDOW, BATCH, DEPTH, 0, DEPTH, BLOCK, width, type, zero, centered, each};
    if (is_s4) step.as.scaled.s4 = (hwq_gemm_s4_args){.m = ROWS, .a_stride = k, .a_type = centered ? HWQ_F32 : type, .a_zero_point = centered ? 0 : zero, .weights = &fours, .strips = 2, .out_stride = MAPS};
    else step.as.scaled.s8 = (hwq_gemm_f32s8_args){.m = ROWS, .a_stride = k, .weights = &eights, .strips = 2, .out_stride = MAPS};
    run(&step, 1);
    int equal = 1;
    for (int64_t i = 0; i < SUMS; i++) {
        const int64_t row = i / MAPS, j = i % MAPS, by = each ? row / each : 0;
        const int64_t own = !each ? zero : type == HWQ_U8 ? ((uint8_t *)points.data)[by] : ((int8_t *)points.data)[by];
        float y = 0.0f;
        for (int64_t b = 0; b < blocks; b++) {
            const int64_t place = (j / 16 * blocks + b) * 16 + j % 16, first = b % BLOCKS * BLOCK;
            int64_t sum = 0;
            for (int64_t d = 0; d < BLOCK && first + d < DEPTH; d++) {
                const int64_t given = w[(b * width + d) * MAPS + j], stored = is_s4 ? given : (int8_t)given;
                sum += (seen(image, row, b / BLOCKS * DEPTH + first + d, own) - own) * (stored - zeros[place]);
            }
            y = fmaf((float)sum, scales[place], y);
        }
        equal &= memcmp(&y, (float *)out.data + i, 4) == 0;
    }
    check_true(equal, "gathered rows");
    check_guard(&x), check_guard(&points), check_guard(&out);
    free(w), free(nibbles), free(quads), free(scales), free(zeros), free(sums);
}

/* Rows of every type against the kernel on int16 rows. */
static void normalized(int32_t type, int32_t out_type)
{
    enum { COLUMNS = 37, LINES = 5, ALL = LINES * COLUMNS };
    static const int32_t low[] = {[HWQ_U8] = 0, [HWQ_S8] = -128, [HWQ_U16] = 0, [HWQ_S16] = -32768}, high[] = {[HWQ_U8] = 255, [HWQ_S8] = 127, [HWQ_U16] = 65535, [HWQ_S16] = 32767};
    const size_t size = (size_t)hwq_type_size(type), out_size = (size_t)hwq_type_size(out_type);
    guarded x = guard(ALL * size, 0), out = guard(ALL * out_size, 0), weights = guard(COLUMNS * 2, 0), bias = guard(COLUMNS * 4, 0);
    int16_t given[ALL], want[ALL];
    fill_bytes(x.data, (int64_t)(ALL * size), 0), fill_bytes(weights.data, COLUMNS * 2, 0);
    for (int i = 0; i < COLUMNS; i++) ((int32_t *)bias.data)[i] = (int32_t)between(-100000, 100000);
    for (int i = 0; i < ALL; i++)
        given[i] = (int16_t)(type == HWQ_U8 ? (((uint8_t *)x.data)[i] - 128) * 256 : type == HWQ_S8 ? ((int8_t *)x.data)[i] * 256
                             : type == HWQ_U16 ? ((uint16_t *)x.data)[i] - 32768 : ((int16_t *)x.data)[i]);
    const hwq_layer_norm norm = {.formula = HWQ_LAYER_NORM_EXACT, .epsilon = 99, .columns = COLUMNS, .weights = weights.data, .bias = bias.data,
                                 .multiplier = 1518500250, .shift = -17, .variance_limit = 1};
    hwq_layer_norm_s16(&norm, LINES, given, want);
    const hwq_step step = {.op = HWQ_STEP_LAYER_NORM, .a = at(x.data), .out = at(out.data), .as.norm = {norm, LINES, type, out_type, low[out_type], high[out_type]}};
    run(&step, 1);
    int equal = 1;
    for (int i = 0; i < ALL; i++) {
        const int32_t v = out_type == HWQ_U16 ? want[i] + 32768 : want[i] < low[out_type] ? low[out_type] : want[i] > high[out_type] ? high[out_type] : want[i];
        equal &= v == (out_type == HWQ_U8 ? ((uint8_t *)out.data)[i] : out_type == HWQ_S8 ? ((int8_t *)out.data)[i] : out_type == HWQ_U16 ? ((uint16_t *)out.data)[i] : ((int16_t *)out.data)[i]);
    }
    check_true(equal, "rows of stored values");
    check_guard(&x), check_guard(&out), check_guard(&weights), check_guard(&bias);
}

/* Two groups of 3 bytes, 2 x 3 x 2 phases of which the last are cut. */
static void phases(void)
{
    enum { PHASES = 12, GROUPS = 2, BYTES = 3 };
    const hwq_step_phases h = {2, {2, 3, 2}, {3, 8, 4}, {2, 3, 2}, GROUPS, BYTES};
    const int64_t from = 2 * 2 * 3 * 2 * PHASES * GROUPS * BYTES, to = 2 * 3 * 8 * 4 * GROUPS * BYTES;
    guarded x = guard((size_t)from, 0), out = guard((size_t)to, 0);
    fill_bytes(x.data, from, 0);
    const hwq_step step = {.op = HWQ_STEP_PHASES, .a = at(x.data), .out = at(out.data), .as.phases = h};
    run(&step, 1);
    int equal = 1;
    for (int64_t i = 0; i < to; i++) {
        const int64_t byte = i % BYTES, group = i / BYTES % GROUPS, pixel = i / BYTES / GROUPS, o2 = pixel % 4, o1 = pixel / 4 % 8, o0 = pixel / 32 % 3, n = pixel / 96;
        const int64_t source = ((n * 2 + o0 / 2) * 3 + o1 / 3) * 2 + o2 / 2, phase = (o0 % 2 * 3 + o1 % 3) * 2 + o2 % 2;
        equal &= ((char *)out.data)[i] == ((char *)x.data)[((source * GROUPS + group) * PHASES + phase) * BYTES + byte];
    }
    check_true(equal, "every position holds its phase");
    check_guard(&x), check_guard(&out);
}

void check_modes(void)
{
    constants c;
    prepare(&c);
    EACH_PATH(path)
    {
        check_begin("modes", path);
        for (int fill = 0; fill < FILLS; fill++) sixteen(&c, HWQ_S16, fill), sixteen(&c, HWQ_U16, fill);
        static const int32_t types[] = {HWQ_U8, HWQ_S8, HWQ_U16, HWQ_S16};
        for (int i = 0; i < 16; i++) normalized(types[i / 4], types[i % 4]);
        phases();
        for (int32_t type = HWQ_U8; type <= HWQ_S8; type++) {
            by_image(&c, type);
            for (int32_t op = HWQ_STEP_GEMM_S4; op <= HWQ_STEP_GEMM_F32S8; op++) gathered(op, type, 0), gathered(op, type, 1), gathered(op, type, PIXELS);
        }
    }
    free(c.quads);
}
