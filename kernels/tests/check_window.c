/* Convolution, depthwise convolution and pooling: every path and layout against ref, and ref's integers against an int64
 * reading of channel-first data. */
#include "check.h"
#include "chain.h"
#include "conv.h"
#include "window.h"
#include "winograd_4x4.h"

typedef struct {
    int64_t batch, groups, depth, per; /* channels = groups * depth, outputs = groups * per */
    hwq_window window;                 /* out is filled in */
} shape;

static const shape SHAPES[] = {
    {2, 1, 3, 5, {{1, 7, 8}, {1, 3, 3}, {1, 1, 1}, {1, 1, 1}, {0, 1, 1}, {0}}},
    {1, 1, 16, 17, {{1, 5, 13}, {1, 1, 1}, {1, 1, 1}, {1, 1, 1}, {0, 0, 0}, {0}}},
    {1, 1, 5, 3, {{1, 6, 7}, {1, 1, 1}, {1, 2, 2}, {1, 1, 1}, {0, 0, 0}, {0}}},
    {2, 2, 3, 4, {{1, 9, 8}, {1, 3, 2}, {1, 2, 1}, {1, 1, 2}, {0, 2, 1}, {0}}},
    {1, 9, 1, 1, {{1, 6, 7}, {1, 3, 3}, {1, 1, 1}, {1, 1, 1}, {0, 1, 1}, {0}}},
    {2, 33, 1, 1, {{1, 5, 9}, {1, 5, 3}, {1, 2, 2}, {1, 1, 1}, {0, 2, 0}, {0}}},
    {2, 40, 1, 1, {{1, 9, 31}, {1, 3, 3}, {1, 2, 2}, {1, 1, 1}, {0, 1, 1}, {0}}}, /* depthwise by strides of 2, and of 1 and 2 */
    {2, 40, 1, 1, {{1, 31, 5}, {1, 3, 3}, {1, 1, 2}, {1, 1, 1}, {0, 1, 1}, {0}}}, /* taller than wide */
    {1, 64, 1, 1, {{1, 17, 4}, {1, 3, 3}, {1, 2, 1}, {1, 1, 1}, {0, 1, 0}, {0}}},
    {1, 33, 1, 1, {{1, 8, 18}, {1, 3, 3}, {1, 1, 2}, {1, 1, 1}, {0, 0, 2}, {0}}},
    {1, 64, 1, 1, {{1, 6, 6}, {1, 3, 3}, {1, 2, 1}, {1, 1, 1}, {0, 0, 0}, {0}}},
    {1, 19, 1, 1, {{1, 14, 14}, {1, 9, 9}, {1, 1, 1}, {1, 1, 1}, {0, 4, 4}, {0}}},
    {1, 3, 1, 2, {{1, 6, 6}, {1, 3, 3}, {1, 1, 1}, {1, 1, 1}, {0, 1, 1}, {0}}},
    {1, 1, 2, 3, {{4, 5, 6}, {2, 3, 2}, {1, 2, 1}, {1, 1, 2}, {1, 0, 1}, {0}}},
    {1, 1, 2, 3, {{1, 3, 3}, {1, 2, 2}, {1, 4, 4}, {1, 1, 1}, {0, 5, 5}, {0}}}, /* windows wholly in the padding */
    {2, 17, 1, 2, {{1, 6, 6}, {1, 3, 3}, {1, 2, 2}, {1, 1, 1}, {0, 1, 1}, {0}}}, /* depthwise with several outputs a channel */
    {1, 5, 1, 3, {{1, 6, 7}, {1, 3, 2}, {1, 1, 1}, {1, 1, 1}, {0, 1, 1}, {0}}},
    /* a strip of columns left over, whole or half, on lines that its tiles do not divide */
    {1, 1, 8, 5, {{1, 4, 37}, {1, 3, 3}, {1, 1, 1}, {1, 1, 1}, {0, 1, 1}, {0}}},
    {1, 1, 4, 39, {{1, 3, 21}, {1, 3, 3}, {1, 2, 1}, {1, 1, 1}, {0, 0, 2}, {0}}},
    {1, 1, 12, 16, {{1, 5, 18}, {1, 3, 3}, {1, 1, 1}, {1, 1, 1}, {0, 1, 0}, {0}}},
    /* Winograd's: channels and columns at every kind of tail, odd and even sides, more tiles than a block holds, wide paddings */
    {1, 1, 16, 16, {{1, 8, 8}, {1, 3, 3}, {1, 1, 1}, {1, 1, 1}, {0, 1, 1}, {0}}},
    {2, 1, 19, 13, {{1, 5, 7}, {1, 3, 3}, {1, 1, 1}, {1, 1, 1}, {0, 1, 1}, {0}}},
    {1, 2, 33, 17, {{1, 17, 13}, {1, 3, 3}, {1, 1, 1}, {1, 1, 1}, {0, 2, 0}, {0}}},
    {1, 1, 40, 40, {{1, 6, 29}, {1, 3, 3}, {1, 1, 1}, {1, 1, 1}, {0, 0, 2}, {0}}},
};
enum { SHAPE_COUNT = sizeof SHAPES / sizeof *SHAPES, FIRST_WINOGRAD = 20 };

/* Tiles of 4 x 4: every form alone and beside the others, channels and columns at tails, two chunks of channels, all groups, several blocks. */
static const shape TILED[] = {
    {1, 1, 4, 1, {{1, 1, 1}, {1, 3, 3}, {1, 1, 1}, {1, 1, 1}, {0, 1, 1}, {0}}},
    {1, 1, 16, 16, {{1, 4, 4}, {1, 3, 3}, {1, 1, 1}, {1, 1, 1}, {0, 1, 1}, {0}}},
    {2, 1, 12, 17, {{1, 6, 9}, {1, 3, 3}, {1, 1, 1}, {1, 1, 1}, {0, 1, 1}, {0}}},
    {3, 1, 36, 33, {{1, 5, 7}, {1, 3, 3}, {1, 1, 1}, {1, 1, 1}, {0, 1, 1}, {0}}},
    {1, 2, 64, 31, {{1, 8, 10}, {1, 3, 3}, {1, 1, 1}, {1, 1, 1}, {0, 2, 0}, {0}}},
    {2, 1, 112, 20, {{1, 10, 3}, {1, 3, 3}, {1, 1, 1}, {1, 1, 1}, {0, 0, 3}, {0}}},
    {1, 1, 148, 49, {{1, 6, 6}, {1, 3, 3}, {1, 1, 1}, {1, 1, 1}, {0, 1, 1}, {0}}},
    {5, 1, 64, 8, {{1, 14, 14}, {1, 3, 3}, {1, 1, 1}, {1, 1, 1}, {0, 1, 1}, {0}}},
    /* channels that are no whole quads */
    {1, 1, 1, 2, {{1, 3, 2}, {1, 3, 3}, {1, 1, 1}, {1, 1, 1}, {0, 1, 1}, {0}}},
    {2, 2, 33, 18, {{1, 6, 9}, {1, 3, 3}, {1, 1, 1}, {1, 1, 1}, {0, 1, 0}, {0}}},
    {1, 1, 150, 16, {{1, 7, 5}, {1, 3, 3}, {1, 1, 1}, {1, 1, 1}, {0, 1, 1}, {0}}},
    {1, 1, 31, 33, {{1, 5, 6}, {1, 3, 3}, {1, 1, 1}, {1, 1, 1}, {0, 2, 1}, {0}}},
};
enum { TILED_COUNT = sizeof TILED / sizeof *TILED };

static hwq_window complete(hwq_window w)
{
    for (int d = 0; d < 3; d++) w.out[d] = (w.in[d] + 2 * w.pad[d] - w.dilation[d] * (w.kernel[d] - 1) - 1) / w.stride[d] + 1;
    return w;
}

static int64_t at(int layout, int64_t image, int64_t pixel, int64_t channel, int64_t pixels, int64_t channels)
{
    return layout == HWQ_NHWC ? (image * pixels + pixel) * channels + channel : (image * channels + channel) * pixels + pixel;
}

static int64_t activation(const hwq_conv *c, int64_t i)
{
    return c->a_type == HWQ_U8 ? ((const uint8_t *)c->x)[i] : ((const int8_t *)c->x)[i];
}

static int reads_the_same(const hwq_conv *c, const int8_t *weights, const int32_t *points, int64_t k)
{
    const int64_t outputs = hwq_window_outputs(&c->window), inputs = hwq_window_inputs(&c->window), depth = c->channels / c->groups;
    for (int64_t i = 0; i < c->batch * outputs; i++)
        for (int64_t o = 0; o < c->out_channels; o++) {
            int64_t origin[3], want = c->bias[o], j = 0;
            hwq_window_origin(&c->window, i % outputs, origin);
            for (int64_t t0 = 0; t0 < c->window.kernel[0]; t0++)
                for (int64_t t1 = 0; t1 < c->window.kernel[1]; t1++)
                    for (int64_t t2 = 0; t2 < c->window.kernel[2]; t2++)
                        for (int64_t d = 0; d < depth; d++, j++) {
                            const int64_t pixel = hwq_window_pixel(&c->window, origin, t0, t1, t2);
                            const int64_t channel = o / (c->out_channels / c->groups) * depth + d;
                            if (pixel >= 0)
                                want += (activation(c, at(c->layout, i / outputs, pixel, channel, inputs, c->channels)) - c->a_zero_point) *
                                        (weights[o * k + j] - points[o]);
                        }
            if (((int32_t *)c->out)[at(c->layout, i / outputs, i % outputs, o, outputs, c->out_channels)] != (int32_t)want) return 0;
        }
    return 1;
}

/* Tiles of 4 x 4 whatever they cost; or the op, where the weights do not allow them. */
static void tiles_4x4(const hwq_conv *c)
{
#if HWQ_X86
    hwq_winograd_plan plan;
    if (hwq_path_chosen() > 0 && c->first < c->last && hwq_winograd_4x4_fits(c, &plan)) {
        if (hwq_path_chosen() == hwq_path_find("avx512vnni")) hwq_conv_winograd_4x4__avx512vnni(c, &plan);
        else hwq_conv_winograd_4x4__avx2(c, &plan);
        return;
    }
#endif
    hwq_conv_s32(c);
}

/* Run the op on `path` in two unequal runs of positions, as threads would. */
static void convolve(hwq_conv *c, void (*op)(const hwq_conv *), void *out, int64_t total)
{
    hwq_winograd_plan plan;
    const int64_t usual = hwq_conv_workspace(c), tiled = op == tiles_4x4 && hwq_winograd_4x4_fits(c, &plan) ? hwq_winograd_4x4_bytes(&plan) : 0;
    guarded workspace = guard((size_t)(usual > tiled ? usual : tiled), 0);
    c->workspace = workspace.data;
    c->out = out;
    c->first = 0, c->last = total / 3;
    op(c);
    c->first = c->last, c->last = total;
    op(c);
    check_guard(&workspace);
}

/* symmetric: no zero points, which some drivers want. tiled: by tiles of 4 x 4. */
static void integers(const shape *s, int path, int layout, int a_type, int fill, int symmetric, int tiled)
{
    const hwq_window w = complete(s->window);
    const int64_t channels = s->groups * s->depth, outs = s->groups * s->per, k = hwq_window_taps(&w) * s->depth;
    const int64_t inputs = s->batch * hwq_window_inputs(&w) * channels, total = s->batch * hwq_window_outputs(&w), outputs = total * outs;
    const int depthwise = s->groups > 1 && s->depth == 1 && (s->per == 1 || symmetric); /* several outputs a channel: either way */
    void (*const op)(const hwq_conv *) = tiled ? tiles_4x4 : depthwise ? hwq_depthwise_s32 : hwq_conv_s32;
    guarded x = guard((size_t)inputs, 0), weights = guard((size_t)(outs * k), 0), bias = guard((size_t)outs * 4, 0), skip = guard((size_t)outputs, 0);
    guarded quads = guard((size_t)(s->groups * hwq_packed_bytes(k, s->per)), 0), taps = guard((size_t)(outs * k) * 2, 0);
    guarded out = guard((size_t)outputs * 4, 0), bytes = guard((size_t)outputs, 0), want = guard((size_t)outputs, 0);
    int32_t *points = calloc((size_t)outs, 4), *stored = calloc((size_t)outs, 4), *sums = calloc((size_t)outs, 4), *products = calloc((size_t)outs, 4);
    int64_t *positive = calloc((size_t)outs, 8), *negative = calloc((size_t)outs, 8);
    fill_bytes(x.data, inputs, fill);
    fill_bytes(weights.data, outs * k, fill);
    fill_bytes(skip.data, outputs, 0);
    for (int64_t o = 0; o < outs; o++) {
        points[o] = symmetric ? 0 : (int32_t)between(-128, 127);
        ((int32_t *)bias.data)[o] = (int32_t)between(-9999, 9999);
        for (int64_t j = 0; j < k; j++) ((int16_t *)taps.data)[j * outs + o] = (int16_t)(((int8_t *)weights.data)[o * k + j] - points[o]);
    }
    for (int64_t g = 0; g < s->groups; g++) {
        const int64_t o = g * s->per;
        hwq_pack((int8_t *)weights.data + o * k, HWQ_S8, k, s->per, 1, k, points + o, (int8_t *)quads.data + g * hwq_packed_bytes(k, s->per),
                 stored + o, sums + o, products + o, positive + o, negative + o);
    }
    hwq_packed packed = {.k = k, .n = s->per, .groups = s->groups, .quads = quads.data, .zero_points = symmetric ? NULL : stored, .column_sums = sums,
                               .column_products = products};
    hwq_epilogue e = {.kind = HWQ_KIND_S32, .out_type = HWQ_S32};
    guarded words = guard((size_t)(s->groups * hwq_winograd_words(s->depth, s->per)) * 2, 0), terms = guard((size_t)(s->groups * hwq_winograd_terms(s->per)) * 4, 0);
    hwq_conv c = {.window = w, .batch = s->batch, .channels = channels, .out_channels = outs, .groups = s->groups, .layout = layout,
                  .a_type = a_type, .a_zero_point = a_type == HWQ_U8 ? 200 : -7, .depthwise = depthwise, .x = x.data, .weights = &packed,
                  .taps_s16 = taps.data, .bias = bias.data, .epilogue = &e};
    if (hwq_conv_takes_winograd(&c)) {
        int bad = 0;
        for (int64_t g = 0; g < s->groups; g++)
            bad |= hwq_winograd_pack(&packed, s->depth, g, (int16_t *)words.data + g * hwq_winograd_words(s->depth, s->per),
                                     (int32_t *)terms.data + g * hwq_winograd_terms(s->per));
        check_true(!bad, "the weights can be transformed");
        packed.winograd = words.data, packed.winograd_terms = terms.data;
    }
    for (int64_t o = 0; o < outs; o++)
        if (positive[o] + negative[o] > packed.weight_sum) packed.weight_sum = positive[o] + negative[o];
    convolve(&c, op, out.data, total);
    check_true(reads_the_same(&c, weights.data, points, k), "int64 reading");

    hwq_binary add = {.formula = HWQ_BINARY_ORT_ADD, .lo = 0, .hi = 255, .a_scale = 0.5f, .b_scale = 0.25f, .scale = 1.0f};
    check_true(hwq_binary_prepare(&add) == 0, "the operator can be prepared");
    float *scales = calloc((size_t)outs, 4);
    for (int how = 0; how < 3; how++) { /* with a residual; a scale for each channel and a narrow clamp; products beyond int32 */
        for (int64_t o = 0; o < outs; o++) scales[o] = 1e-3f * (float)(1 + o % 7) * (how == 2 && o % 3 == 1 ? 1e9f : 1.0f);
        e = (hwq_epilogue){.kind = HWQ_KIND_REQUANT, .rounding = HWQ_ROUND_FP32, .out_type = HWQ_U8, .scales_f32 = scales, .zero_point = 77, .hi = 255};
        if (how == 0) e.residual_op = &add, e.residual = skip.data;
        else e.out_type = HWQ_S8, e.channel_step = 1, e.zero_point = -3, e.lo = -100, e.hi = 90;
        convolve(&c, op, bytes.data, total);
        hwq_path_choose(0);
        convolve(&c, depthwise ? hwq_depthwise_s32 : hwq_conv_s32, want.data, total);
        hwq_path_choose(path);
        check_equal(bytes.data, want.data, (size_t)outputs, "ref, requantized");
    }
    free(scales);
    check_guard(&x), check_guard(&weights), check_guard(&bias), check_guard(&skip), check_guard(&quads), check_guard(&taps), check_guard(&words), check_guard(&terms);
    check_guard(&out), check_guard(&bytes), check_guard(&want);
    free(points), free(stored), free(sums), free(products), free(positive), free(negative);
}

/* In lanes, or in one chain: for that the weights' columns are padded with what nobody may read into a result. */
static void floats(const shape *s, int path, int layout, int order)
{
    const hwq_window w = complete(s->window);
    const int64_t channels = s->groups * s->depth, outs = s->groups * s->per, k = hwq_window_taps(&w) * s->depth;
    const int64_t inputs = s->batch * hwq_window_inputs(&w) * channels, total = s->batch * hwq_window_outputs(&w), outputs = total * outs;
    const int depthwise = s->groups > 1 && s->depth == 1 && s->per == 1;
    const hwq_conv chain = {.window = w, .channels = channels, .out_channels = outs, .groups = s->groups, .depthwise = depthwise};
    const int64_t held = order ? hwq_chain_floats(&chain) : depthwise ? outs * k : s->groups * hwq_packed_f32_floats(k, s->per);
    guarded x = guard((size_t)inputs * 4, 0), weights = guard((size_t)held * 4, 0), bias = guard((size_t)outs * 4, 0);
    guarded out = guard((size_t)outputs * 4, 0), want = guard((size_t)outputs * 4, 0);
    float *raw = calloc((size_t)(outs * k), 4);
    for (int64_t i = 0; i < inputs; i++) ((float *)x.data)[i] = real();
    for (int64_t i = 0; i < outs * k; i++) raw[i] = real();
    for (int64_t i = 0; i < outs; i++) ((float *)bias.data)[i] = real();
    if (order)
        for (int64_t i = 0; i < held; i++) ((float *)weights.data)[i] = real();
    else if (depthwise) memcpy(weights.data, raw, (size_t)(outs * k) * 4);
    else
        for (int64_t g = 0; g < s->groups; g++)
            hwq_pack_f32(raw + g * s->per * k, k, s->per, 1, k, (float *)weights.data + g * hwq_packed_f32_floats(k, s->per));
    hwq_conv c = {.window = w, .batch = s->batch, .channels = channels, .out_channels = outs, .groups = s->groups, .layout = layout,
                  .a_type = HWQ_F32, .depthwise = depthwise, .x = x.data, .weights_f32 = weights.data, .bias_f32 = bias.data,
                  .order = order, .lo_f32 = -0.5f, .hi_f32 = 1.0f};
    void (*const op)(const hwq_conv *) = order ? depthwise ? hwq_depthwise_chain : hwq_conv_chain : depthwise ? hwq_depthwise_f32 : hwq_conv_f32;
    convolve(&c, op, out.data, total);
    hwq_path_choose(0);
    convolve(&c, op, want.data, total);
    hwq_path_choose(path);
    check_equal(out.data, want.data, (size_t)outputs * 4, "ref");
    check_guard(&x), check_guard(&weights), check_guard(&bias), check_guard(&out), check_guard(&want);
    free(raw);
}

static void pools(const shape *s, int path, int layout, int type, int kind)
{
    static const int32_t lows[] = {0, -128, 0, -32768}, highs[] = {255, 127, 0, 32767};
    const hwq_window w = complete(s->window);
    const int64_t channels = s->groups * s->depth * 40 + 3, size = hwq_type_size(type);
    const int64_t inputs = s->batch * hwq_window_inputs(&w) * channels * size, outputs = s->batch * hwq_window_outputs(&w) * channels * size;
    guarded x = guard((size_t)inputs, 0), out = guard((size_t)outputs, 0), want = guard((size_t)outputs, 0);
    for (int64_t i = 0; i < inputs / size; i++)
        if (type == HWQ_F32) ((float *)x.data)[i] = real();
        else fill_bytes((char *)x.data + i * size, size, 0);
    for (int count_padding = 0; count_padding < 2; count_padding++) {
        hwq_pool p = {.window = w, .batch = s->batch, .channels = channels, .layout = layout, .type = type, .kind = kind,
                      .count_padding = count_padding, .pad_end = {w.pad[0], w.pad[1], w.pad[2]}, .x = x.data, .out = out.data};
        if (type != HWQ_F32) p.lo = lows[type], p.hi = highs[type];
        hwq_pool_run(&p);
        hwq_path_choose(0);
        p.out = want.data;
        hwq_pool_run(&p);
        hwq_path_choose(path);
        check_equal(out.data, want.data, (size_t)outputs, "ref");
    }
    check_guard(&x), check_guard(&out), check_guard(&want);
}

/* Means in groups of nine against the order spelled out, padding as +0. */
static void nines(int64_t channels, hwq_window w)
{
    w = complete(w);
    const int64_t inputs = 2 * hwq_window_inputs(&w) * channels, outputs = 2 * hwq_window_outputs(&w), taps = hwq_window_taps(&w);
    guarded x = guard((size_t)inputs * 4, 0), out = guard((size_t)(outputs * channels) * 4, 0);
    for (int64_t i = 0; i < inputs; i++) ((float *)x.data)[i] = real();
    const hwq_pool p = {.window = w, .batch = 2, .channels = channels, .layout = HWQ_NHWC, .type = HWQ_F32, .kind = HWQ_POOL_AVERAGE_NINES, .x = x.data, .out = out.data};
    hwq_pool_run(&p);
    for (int64_t i = 0; i < outputs; i++)
        for (int64_t c = 0; c < channels; c++) {
            float total = 0.0f, v[9];
            int64_t origin[3], inside = 0;
            hwq_window_origin(&w, i % (outputs / 2), origin);
            for (int64_t t = 0; t < (taps + 8) / 9 * 9; t++) {
                const int64_t pixel = t < taps ? hwq_window_pixel(&w, origin, 0, t % w.kernel[1], t / w.kernel[1]) : -1;
                v[t % 9] = pixel < 0 ? 0.0f : ((float *)x.data)[(i / (outputs / 2) * hwq_window_inputs(&w) + pixel) * channels + c];
                inside += pixel >= 0;
                if (t % 9 == 8) total = total + (((v[2] + v[3]) + (v[4] + v[5])) + (((v[0] + v[1]) + v[8]) + (v[6] + v[7])));
            }
            const float want = total * (1.0f / (float)inside);
            check_equal((float *)out.data + i * channels + c, &want, 4, "nines");
        }
    check_guard(&x), check_guard(&out);
}

/* Where sum |w - zw| is the greatest that tiles of 4 x 4 allow, or one more, and inputs make the greatest sum of it. */
static void bounds(int path)
{
    enum { DEPTH = 116, K = 9 * DEPTH };
    for (int more = 0; more < 2; more++)
        for (int value = 0; value < 256; value += 255) {
            int8_t weights[K], *quads = calloc((size_t)hwq_packed_bytes(K, 1), 1);
            uint8_t x[6 * 6 * DEPTH];
            int32_t point = -128, stored, sum, products, out[16];
            int64_t positive, negative, left = (1 << 18) - 1 + more;
            for (int i = 0; i < K; i++) {
                const int64_t w = left < 255 ? left : 255;
                weights[i] = (int8_t)(w - 128), left -= w;
            }
            memset(x, value, sizeof x);
            hwq_pack(weights, HWQ_S8, K, 1, 1, K, &point, quads, &stored, &sum, &products, &positive, &negative);
            const hwq_packed packed = {.k = K, .n = 1, .groups = 1, .quads = quads, .zero_points = &stored, .column_sums = &sum, .column_products = &products,
                                       .weight_sum = positive + negative};
            const hwq_epilogue e = {.kind = HWQ_KIND_S32, .out_type = HWQ_S32};
            hwq_conv c = {.window = {{1, 6, 6}, {1, 3, 3}, {1, 1, 1}, {1, 1, 1}, {0, 0, 0}, {1, 4, 4}}, .batch = 1, .channels = DEPTH, .out_channels = 1, .groups = 1,
                          .layout = HWQ_NHWC, .a_type = HWQ_U8, .a_zero_point = 3, .x = x, .weights = &packed, .epilogue = &e};
            hwq_winograd_plan plan;
            check_begin("conv_s32", path);
            check_true(hwq_winograd_4x4_fits(&c, &plan) == !more, "the bound");
            convolve(&c, tiles_4x4, out, 16);
            for (int i = 0; i < 16; i++) check_true(out[i] == (value - 3) * ((1 << 18) - 1 + more), "at the bound");
            free(quads);
        }
}

/* Channels at every tail of a vector, the last pixel against the guard page. */
static void depthwise_tails(int path)
{
    for (int64_t channels = 2; channels <= 34; channels++) {
        const shape s = {1, channels, 1, 1, {{1, 4, 3}, {1, 3, 2}, {1, 1, 1}, {1, 1, 1}, {0, 1, 0}, {0}}};
        check_begin("depthwise_s32", path);
        for (int symmetric = 0; symmetric < 2; symmetric++) integers(&s, path, HWQ_NHWC, channels & 1 ? HWQ_U8 : HWQ_S8, 0, symmetric, 0);
        const shape slides = {2, channels, 1, 1, {{1, 3, 1 + channels % 5}, {1, 3, 3}, {1, 1, 1}, {1, 1, 1}, {0, channels % 3, 1 + channels % 2}, {0}}};
        for (int symmetric = 0; symmetric < 2; symmetric++) integers(&slides, path, HWQ_NHWC, channels & 1 ? HWQ_U8 : HWQ_S8, (int)(channels % FILLS), symmetric, 0);
        check_begin("depthwise_f32", path);
        floats(&s, path, HWQ_NHWC, HWQ_ORDER_LANES);
        check_begin("depthwise_chain", path);
        for (int order = HWQ_ORDER_CHAIN; order <= HWQ_ORDER_CHAIN_COLUMNS; order++) floats(&s, path, HWQ_NHWC, order);
    }
}

/* Channels that whole, half and quarter vectors cover, on odd numbers of lines and columns, by strides of 1 and 2. */
static void depthwise_blocks(int path)
{
    static const int64_t channels[] = {40, 48, 56, 63, 64, 65, 80, 96, 97, 112, 130};
    for (size_t i = 0; i < sizeof channels / sizeof *channels; i++)
        for (int64_t stride = 1; stride <= 2; stride++) {
            const int64_t n = (int64_t)i;
            const shape s = {1, channels[i], 1, 1, {{1, 3 + n, 5 + n % 4}, {1, 3, 3}, {1, stride, stride}, {1, 1, 1}, {0, n % 2, 1}, {0}}};
            check_begin("depthwise_s32", path);
            integers(&s, path, HWQ_NHWC, n & 1 ? HWQ_U8 : HWQ_S8, (int)(n % FILLS), 1, 0);
        }
    /* Lines longer than what is taken at once, small images of all shapes, whole ones in a run, and more padding than the kernel reaches over. */
    for (int64_t width = 1; width <= 17; width++)
        for (int64_t stride = 1; stride <= 2; stride++) {
            const int64_t high = (7 * width + stride) % 13 + 1;
            const shape s = {3, 8 + width, 1, 1, {{1, high, width}, {1, 3, 3}, {1, 1 + width % 2, stride}, {1, 1, 1}, {0, 1 + width % 4, 1 + high % 6}, {0}}};
            check_begin("depthwise_s32", path);
            for (int layout = 0; layout < 2; layout++) integers(&s, path, layout, width & 1 ? HWQ_U8 : HWQ_S8, (int)(width % FILLS), 0, 0);
        }
    for (int64_t width = 126; width <= 131; width++) {
        const shape s = {1, 12, 1, 1, {{1, 2, width * (1 + width % 2)}, {1, 3, 3}, {1, 1, 1 + width % 2}, {1, 1, 1}, {0, 1, 1}, {0}}};
        check_begin("depthwise_s32", path);
        integers(&s, path, HWQ_NHWC, width & 2 ? HWQ_U8 : HWQ_S8, (int)(width % FILLS), 0, 0);
    }
    const shape many = {1, 1388, 1, 1, {{1, 3, 131}, {1, 3, 3}, {1, 1, 1}, {1, 1, 1}, {0, 0, 1}, {0}}}; /* whose accumulators hold fewer than a line */
    check_begin("depthwise_s32", path);
    for (int layout = 0; layout < 2; layout++) integers(&many, path, layout, HWQ_U8, 0, 0, 0);
}

void check_window(void)
{
    EACH_PATH(path) depthwise_tails(path);
    EACH_PATH(path) depthwise_blocks(path);
    EACH_PATH(path)
        if (path == hwq_path_find("avx2") || path == hwq_path_find("avx512vnni")) {
            for (int i = 0; i < TILED_COUNT; i++)
                for (int fill = 0; fill < (check_brief && i > 3 ? 1 : FILLS); fill++)
                    for (int symmetric = 0; symmetric < 2; symmetric++) {
                        check_begin("conv_s32", path);
                        integers(&TILED[i], path, HWQ_NHWC, (i + fill) & 1 ? HWQ_S8 : HWQ_U8, fill, symmetric, 1);
                    }
            bounds(path);
        }
    EACH_PATH(path)
    {
        check_begin("pool_run", path);
        nines(17, (hwq_window){{1, 5, 7}, {1, 5, 7}, {1, 1, 1}, {1, 1, 1}, {0, 0, 0}, {0}});
        nines(3, (hwq_window){{1, 6, 5}, {1, 3, 2}, {1, 2, 1}, {1, 1, 1}, {0, 1, 1}, {0}});
    }
    EACH_PATH(path)
        for (int layout = HWQ_NCHW; layout <= HWQ_NHWC; layout++)
            for (int i = 0; i < SHAPE_COUNT; i++) {
                check_begin("conv_s32", path);
                for (int fill = 0; fill < (check_brief && i >= FIRST_WINOGRAD ? 1 : FILLS); fill++)
                    integers(&SHAPES[i], path, layout, fill & 1 ? HWQ_S8 : HWQ_U8, fill, fill % 3 == 1, 0);
                integers(&SHAPES[i], path, layout, HWQ_S8, 0, 0, 0);
                integers(&SHAPES[i], path, layout, i & 1 ? HWQ_S8 : HWQ_U8, 0, 1, 0);
                check_begin("conv_f32", path);
                floats(&SHAPES[i], path, layout, HWQ_ORDER_LANES);
                check_begin("conv_chain", path);
                floats(&SHAPES[i], path, layout, HWQ_ORDER_CHAIN);
                check_begin("pool_run", path);
                static const int cases[][2] = {{HWQ_U8, HWQ_POOL_MAX}, {HWQ_S8, HWQ_POOL_MAX}, {HWQ_F32, HWQ_POOL_MAX},
                                               {HWQ_U8, HWQ_POOL_AVERAGE_TFLITE}, {HWQ_S8, HWQ_POOL_AVERAGE_TFLITE},
                                               {HWQ_S16, HWQ_POOL_AVERAGE_TFLITE}, {HWQ_F32, HWQ_POOL_AVERAGE}};
                if (i < FIRST_WINOGRAD && i != 6)
                    for (size_t j = 0; j < sizeof cases / sizeof *cases; j++) pools(&SHAPES[i], path, layout, cases[j][0], cases[j][1]);
            }
}
