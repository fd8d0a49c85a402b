/* Steps of the plan's wider modes: int16 activations as two products of bytes, and weights with scales in groups, whose rows are
 * gathered as the product wants them; layer normalization of stored values; the phases of transposed convolutions. */
#include "conv.h"
#include "epilogue.h"
#include "program_part.h"
#include "window.h"

#include <string.h>

enum {
    ROWS = 64,  /* rows gathered at once: their product reads the weights as often */
    SUMS = 1024 /* sums of 64 bits finished at once: 8 KiB */
};

/* ---- Rows of windows ---- */
typedef struct {
    int64_t in, out; /* bytes an element, of the image and of the rows */
    int64_t count;   /* channels' places of a tap: blocks of `width` */
} shape;

static shape shape_of(const hwq_step_rows *r)
{
    const int64_t in = r->type == HWQ_F32 ? 4 : 1;
    return (shape){in, r->centered ? 4 : in, (r->depth + r->block - 1) / r->block * r->width};
}

static void put(const hwq_step_rows *r, int64_t n, const void *from, int32_t point, void *to)
{
    float *floats = to;
    if (!r->centered) memcpy(to, from, (size_t)(n * (r->type == HWQ_F32 ? 4 : 1)));
    else if (r->type == HWQ_U8) for (int64_t i = 0; i < n; i++) floats[i] = (float)(((const uint8_t *)from)[i] - point);
    else for (int64_t i = 0; i < n; i++) floats[i] = (float)(((const int8_t *)from)[i] - point);
}

/* Channels of one pixel by blocks; what is filled up holds `fill` already. */
static void put_pixel(const hwq_step_rows *r, shape z, const char *pixel, int32_t point, char *to)
{
    for (int64_t i = 0; i < r->depth; i += r->block, to += r->width * z.out)
        put(r, r->depth - i < r->block ? r->depth - i : r->block, pixel + i * z.in, point, to);
}

/* Rows [first, first + count) of all images' positions. */
static void gather(const hwq_step_rows *r, const char *image, const char *points, int64_t first, int64_t count, char *to)
{
    const hwq_window *w = &r->window;
    const shape z = shape_of(r);
    const int64_t outputs = hwq_window_outputs(w), line = hwq_window_taps(w) * z.count * z.out, pixels = hwq_window_inputs(w);
    memset(to, r->type == HWQ_F32 || r->centered ? 0 : (uint8_t)r->zero_point, (size_t)(count * line));
    for (int64_t i = first; i < first + count; i++) {
        const char *from = image + (i / outputs * pixels * r->channels + r->first) * z.in;
        const char *at = r->each ? points + i / r->each : NULL;
        const int32_t point = !at ? r->zero_point : r->type == HWQ_S8 ? *(const int8_t *)at : *(const uint8_t *)at;
        int64_t origin[3];
        hwq_window_origin(w, i % outputs, origin);
        for (int64_t t0 = 0; t0 < w->kernel[0]; t0++)
            for (int64_t t1 = 0; t1 < w->kernel[1]; t1++)
                for (int64_t t2 = 0; t2 < w->kernel[2]; t2++, to += z.count * z.out) {
                    const int64_t pixel = hwq_window_pixel(w, origin, t0, t1, t2);
                    if (pixel >= 0) put_pixel(r, z, from + pixel * r->channels * z.in, point, to);
                }
    }
}

static int64_t gathered_bytes(const hwq_step_scaled *g)
{
    return g->gathers ? hwq_align(ROWS * hwq_window_taps(&g->rows.window) * shape_of(&g->rows).count * shape_of(&g->rows).out) : 0;
}

/* `rows` rows of a, from row `row` of the result. */
static void multiply(const hwq_step *s, const hwq_part *p, const void *a, int64_t row, int64_t rows, char *workspace)
{
    const int64_t size = hwq_type_size(s->epilogue.out_type);
    if (s->op == HWQ_STEP_GEMM_S4) {
        hwq_gemm_s4_args g = s->as.scaled.s4;
        g.a = a, g.m = rows, g.out = p->out + row * g.out_stride * size, g.epilogue = &s->epilogue, g.workspace = workspace;
        if (!p->rows) g.first_strip = p->first, g.strips = p->last - p->first;
        if (g.a_type == HWQ_F32) hwq_gemm_f32s4(&g);
        else hwq_gemm_s4(&g);
    } else {
        hwq_gemm_f32s8_args g = s->as.scaled.s8;
        g.a = a, g.m = rows, g.out = p->out + row * g.out_stride * size, g.epilogue = &s->epilogue, g.workspace = workspace;
        if (!p->rows) g.first_strip = p->first, g.strips = p->last - p->first;
        hwq_gemm_f32s8(&g);
    }
}

void hwq_run_scaled(const hwq_step *s, const hwq_part *p)
{
    const hwq_step_scaled *g = &s->as.scaled;
    const int is_s4 = s->op == HWQ_STEP_GEMM_S4;
    const int64_t from = p->rows ? p->first : 0, to = p->rows ? p->last : is_s4 ? g->s4.m : g->s8.m;
    const int64_t line = is_s4 ? g->s4.a_stride * hwq_type_size(g->s4.a_type) : g->s8.a_stride * 4;
    char *const work = p->workspace, *const rest = work + gathered_bytes(g);
    if (!g->gathers) {
        multiply(s, p, p->a + from * line, from, to - from, rest);
        return;
    }
    for (int64_t row = from; row < to; row += ROWS) {
        const int64_t rows = to - row < ROWS ? to - row : ROWS;
        gather(&g->rows, p->a, p->zero_point, row, rows, work);
        multiply(s, p, work, row, rows, rest);
    }
}

int64_t hwq_scaled_workspace(const hwq_step *s)
{
    const hwq_step_scaled *g = &s->as.scaled;
    return gathered_bytes(g) + (s->op == HWQ_STEP_GEMM_S4 ? hwq_gemm_s4_workspace(g->s4.weights->k, g->s4.weights->block) : HWQ_F32S8_WORKSPACE);
}

/* ---- 16 bits as two bytes: x = 256 high + low, |sums of bytes| < 2^31 by the caller's proof ---- */
void hwq_run_split(const hwq_step *s, const hwq_part *p)
{
    const uint16_t *x = (const uint16_t *)(const void *)p->a;
    const uint8_t flip = s->as.split.type == HWQ_U16 ? 0x80 : 0;
    uint8_t *high = (uint8_t *)p->out, *low = (uint8_t *)(uintptr_t)p->b;
    for (int64_t i = p->first; i < p->last; i++) high[i] = (uint8_t)(x[i] >> 8) ^ flip, low[i] = (uint8_t)x[i];
}

static void join_rows(const hwq_step *s, const hwq_part *p, int64_t row, int64_t rows, int64_t column, int64_t width)
{
    const hwq_step_join *j = &s->as.join;
    int64_t sums[SUMS], *sum = sums;
    for (int64_t r = row; r < row + rows; r++, sum += width) {
        const int32_t *high = (const int32_t *)(const void *)p->a + r * j->columns + column, *low = (const int32_t *)(const void *)p->b + r * j->columns + column;
        for (int64_t i = 0; i < width; i++) sum[i] = (int64_t)high[i] * 256 + low[i];
        if (j->bias)
            for (int64_t i = 0; i < width; i++) sum[i] += j->bias[column + i];
    }
    if (!j->factors) {
        hwq_requantize(&s->epilogue, rows, width, column, sums, HWQ_S64, width, p->out + (row * j->columns + column) * hwq_type_size(s->epilogue.out_type),
                       j->columns);
        return;
    }
    for (int64_t r = 0; r < rows; r++) {
        float *out = (float *)(void *)p->out + (row + r) * j->columns + column;
        for (int64_t i = 0; i < width; i++) out[i] = (float)((double)sums[r * width + i] * j->factors[column + i]);
        if (j->offsets)
            for (int64_t i = 0; i < width; i++) out[i] += j->offsets[column + i];
    }
}

void hwq_run_join(const hwq_step *s, const hwq_part *p)
{
    const int64_t columns = s->as.join.columns, whole = columns && columns < SUMS ? SUMS / columns : 1;
    for (int64_t row = p->first; row < p->last; row += whole)
        for (int64_t column = 0; column < columns; column += SUMS)
            join_rows(s, p, row, p->last - row < whole ? p->last - row : whole, column, columns - column < SUMS ? columns - column : SUMS);
}

/* ---- Layer normalization of stored values ---- */
int64_t hwq_norm_workspace(const hwq_step *s) { return 2 * hwq_align(s->as.norm.norm.columns * 2); }

static void to_s16(int32_t type, int64_t n, const void *x, int16_t *to)
{
    const uint8_t *bytes = x;
    const uint16_t *words = x;
    const uint16_t flip = type == HWQ_U8 || type == HWQ_U16 ? 0x8000 : 0;
    if (type == HWQ_U8 || type == HWQ_S8) for (int64_t i = 0; i < n; i++) to[i] = (int16_t)(uint16_t)((bytes[i] << 8) ^ flip);
    else for (int64_t i = 0; i < n; i++) to[i] = (int16_t)(words[i] ^ flip);
}

void hwq_run_norm(const hwq_step *s, const hwq_part *p)
{
    const hwq_step_norm *n = &s->as.norm;
    const int64_t columns = n->norm.columns, size = hwq_type_size(n->type), out_size = hwq_type_size(n->out_type);
    int16_t *given = p->workspace, *made = (int16_t *)(void *)((char *)p->workspace + hwq_align(columns * 2));
    for (int64_t row = p->first; row < p->last; row++) {
        char *out = p->out + row * columns * out_size;
        to_s16(n->type, columns, p->a + row * columns * size, given);
        hwq_layer_norm_s16(&n->norm, 1, given, made);
        if (n->out_type == HWQ_U16) {
            for (int64_t i = 0; i < columns; i++) ((uint16_t *)(void *)out)[i] = (uint16_t)made[i] ^ 0x8000;
            continue;
        }
        for (int64_t i = 0; i < columns; i++) {
            const int32_t v = made[i] < n->lo ? n->lo : made[i] > n->hi ? n->hi : made[i];
            if (out_size == 2) ((int16_t *)(void *)out)[i] = (int16_t)v;
            else out[i] = (char)v;
        }
    }
}

/* Units: lines of the last dimension. */
void hwq_run_phases(const hwq_step *s, const hwq_part *p)
{
    const hwq_step_phases *h = &s->as.phases;
    const int64_t *in = h->in, *out = h->out, *by = h->stride, phases = by[0] * by[1] * by[2];
    char *to = p->out + p->first * out[2] * h->groups * h->bytes;
    for (int64_t line = p->first; line < p->last; line++) {
        const int64_t i1 = line % out[1], i0 = line / out[1] % out[0], image = line / out[1] / out[0];
        const int64_t pixels = ((image * in[0] + i0 / by[0]) * in[1] + i1 / by[1]) * in[2], phase = (i0 % by[0] * by[1] + i1 % by[1]) * by[2];
        for (int64_t i2 = 0; i2 < out[2]; i2++)
            for (int64_t g = 0; g < h->groups; g++, to += h->bytes)
                memcpy(to, p->a + (((pixels + i2 / by[2]) * h->groups + g) * phases + phase + i2 % by[2]) * h->bytes, (size_t)h->bytes);
    }
}
