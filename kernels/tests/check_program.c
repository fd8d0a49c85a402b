/* A program: every kind of step once, in guarded memory, on every path, alone and by crews, against its kernels called one by one
 * on ref. */
#include "check.h"
#include "hwq/crew.h"
#include "hwq/program.h"
#include "window.h"

#include <pthread.h>

enum {
    BATCH = 2, CHANNELS = 5, HIGH = 30, WIDE = 60, PIXELS = HIGH * WIDE, MAPS = 20, POOLED = PIXELS / 4, CLASSES = 17, LAST = 9,
    IMAGE = BATCH * CHANNELS * PIXELS, MAP = BATCH * PIXELS * MAPS, ROW = 20, /* bytes between the rows of the copied output */
    ARENA = 1, INPUT, FLOATS, BYTES, BASES, STEPS = 19, CREW = 5,
    HEADS = 3, QUERIES = 4
};
/* Offsets in the arena; every value has a place of its own. */
enum {
    STORED = 0, LAST_FORM = STORED + IMAGE, CONVOLVED = LAST_FORM + IMAGE, LOOKED_UP = CONVOLVED + MAP, ADDED = LOOKED_UP + MAP,
    MAXIMA = ADDED + MAP, MEANS = MAXIMA + BATCH * POOLED * MAPS, LOGITS = MEANS + 64, SHARES = LOGITS + 64, REALS = SHARES + 64,
    POSITIVE = REALS + BATCH * CLASSES * 4, TWICE = POSITIVE + BATCH * CLASSES * 4, AGAIN = TWICE + BATCH * CLASSES * 4, SCALE = AGAIN + 64,
    POINT = SCALE + 4, SCALED = POINT + 4, ATTENDED = SCALED + CLASSES * 4, NARROWED = ATTENDED + HEADS * QUERIES * CLASSES,
    WIDENED = NARROWED + BATCH * CLASSES * 2, ARENA_BYTES = WIDENED + BATCH * CLASSES * 4
};
_Static_assert(REALS % 4 == 0 && BATCH * MAPS <= 64 && BATCH * CLASSES <= 64, "places hold their values");

/* What the steps refer to. */
typedef struct {
    hwq_packed filters, dense;
    int8_t *filter_quads, *dense_quads;
    int32_t sums[2][MAPS], products[2][MAPS], bias[MAPS], points[CLASSES];
    float floats[64 * LAST], table[256], scale, multipliers[MAPS], exponentials[256];
    uint8_t lut[256];
    int32_t zero_point;
    hwq_binary sum;
    hwq_softmax softmax;
} constants;

static hwq_packed pack(int64_t k, int64_t n, int8_t **quads, int32_t *sums, int32_t *products)
{
    int8_t weights[CHANNELS * 9 * MAPS];
    int32_t points[MAPS];
    int64_t positive[MAPS], negative[MAPS];
    fill_bytes(weights, k * n, 0);
    *quads = malloc((size_t)hwq_packed_bytes(k, n));
    hwq_pack(weights, HWQ_S8, k, n, n, 1, NULL, *quads, points, sums, products, positive, negative);
    return (hwq_packed){.k = k, .n = n, .groups = 1, .quads = *quads, .column_sums = sums, .column_products = products};
}

static void prepare(constants *c)
{
    float weights[CLASSES * LAST];
    memset(c, 0, sizeof *c);
    c->filters = pack(CHANNELS * 9, MAPS, &c->filter_quads, c->sums[0], c->products[0]);
    c->dense = pack(MAPS, CLASSES, &c->dense_quads, c->sums[1], c->products[1]);
    for (int i = 0; i < CLASSES * LAST; i++) weights[i] = real();
    hwq_pack_f32(weights, CLASSES, LAST, LAST, 1, c->floats);
    for (int i = 0; i < MAPS; i++) c->bias[i] = (int32_t)between(-900, 900), c->multipliers[i] = 0.002f + 0.001f * (float)i;
    for (int i = 0; i < 256; i++) c->lut[i] = (uint8_t)draw(), c->exponentials[i] = (float)(i + 1) * (float)(i + 1);
    for (int i = 0; i < CLASSES; i++) c->points[i] = (int32_t)between(0, 255);
    c->scale = 0.01f, c->zero_point = 121;
    c->sum = (hwq_binary){.formula = HWQ_BINARY_ORT_ADD, .a_type = HWQ_U8, .b_type = HWQ_U8, .out_type = HWQ_U8, .a_zero_point = 3, .b_zero_point = 9,
                          .zero_point = 80, .lo = 0, .hi = 255, .a_scale = 0.1f, .b_scale = 0.2f, .scale = 0.21f};
    check_true(hwq_binary_prepare(&c->sum) == 0, "the sum can be prepared");
    c->softmax = (hwq_softmax){.formula = HWQ_SOFTMAX_TABLE, .type = HWQ_U8, .out_type = HWQ_U8, .table = c->exponentials, .inverse = 256.0f};
    hwq_softmax_prepare(&c->softmax);
}

static hwq_epilogue leave(const constants *c, int32_t step)
{
    return (hwq_epilogue){.kind = HWQ_KIND_REQUANT, .rounding = HWQ_ROUND_FP32, .out_type = HWQ_U8, .channel_step = step, .scales_f32 = c->multipliers,
                          .zero_point = 100, .lo = 0, .hi = 255};
}

static hwq_conv convolution(const constants *c)
{
    return (hwq_conv){.window = {{1, HIGH, WIDE}, {1, 3, 3}, {1, 1, 1}, {1, 1, 1}, {0, 1, 1}, {1, HIGH, WIDE}}, .batch = BATCH, .channels = CHANNELS,
                      .out_channels = MAPS, .groups = 1, .layout = HWQ_NHWC, .a_type = HWQ_U8, .a_zero_point = 121, .weights = &c->filters,
                      .bias = c->bias, .last = BATCH * PIXELS};
}

static hwq_pool pool(void)
{
    return (hwq_pool){.window = {{1, HIGH, WIDE}, {1, 2, 2}, {1, 2, 2}, {1, 1, 1}, {0, 0, 0}, {1, HIGH / 2, WIDE / 2}}, .batch = BATCH, .channels = MAPS,
                      .layout = HWQ_NHWC, .type = HWQ_U8, .kind = HWQ_POOL_MAX, .lo = 0, .hi = 255};
}

static const hwq_mean MEAN = {.outer = BATCH, .count = POOLED, .inner = MAPS, .type = HWQ_U8, .zero_point = 80};

static hwq_gemm_args dense(const constants *c)
{
    return (hwq_gemm_args){.m = BATCH, .a_stride = MAPS, .a_zero_point = 100, .weights = &c->dense, .strips = (CLASSES + HWQ_STRIP - 1) / HWQ_STRIP,
                           .bias = c->bias, .out_stride = CLASSES};
}

/* Bytes of a range found at run time by the same weights, to floats. */
static hwq_gemm_args scaled(const constants *c)
{
    hwq_gemm_args g = dense(c);
    g.m = 1, g.bias = NULL, g.a_zero_point = 0;
    return g;
}

/* Bytes times bytes, k and n of the weights `dense`; the right operands lie n x k. */
static hwq_step_products attention(const constants *c)
{
    return (hwq_step_products){.batch = HEADS, .m = QUERIES, .k = MAPS, .n = CLASSES, .a_step = QUERIES * MAPS, .b_step = MAPS * CLASSES, .b_k_stride = 1,
                               .b_n_stride = MAPS, .b_type = HWQ_U8, .a_zero_point = 100, .b_zero_points = c->points, .bias = c->bias};
}

static hwq_epilogue real_columns(const float *factors) { return (hwq_epilogue){.kind = HWQ_KIND_F32, .out_type = HWQ_F32, .channel_step = 1, .scales_f32 = factors}; }

static hwq_gemm_f32_args last(const constants *c)
{
    return (hwq_gemm_f32_args){.m = BATCH, .k = CLASSES, .n = LAST, .a_stride = CLASSES, .weights = c->floats, .out_stride = LAST};
}

static void write_steps(const constants *c, hwq_step *s)
{
    const hwq_step_scale scale = {.type = HWQ_U8, .hi = 255, .outer = 1, .channels = 1, .scales = &c->scale, .zero_points = &c->zero_point};
    memset(s, 0, STEPS * sizeof *s);
#define PUT(kind, from, offset, to, place) (*s = (hwq_step){.op = kind, .a = {from, offset}, .out = {to, place}}, s)
    PUT(HWQ_STEP_QUANTIZE, INPUT, 0, ARENA, STORED)->as.scale = scale, s->as.scale.inner = IMAGE, s++;
    PUT(HWQ_STEP_TRANSPOSE, ARENA, STORED, ARENA, LAST_FORM)->as.move = (hwq_step_move){1, BATCH, CHANNELS, PIXELS, CHANNELS * PIXELS, CHANNELS * PIXELS}, s++;
    PUT(HWQ_STEP_CONV, ARENA, LAST_FORM, ARENA, CONVOLVED)->as.conv = convolution(c), s->epilogue = leave(c, 1), s++;
    PUT(HWQ_STEP_LUT, ARENA, CONVOLVED, ARENA, LOOKED_UP)->as.lut = (hwq_step_lut){MAP, c->lut, 0}, s++;
    PUT(HWQ_STEP_BINARY, ARENA, CONVOLVED, ARENA, ADDED)->as.binary = (hwq_step_binary){&c->sum, MAP, 1, 1};
    s->b = (hwq_place){ARENA, LOOKED_UP}, s++;
    PUT(HWQ_STEP_POOL, ARENA, ADDED, ARENA, MAXIMA)->as.pool = pool(), s++;
    PUT(HWQ_STEP_MEAN, ARENA, MAXIMA, ARENA, MEANS)->as.mean = MEAN, s->epilogue = leave(c, 0), s++;
    PUT(HWQ_STEP_GEMM_U8S8, ARENA, MEANS, ARENA, LOGITS)->as.gemm = dense(c), s->epilogue = leave(c, 1), s++;
    PUT(HWQ_STEP_SOFTMAX, ARENA, LOGITS, ARENA, SHARES)->as.softmax = (hwq_step_softmax){&c->softmax, BATCH, CLASSES}, s++;
    PUT(HWQ_STEP_DEQUANTIZE, ARENA, SHARES, ARENA, REALS)->as.scale = scale, s->as.scale.inner = BATCH * CLASSES, s++;
    PUT(HWQ_STEP_GEMM_F32, ARENA, REALS, FLOATS, 0)->as.gemm_f32 = last(c), s++;
    PUT(HWQ_STEP_MAP, ARENA, REALS, ARENA, POSITIVE)->as.map = (hwq_step_map){HWQ_MAP_RELU, BATCH * CLASSES}, s++;
    PUT(HWQ_STEP_MAP, ARENA, POSITIVE, ARENA, TWICE)->as.map = (hwq_step_map){HWQ_MAP_ADD, BATCH * CLASSES};
    s->b = (hwq_place){ARENA, REALS}, s++;
    PUT(HWQ_STEP_DYNAMIC, ARENA, TWICE, ARENA, AGAIN)->as.dynamic = (hwq_step_dynamic){HWQ_DYNAMIC_ONNX, 1, BATCH * CLASSES};
    s->scale = (hwq_place){ARENA, SCALE}, s->zero_point = (hwq_place){ARENA, POINT}, s++;
    PUT(HWQ_STEP_GEMM_U8S8, ARENA, AGAIN, ARENA, SCALED)->as.gemm = scaled(c), s->epilogue = real_columns(c->multipliers);
    s->run_time = 1, s->scale = (hwq_place){ARENA, SCALE}, s->zero_point = (hwq_place){ARENA, POINT}, s++;
    PUT(HWQ_STEP_PRODUCTS, ARENA, CONVOLVED, ARENA, ATTENDED)->as.products = attention(c), s->epilogue = leave(c, 1);
    s->b = (hwq_place){ARENA, LOOKED_UP}, s++;
    PUT(HWQ_STEP_CAST, ARENA, TWICE, ARENA, NARROWED)->as.cast = (hwq_step_cast){HWQ_BF16, 0, BATCH * CLASSES}, s++;
    PUT(HWQ_STEP_CAST, ARENA, NARROWED, ARENA, WIDENED)->as.cast = (hwq_step_cast){HWQ_BF16, 1, BATCH * CLASSES}, s++;
    PUT(HWQ_STEP_COPY, ARENA, LOGITS, BYTES, 0)->as.move = (hwq_step_move){.outer = BATCH, .columns = CLASSES, .from_stride = CLASSES, .to_stride = ROW};
}

/* The same by the kernels themselves; `arena` keeps every value. */
static void call_kernels(const constants *c, const float *input, char *arena, float *floats, uint8_t *bytes, void *workspace)
{
    uint8_t *a = (uint8_t *)arena;
    hwq_conv conv = convolution(c);
    hwq_pool maxima = pool();
    hwq_gemm_args product = dense(c);
    hwq_gemm_f32_args real_product = last(c);
    const hwq_epilogue each = leave(c, 1), one = leave(c, 0);
    hwq_quantize(HWQ_QUANTIZE_ONNX, 1, 1, IMAGE, input, &c->scale, &c->zero_point, 0, 255, a + STORED, HWQ_U8);
    for (int64_t b = 0; b < BATCH; b++)
        for (int64_t p = 0; p < PIXELS; p++)
            for (int64_t i = 0; i < CHANNELS; i++) a[LAST_FORM + (b * PIXELS + p) * CHANNELS + i] = a[STORED + (b * CHANNELS + i) * PIXELS + p];
    conv.x = a + LAST_FORM, conv.out = a + CONVOLVED, conv.epilogue = &each, conv.workspace = workspace;
    hwq_conv_s32(&conv);
    hwq_lut(MAP, a + CONVOLVED, 0, c->lut, a + LOOKED_UP);
    hwq_binary_run(&c->sum, MAP, a + CONVOLVED, 1, a + LOOKED_UP, 1, a + ADDED);
    maxima.x = a + ADDED, maxima.out = a + MAXIMA;
    hwq_pool_run(&maxima);
    hwq_mean_run(&MEAN, &one, a + MAXIMA, a + MEANS, workspace);
    product.a = a + MEANS, product.out = a + LOGITS, product.epilogue = &each, product.workspace = workspace;
    hwq_gemm_u8s8(&product);
    hwq_softmax_run(&c->softmax, BATCH, CLASSES, a + LOGITS, a + SHARES);
    hwq_dequantize(1, 1, BATCH * CLASSES, a + SHARES, HWQ_U8, &c->scale, &c->zero_point, (float *)(arena + REALS));
    real_product.a = (const float *)(arena + REALS), real_product.out = floats;
    hwq_gemm_f32(&real_product);
    const float *x = (const float *)(arena + REALS);
    float *positive = (float *)(arena + POSITIVE), *twice = (float *)(arena + TWICE), factors[CLASSES];
    for (int i = 0; i < BATCH * CLASSES; i++) positive[i] = x[i] > 0 ? x[i] : 0, twice[i] = positive[i] + x[i];
    int32_t point;
    hwq_dynamic_quantize(HWQ_DYNAMIC_ONNX, 1, BATCH * CLASSES, twice, a + AGAIN, (float *)(arena + SCALE), &point);
    a[POINT] = (uint8_t)point;
    for (int i = 0; i < CLASSES; i++) factors[i] = *(const float *)(arena + SCALE) * c->multipliers[i];
    const hwq_epilogue columns = real_columns(factors);
    hwq_gemm_args again = scaled(c);
    again.a = a + AGAIN, again.a_zero_point = point, again.out = arena + SCALED, again.epilogue = &columns, again.workspace = workspace;
    hwq_gemm_u8s8(&again);
    for (int64_t head = 0; head < HEADS; head++) {
        int8_t quads[32 * 32];
        int32_t points[CLASSES], sums[CLASSES], pairs[CLASSES];
        int64_t positive[CLASSES], negative[CLASSES];
        hwq_pack(a + LOOKED_UP + head * MAPS * CLASSES, HWQ_U8, MAPS, CLASSES, 1, MAPS, c->points, quads, points, sums, pairs, positive, negative);
        const hwq_packed keys = {.k = MAPS, .n = CLASSES, .groups = 1, .quads = quads, .zero_points = points, .column_sums = sums, .column_products = pairs};
        hwq_gemm_args scores = dense(c);
        scores.m = QUERIES, scores.weights = &keys, scores.a = a + CONVOLVED + head * QUERIES * MAPS;
        scores.out = a + ATTENDED + head * QUERIES * CLASSES, scores.epilogue = &each, scores.workspace = workspace;
        hwq_gemm_u8s8(&scores);
    }
    hwq_narrow(HWQ_BF16, BATCH * CLASSES, twice, (uint16_t *)(void *)(arena + NARROWED));
    hwq_widen(HWQ_BF16, BATCH * CLASSES, (const uint16_t *)(const void *)(arena + NARROWED), (float *)(void *)(arena + WIDENED));
    for (int64_t b = 0; b < BATCH; b++) memcpy(bytes + b * ROW, a + LOGITS + b * CLASSES, CLASSES);
}

typedef struct {
    hwq_crew *crew;
    int32_t thread;
} seat;

static void *serve(void *given)
{
    const seat *s = given;
    hwq_crew_serve(s->crew, s->thread);
    return NULL;
}

static void run(const hwq_step *steps, void *const *bases, char *workspaces, int64_t bytes, int32_t threads)
{
    hwq_crew crew;
    pthread_t others[CREW];
    seat seats[CREW];
    if (threads == 1) {
        hwq_barrier none = {0, 0};
        hwq_program_run(steps, STEPS, bases, workspaces, 0, 1, &none);
        return;
    }
    memset(&crew, 0, sizeof crew);
    check_true(hwq_crew_open(&crew, threads) == 0, "a crew opens");
    for (int32_t i = 1; i < threads; i++) {
        seats[i] = (seat){&crew, i};
        check_true(pthread_create(&others[i], NULL, serve, &seats[i]) == 0, "a thread starts");
    }
    for (int turn = 0; turn < 3; turn++) hwq_crew_run(&crew, steps, STEPS, bases, workspaces, bytes);
    hwq_crew_stop(&crew);
    for (int32_t i = 1; i < threads; i++) pthread_join(others[i], NULL);
    hwq_crew_close(&crew);
}

void check_program(void)
{
    constants c;
    hwq_step steps[STEPS];
    prepare(&c);
    write_steps(&c, steps);
    guarded input = guard(IMAGE * 4, 0), floats = guard(BATCH * LAST * 4, 0), bytes = guard((BATCH - 1) * ROW + CLASSES, 0);
    char *arena = malloc(ARENA_BYTES);
    for (int64_t i = 0; i < IMAGE; i++) ((float *)input.data)[i] = real() * 1.4f;
    hwq_path_choose(0);
    const size_t alone = ((size_t)hwq_program_workspace(steps, STEPS) + 63) / 64 * 64;
    void *space = aligned_alloc(64, alone ? alone : 64);
    call_kernels(&c, input.data, arena, floats.data, bytes.data, space);
    EACH_PATH(path)
    {
        check_begin("program", path);
        const size_t each = ((size_t)hwq_program_workspace(steps, STEPS) + 63) / 64 * 64;
        for (int32_t threads = 1; threads <= CREW; threads += threads == 1 ? 1 : 3) {
            guarded memory = guard(ARENA_BYTES, 0), work = guard(each * (size_t)threads, 0);
            guarded reals = guard(floats.bytes, 0), copied = guard(bytes.bytes, 0);
            void *const bases[BASES] = {NULL, memory.data, input.data, reals.data, copied.data};
            run(steps, bases, work.data, (int64_t)each, threads);
            check_equal((char *)memory.data + CONVOLVED, arena + CONVOLVED, MAXIMA - CONVOLVED, "every value, kernels alone on ref");
            check_equal((char *)memory.data + POSITIVE, arena + POSITIVE, AGAIN + BATCH * CLASSES - POSITIVE, "sums of floats and their bytes");
            check_equal((char *)memory.data + SCALE, arena + SCALE, 5, "scale and zero point");
            check_equal((char *)memory.data + SCALED, arena + SCALED, CLASSES * 4, "products scaled at run time");
            check_equal((char *)memory.data + ATTENDED, arena + ATTENDED, ARENA_BYTES - ATTENDED, "products of bytes packed as they come, and casts");
            check_equal(reals.data, floats.data, floats.bytes, "floats, kernels alone on ref");
            check_equal(copied.data, bytes.data, bytes.bytes, "bytes, and nothing between their rows");
            check_guard(&memory), check_guard(&work), check_guard(&reals), check_guard(&copied);
        }
    }
    check_guard(&input), check_guard(&floats), check_guard(&bytes);
    free(space), free(arena), free(c.filter_quads), free(c.dense_quads);
}
