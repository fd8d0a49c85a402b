/* The step loop. Each step's record is copied to the stack, given its addresses and this thread's part, and run. */
#include "hwq/program.h"

#include "conv.h"
#include "epilogue.h"
#include "program_part.h"
#include "state.h"
#include "window.h"

#include <stdatomic.h>
#include <string.h>
#if defined(_WIN32)
#include <windows.h>
static void rest(void) { SwitchToThread(); }
#else
#include <sched.h>
static void rest(void) { sched_yield(); }
#endif

enum {
    WALK = 16384, /* elements below which a step that only walks memory stays on one thread: a barrier costs about as much */
    SPINS = 2048  /* looks at the barrier before the thread gives its time away */
};

/* ---- How a step splits: `count` units in whole `grain`s, of which a thread takes [first, last) ---- */
typedef struct {
    int64_t count, grain;
} split;

/* Rows and strips of a product. */
typedef struct {
    int64_t m, strips;
} extent;

static int is_product(const hwq_step *s)
{
    return s->op <= HWQ_STEP_GEMM_S8S8 || s->op == HWQ_STEP_GEMM_S4 || s->op == HWQ_STEP_GEMM_F32S8;
}

static extent extent_of(const hwq_step *s)
{
    switch (s->op) {
    case HWQ_STEP_GEMM_S4: return (extent){s->as.scaled.s4.m, s->as.scaled.s4.strips};
    case HWQ_STEP_GEMM_F32S8: return (extent){s->as.scaled.s8.m, s->as.scaled.s8.strips};
    default: return (extent){s->as.gemm.m, s->as.gemm.strips};
    }
}

static int by_rows(const hwq_step *s, int32_t threads)
{
    const extent e = extent_of(s);
    return e.m >= 4 * threads || e.strips < threads;
}

static split walk(int64_t count) { return (split){count, count < WALK ? count : 64}; }

static split split_of(const hwq_step *s, int32_t threads)
{
    switch (s->op) {
    case HWQ_STEP_GEMM_U8S8: case HWQ_STEP_GEMM_S8S8: case HWQ_STEP_GEMM_S4: case HWQ_STEP_GEMM_F32S8:
        return by_rows(s, threads) ? (split){extent_of(s).m, 4} : (split){extent_of(s).strips, 1};
    case HWQ_STEP_GEMM_F32: return (split){s->as.gemm_f32.m, 4};
    case HWQ_STEP_CONV: {
        const hwq_conv *c = &s->as.conv;
        const int64_t outputs = hwq_window_outputs(&c->window), row = c->window.out[2];
        return (split){c->batch * outputs, c->batch >= threads ? outputs : c->batch * outputs >= threads * row ? row : 1};
    }
    case HWQ_STEP_POOL: return (split){s->as.pool.batch, 1};
    case HWQ_STEP_BINARY: return walk(s->as.binary.n);
    case HWQ_STEP_QUANTIZE: case HWQ_STEP_DEQUANTIZE:
        return s->as.scale.channels == 1 ? walk(s->as.scale.outer * s->as.scale.inner) : (split){s->as.scale.outer, s->as.scale.outer};
    case HWQ_STEP_LUT: return walk(s->as.lut.n);
    case HWQ_STEP_TRANSPOSE: case HWQ_STEP_COPY: return (split){s->as.move.outer, s->as.move.outer};
    case HWQ_STEP_MAP: return walk(s->as.map.n);
    case HWQ_STEP_CAST: return walk(s->as.cast.n);
    case HWQ_STEP_SPLIT: return walk(s->as.split.n);
    case HWQ_STEP_LAYER_NORM: return (split){s->as.norm.rows, s->as.norm.rows * s->as.norm.norm.columns < WALK ? s->as.norm.rows : 1};
    case HWQ_STEP_PHASES: {
        const hwq_step_phases *h = &s->as.phases;
        const int64_t lines = h->images * h->out[0] * h->out[1];
        return (split){lines, lines * h->out[2] * h->groups * h->bytes < WALK ? lines : 1};
    }
    case HWQ_STEP_JOIN: return (split){s->as.join.rows, s->as.join.rows * s->as.join.columns < WALK ? s->as.join.rows : 16};
    case HWQ_STEP_DYNAMIC:
        return (split){s->as.dynamic.rows, s->as.dynamic.rows * s->as.dynamic.columns < WALK ? s->as.dynamic.rows : 1};
    case HWQ_STEP_PRODUCTS: return (split){s->as.products.batch, 1};
    case HWQ_STEP_MEAN: return (split){s->as.mean.outer, s->as.mean.outer};
    case HWQ_STEP_SUMS: {
        const hwq_row_scales *sums = &s->as.sums;
        return (split){sums->rows, sums->rows * sums->columns < WALK ? sums->rows : sums->each > 1 ? sums->each : 64};
    }
    default: return (split){s->as.softmax.rows, s->as.softmax.rows};
    }
}

static int64_t grains(split p) { return p.grain > 0 ? (p.count + p.grain - 1) / p.grain : 0; }

static int64_t edge(split p, int32_t thread, int32_t threads)
{
    const int64_t to = (grains(p) * thread + threads - 1) / threads * p.grain; /* thread 0 takes what does not split */
    return to < p.count ? to : p.count;
}

/* ---- The steps ---- */
typedef hwq_part part;

static int32_t point_at(const part *p, int64_t at, int32_t type)
{
    return type == HWQ_S8 ? ((const int8_t *)p->zero_point)[at] : ((const uint8_t *)p->zero_point)[at];
}

/* Where the activations' scale comes at run time, every column's factor is made behind the workspace. */
static void scale_columns(hwq_epilogue *e, const part *p, int64_t at, int64_t columns, int64_t workspace)
{
    const float scale = ((const float *)p->scale)[at];
    float *factors = (float *)(void *)((char *)p->workspace + hwq_align(workspace));
    for (int64_t i = 0; i < (e->channel_step ? columns : 1); i++) factors[i] = scale * e->scales_f32[i];
    e->scales_f32 = factors;
}

static void run_gemm(const hwq_step *s, const part *p)
{
    hwq_gemm_args g = s->as.gemm;
    hwq_epilogue e = s->epilogue;
    if (s->run_time) {
        if (e.kind == HWQ_KIND_F32) scale_columns(&e, p, 0, g.weights->n, hwq_gemm_workspace(g.weights->k));
        g.a_zero_point = point_at(p, 0, s->op == HWQ_STEP_GEMM_S8S8 ? HWQ_S8 : HWQ_U8);
    }
    const int64_t row = p->rows ? p->first : 0;
    g.a = p->a + row * g.a_stride;
    g.out = p->out + row * g.out_stride * hwq_type_size(e.out_type);
    if (e.residual_op) e.residual = p->b + row * e.residual_stride * hwq_type_size(e.residual_op->b_type);
    if (p->rows) g.m = p->last - p->first;
    else g.first_strip = p->first, g.strips = p->last - p->first;
    g.epilogue = &e;
    g.workspace = p->workspace;
    if (s->op == HWQ_STEP_GEMM_U8S8) hwq_gemm_u8s8(&g);
    else hwq_gemm_s8s8(&g);
}

static void run_gemm_f32(const hwq_step *s, const part *p)
{
    hwq_gemm_f32_args g = s->as.gemm_f32;
    g.a = (const float *)p->a + p->first * g.a_stride;
    g.out = (float *)p->out + p->first * g.out_stride;
    g.m = p->last - p->first;
    hwq_gemm_f32(&g);
}

static void convolve(const hwq_conv *c)
{
    if (c->order != HWQ_ORDER_LANES) {
        if (c->depthwise) hwq_depthwise_chain(c);
        else hwq_conv_chain(c);
    } else if (c->a_type == HWQ_F32) {
        if (c->depthwise) hwq_depthwise_f32(c);
        else hwq_conv_f32(c);
    } else if (c->depthwise) hwq_depthwise_s32(c);
    else hwq_conv_s32(c);
}

static void run_conv(const hwq_step *s, const part *p)
{
    hwq_conv c = s->as.conv;
    hwq_epilogue e = s->epilogue;
    e.residual = p->b;
    c.x = p->a, c.out = p->out, c.workspace = p->workspace;
    c.epilogue = c.a_type == HWQ_F32 ? NULL : &e;
    /* Where every image has a range of its own they run one by one. */
    const int64_t outputs = hwq_window_outputs(&c.window), step = s->run_time == 2 ? outputs : p->last - p->first;
    for (int64_t first = p->first; first < p->last; first = c.last) {
        const int64_t end = s->run_time == 2 ? (first / outputs + 1) * outputs : first + step, image = s->run_time == 2 ? first / outputs : 0;
        c.first = first, c.last = end < p->last ? end : p->last;
        if (s->run_time) {
            if (e.kind == HWQ_KIND_F32) e.scales_f32 = s->epilogue.scales_f32, scale_columns(&e, p, image, c.out_channels, hwq_conv_workspace(&c));
            c.a_zero_point = point_at(p, image, c.a_type);
        }
        convolve(&c);
    }
}

static void run_pool(const hwq_step *s, const part *p)
{
    hwq_pool pool = s->as.pool;
    const int64_t size = hwq_type_size(pool.type) * pool.channels;
    pool.x = p->a + p->first * hwq_window_inputs(&pool.window) * size;
    pool.out = p->out + p->first * hwq_window_outputs(&pool.window) * size;
    pool.batch = p->last - p->first;
    hwq_pool_run(&pool);
}

static void run_binary(const hwq_step *s, const part *p)
{
    const hwq_binary *op = s->as.binary.op;
    const int64_t a = p->first * s->as.binary.a_step, b = p->first * s->as.binary.b_step;
    hwq_binary_run(op, p->last - p->first, p->a + a * hwq_type_size(op->a_type), s->as.binary.a_step, p->b + b * hwq_type_size(op->b_type),
                   s->as.binary.b_step, p->out + p->first * hwq_type_size(op->out_type));
}

/* Units are elements where one scale holds, else outer lines of channels. */
static void run_scale(const hwq_step *s, const part *p)
{
    const int single = s->as.scale.channels == 1;
    const int64_t outer = single ? 1 : p->last - p->first, inner = single ? p->last - p->first : s->as.scale.inner;
    const int64_t first = p->first * (single ? 1 : s->as.scale.channels * inner), stored = first * hwq_type_size(s->as.scale.type);
    if (s->op == HWQ_STEP_DEQUANTIZE)
        hwq_dequantize(outer, s->as.scale.channels, inner, p->a + stored, s->as.scale.type, s->as.scale.scales, s->as.scale.zero_points,
                       (float *)p->out + first);
    else
        hwq_quantize(s->as.scale.formula, outer, s->as.scale.channels, inner, (const float *)p->a + first, s->as.scale.scales,
                     s->as.scale.zero_points, s->as.scale.lo, s->as.scale.hi, p->out + stored, s->as.scale.type);
}

static void run_map(const hwq_step *s, const part *p)
{
    const float *a = (const float *)p->a, *b = (const float *)p->b;
    float *out = (float *)p->out;
    switch (s->as.map.formula) {
    case HWQ_MAP_RELU: for (int64_t i = p->first; i < p->last; i++) out[i] = a[i] > 0.0f || a[i] != a[i] ? a[i] : 0.0f; break;
    case HWQ_MAP_ADD: for (int64_t i = p->first; i < p->last; i++) out[i] = a[i] + b[i]; break;
    case HWQ_MAP_SUB: for (int64_t i = p->first; i < p->last; i++) out[i] = a[i] - b[i]; break;
    default: for (int64_t i = p->first; i < p->last; i++) out[i] = a[i] * b[i];
    }
}

static void run_cast(const hwq_step *s, const part *p)
{
    const int64_t n = p->last - p->first;
    if (s->as.cast.to_float) hwq_widen(s->as.cast.type, n, (const uint16_t *)(const void *)p->a + p->first, (float *)(void *)p->out + p->first);
    else hwq_narrow(s->as.cast.type, n, (const float *)(const void *)p->a + p->first, (uint16_t *)(void *)p->out + p->first);
}

static void run_dynamic(const hwq_step *s, const part *p)
{
    const int64_t columns = s->as.dynamic.columns;
    for (int64_t row = p->first; row < p->last; row++) {
        int32_t zero_point;
        hwq_dynamic_quantize(s->as.dynamic.formula, 1, columns, (const float *)p->a + row * columns, p->out + row * columns,
                             (float *)p->scale + row, &zero_point);
        ((uint8_t *)p->zero_point)[row] = (uint8_t)zero_point;
    }
}

static void run_sums(const hwq_step *s, const part *p)
{
    hwq_row_scales sums = s->as.sums;
    const int64_t first = p->first / sums.each;
    sums.rows = p->last - p->first;
    hwq_scale_sums(&sums, p->a + p->first * sums.columns * 4, (const float *)p->scale + first, sums.sums ? (const char *)p->zero_point + first : NULL,
                   (float *)p->out + p->first * sums.columns);
}

/* What packing one right operand fills, behind the product's own workspace. */
typedef struct {
    int64_t quads, zero_points, sums, column_products, positive, negative, bytes;
} packing;

static packing packing_of(const hwq_step_products *p)
{
    packing at = {.quads = hwq_align(hwq_gemm_workspace(p->k))};
    at.zero_points = at.quads + hwq_align(hwq_packed_bytes(p->k, p->n));
    at.sums = at.zero_points + hwq_align(p->n * 4);
    at.column_products = at.sums + hwq_align(p->n * 4);
    at.positive = at.column_products + hwq_align(p->n * 4);
    at.negative = at.positive + hwq_align(p->n * 8);
    at.bytes = at.negative + hwq_align(p->n * 8);
    return at;
}

static void run_products(const hwq_step *s, const part *p)
{
    const hwq_step_products *q = &s->as.products;
    const packing at = packing_of(q);
    char *const w = p->workspace;
    int32_t *const points = (int32_t *)(void *)(w + at.zero_points), *const sums = (int32_t *)(void *)(w + at.sums);
    int32_t *const column_products = (int32_t *)(void *)(w + at.column_products);
    const hwq_packed packed = {.k = q->k, .n = q->n, .groups = 1, .quads = (int8_t *)(w + at.quads), .zero_points = points,
                               .column_sums = sums, .column_products = column_products};
    hwq_gemm_args g = {.m = q->m, .a_stride = q->k, .a_zero_point = q->a_zero_point, .weights = &packed,
                       .strips = (q->n + HWQ_STRIP - 1) / HWQ_STRIP, .bias = q->bias, .epilogue = &s->epilogue, .out_stride = q->n,
                       .workspace = w};
    const int64_t made = q->m * q->n * hwq_type_size(s->epilogue.out_type);
    for (int64_t i = p->first; i < p->last; i++) {
        if (i == p->first || q->b_step)
            hwq_pack(p->b + i * q->b_step, q->b_type, q->k, q->n, q->b_k_stride, q->b_n_stride, q->b_zero_points, (int8_t *)(w + at.quads),
                     points, sums, column_products, (int64_t *)(void *)(w + at.positive), (int64_t *)(void *)(w + at.negative));
        g.a = p->a + i * q->a_step;
        g.out = p->out + i * made;
        if (q->a_signed) hwq_gemm_s8s8(&g);
        else hwq_gemm_u8s8(&g);
    }
}

static void run_move(const hwq_step *s, const part *p)
{
    const int64_t rows = s->as.move.rows, columns = s->as.move.columns, element = s->as.move.element;
    for (int64_t i = p->first; i < p->last; i++) {
        const char *from = p->a + i * s->as.move.from_stride;
        char *to = p->out + i * s->as.move.to_stride;
        if (s->op == HWQ_STEP_COPY) memcpy(to, from, (size_t)columns);
        else hwq_transpose(element, rows, columns, from, columns, to, rows);
    }
}

static void run_step(const hwq_step *s, const part *p)
{
    switch (s->op) {
    case HWQ_STEP_GEMM_U8S8: case HWQ_STEP_GEMM_S8S8: run_gemm(s, p); break;
    case HWQ_STEP_GEMM_F32: run_gemm_f32(s, p); break;
    case HWQ_STEP_CONV: run_conv(s, p); break;
    case HWQ_STEP_POOL: run_pool(s, p); break;
    case HWQ_STEP_BINARY: run_binary(s, p); break;
    case HWQ_STEP_QUANTIZE: case HWQ_STEP_DEQUANTIZE: run_scale(s, p); break;
    case HWQ_STEP_LUT:
        hwq_lut(p->last - p->first, (const uint8_t *)p->a + p->first, (uint8_t)s->as.lut.flip, s->as.lut.table, (uint8_t *)p->out + p->first);
        break;
    case HWQ_STEP_TRANSPOSE: case HWQ_STEP_COPY: run_move(s, p); break;
    case HWQ_STEP_MAP: run_map(s, p); break;
    case HWQ_STEP_DYNAMIC: run_dynamic(s, p); break;
    case HWQ_STEP_SUMS: run_sums(s, p); break;
    case HWQ_STEP_PRODUCTS: run_products(s, p); break;
    case HWQ_STEP_CAST: run_cast(s, p); break;
    case HWQ_STEP_GEMM_S4: case HWQ_STEP_GEMM_F32S8: hwq_run_scaled(s, p); break;
    case HWQ_STEP_SPLIT: hwq_run_split(s, p); break;
    case HWQ_STEP_JOIN: hwq_run_join(s, p); break;
    case HWQ_STEP_LAYER_NORM: hwq_run_norm(s, p); break;
    case HWQ_STEP_PHASES: hwq_run_phases(s, p); break;
    case HWQ_STEP_MEAN: hwq_mean_run(&s->as.mean, &s->epilogue, p->a, p->out, p->workspace); break;
    default: hwq_softmax_run(s->as.softmax.op, s->as.softmax.rows, s->as.softmax.columns, p->a, p->out);
    }
}

/* ---- The loop ---- */
static void *at(void *const *bases, hwq_place place)
{
    return place.base ? (char *)bases[place.base] + place.offset : (void *)place.offset;
}

/* The last to arrive opens the next turn, which publishes what every thread wrote before it came. */
static void meet(hwq_barrier *barrier, int32_t threads)
{
    const int32_t turn = atomic_load_explicit(&barrier->turn, memory_order_relaxed);
    if (atomic_fetch_add_explicit(&barrier->arrived, 1, memory_order_acq_rel) == threads - 1) {
        atomic_store_explicit(&barrier->arrived, 0, memory_order_relaxed);
        atomic_store_explicit(&barrier->turn, (int32_t)((uint32_t)turn + 1), memory_order_release);
        return;
    }
    for (int64_t spins = 0; atomic_load_explicit(&barrier->turn, memory_order_acquire) == turn; spins++)
        if (spins >= SPINS) rest();
}

void hwq_program_run(const hwq_step *steps, int64_t count, void *const *bases, void *workspace, int32_t thread, int32_t threads,
                     hwq_barrier *barrier)
{
    const uint64_t state = hwq_state_enter();
    int shared = 0; /* did the step before split? Runs of steps that do not are one thread's, and need no barrier. */
    for (int64_t i = 0; i < count; i++) {
        const hwq_step *s = &steps[i];
        const split whole = split_of(s, threads);
        const int splits = threads > 1 && grains(whole) > 1;
        if (i && (splits || shared)) meet(barrier, threads);
        shared = splits;
        part p = {.a = at(bases, s->a), .b = at(bases, s->b), .out = at(bases, s->out), .scale = at(bases, s->scale),
                  .zero_point = at(bases, s->zero_point), .workspace = workspace, .first = 0, .last = whole.count,
                  .rows = is_product(s) && by_rows(s, threads)};
        if (threads > 1) p.first = edge(whole, thread, threads), p.last = edge(whole, thread + 1, threads);
        if (p.first < p.last) run_step(s, &p);
    }
    if (threads > 1) meet(barrier, threads);
    hwq_state_leave(state);
}

int64_t hwq_program_workspace(const hwq_step *steps, int64_t count)
{
    int64_t most = 0;
    for (int64_t i = 0; i < count; i++) {
        const hwq_step *s = &steps[i];
        int64_t bytes = 0;
        if (s->op == HWQ_STEP_GEMM_U8S8 || s->op == HWQ_STEP_GEMM_S8S8) {
            bytes = hwq_gemm_workspace(s->as.gemm.weights->k);
            if (s->run_time) bytes = hwq_align(bytes) + s->as.gemm.weights->n * (int64_t)sizeof(float);
        } else if (s->op == HWQ_STEP_CONV) {
            hwq_conv conv = s->as.conv;
            conv.epilogue = conv.a_type == HWQ_F32 ? NULL : &s->epilogue;
            bytes = hwq_conv_workspace(&conv);
            if (s->run_time) bytes = hwq_align(bytes) + conv.out_channels * (int64_t)sizeof(float);
        } else if (s->op == HWQ_STEP_PRODUCTS) bytes = packing_of(&s->as.products).bytes;
        else if (s->op == HWQ_STEP_MEAN) bytes = hwq_mean_workspace(&s->as.mean);
        else if (s->op == HWQ_STEP_GEMM_S4 || s->op == HWQ_STEP_GEMM_F32S8) bytes = hwq_scaled_workspace(s);
        else if (s->op == HWQ_STEP_LAYER_NORM) bytes = hwq_norm_workspace(s);
        most = bytes > most ? bytes : most;
    }
    return most;
}
