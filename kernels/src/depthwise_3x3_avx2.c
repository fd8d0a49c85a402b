/* Depthwise 3 x 3 of bytes, strides of 1 and 2, by blocks of 8 channels. Channel-last; channel-first images are turned in the workspace.
 *
 * Two taps meet in one dot of int16 pairs: lines 0 and 1 of a column, two neighboring columns of line 2; what a pair has too much meets weights 0. Columns come
 * by twos: a pair of them is interleaved once, goes into all outputs that it belongs to and is forgotten. In registers stay the 7 vectors of weights of a block,
 * or with stride 2 the 5 of each of two, for some lines, and the unfinished sums, two or one. Finished sums of 32 channels go through the first cache and
 * are requantized when a line or some short ones are done: at once, behind each sum, they kept the multipliers waiting (1.15 times as long, Zen 5).
 *
 *   sum (x - zx) w = sum x w - zx * sum w     (padding holds zx)
 *
 * Bounds: |x| <= 255, |w - zw| <= 255: a pair of products is below 2^17; every sum is modulo 2^32, as ref's. R4 to bytes needs no clamp of floats where
 * every scale is below 1 in size: then no product leaves int32, and packing with saturation may come before the clamp, whose bounds are bytes.
 * For 16 outputs of stride 1 20 instructions multiply and add, 6 interleave and widen, 10 requantize: 9 cycles of four ports, measured 11.4 at 112 x 112 x 32
 * (52 GMAC/s on Zen 5, one thread, gcc 12, R4 to bytes, called from C), 12.6 at 14 x 14 x 512 (47); of stride 2 20, 12 and 10, measured 13 at 112 x 112 x 32 (46). */
#include "depthwise.h"
#include "epilogue.h"
#include "isa.h"
#include "window.h"

#if HWQ_X86
#include <immintrin.h>
#include <string.h>

HWQ_TARGET("avx2,fma")

enum { LANES = 8, GROUP = 4 * LANES, WEIGHTS = 7, EVEN_WEIGHTS = 5 /* of even columns */, MOST = 127 /* positions of a line at once */, SHORT = 32 /* of several lines */ };
typedef __m256i vector;

/* 8 channels. */
typedef struct {
    int16_t weights[WEIGHTS][2 * LANES];
    int32_t bias[LANES];
    float scales[LANES];
} constants;

_Static_assert(sizeof(constants) <= HWQ_DEPTHWISE_CONSTANTS * LANES, "the workspace holds them");
_Static_assert((MOST + 1) * GROUP <= HWQ_DEPTHWISE_BLOCK, "and the sums");

typedef struct {
    const hwq_conv *conv;
    const hwq_epilogue *epilogue; /* the residual comes later */
    int fused;
    int along, across;            /* dimensions: columns follow each other along one, lines across the other */
    int64_t column, line;         /* bytes of the image from column to column, and from line to line */
    vector zero_point;            /* int16, of an s8 result */
    vector lo, hi, flip;          /* bytes: the clamp of an s8 result; 0x80 where it is u8 */
    constants *constants;
    uint8_t *padding;             /* a pixel */
    int32_t *acc;                 /* [position][32] */
    char *tile;
} plan;

static inline vector load(const void *p) { return _mm256_loadu_si256((const __m256i *)p); }
static inline void store(void *p, vector v) { _mm256_storeu_si256((__m256i *)p, v); }

/* acc + x . w. The assembly, tested equal, keeps gcc 12 from adding in an order of its own, for which it runs out of registers. */
static inline __attribute__((always_inline)) vector add_dot(vector acc, vector x, vector w)
{
#if defined(__GNUC__) && !defined(HWQ_NO_ASM)
    vector sum;
    __asm__("vpmaddwd %[x], %[w], %[sum]\n\tvpaddd %[acc], %[sum], %[sum]" : [sum] "=&x"(sum) : [acc] "xm"(acc), [x] "x"(x), [w] "x"(w));
    return sum;
#else
    return _mm256_add_epi32(acc, _mm256_madd_epi16(x, w));
#endif
}

/* Channels are taken by groups of 32, or what is left, at least 8, for which the last group may overlap; a group by blocks of 8, of which the last may. */
static inline int64_t group_width(int64_t channels, int64_t group)
{
    const int64_t left = channels - group * GROUP;
    return left > GROUP ? GROUP : left < LANES ? LANES : left;
}
static inline int64_t group_start(int64_t channels, int64_t group) { return channels - group * GROUP < LANES ? channels - LANES : group * GROUP; }
static inline int64_t block_start(int64_t width, int64_t block) { return block * LANES + LANES > width ? width - LANES : block * LANES; }

static void prepare(const plan *p, int64_t at, constants *to)
{
    const hwq_conv *c = p->conv;
    const hwq_epilogue *e = p->epilogue;
    /* Taps of a dot, 9 for none: of lines 0 and 1; of line 2 at an even column, where its first or its last tap meets it; at an odd one, likewise. */
    static const int8_t dots[WEIGHTS][2] = {{0, 3}, {1, 4}, {2, 5}, {6, 7}, {8, 9}, {9, 6}, {7, 8}};
    __m128i taps[10], sum = _mm_setzero_si128(); /* at most 9 * 255 in size */
#pragma GCC unroll 9
    for (int i = 0; i < 9; i++) {
        const int64_t tap = p->along == 2 ? i : i % 3 * 3 + i / 3;
        taps[i] = _mm_loadu_si128((const __m128i *)(c->taps_s16 + tap * c->channels + at));
        sum = _mm_add_epi16(sum, taps[i]);
    }
    taps[9] = _mm_setzero_si128();
#pragma GCC unroll 7
    for (int i = 0; i < WEIGHTS; i++) {
        const __m128i a = taps[dots[i][0]], b = taps[dots[i][1]];
        store(to->weights[i], _mm256_set_m128i(_mm_unpackhi_epi16(a, b), _mm_unpacklo_epi16(a, b)));
    }
    const vector given = c->bias ? load(c->bias + at) : _mm256_setzero_si256();
    store(to->bias, _mm256_sub_epi32(given, _mm256_mullo_epi32(_mm256_cvtepi16_epi32(sum), _mm256_set1_epi32(c->a_zero_point))));
    if (p->fused) _mm256_storeu_ps(to->scales, e->channel_step ? _mm256_loadu_ps(e->scales_f32 + at) : _mm256_set1_ps(e->scales_f32[0]));
}

/* (a, b) of one block of channels or of two */
static inline __attribute__((always_inline)) void interleave(const int is_unsigned, const int blocks, const uint8_t *a, const uint8_t *b, vector both[2])
{
    const __m128i x = blocks == 2 ? _mm_loadu_si128((const __m128i *)a) : _mm_loadl_epi64((const __m128i *)a);
    const __m128i y = blocks == 2 ? _mm_loadu_si128((const __m128i *)b) : _mm_loadl_epi64((const __m128i *)b);
    const __m128i low = _mm_unpacklo_epi8(x, y), high = _mm_unpackhi_epi8(x, y);
    both[0] = is_unsigned ? _mm256_cvtepu8_epi16(low) : _mm256_cvtepi8_epi16(low);
    if (blocks == 2) both[1] = is_unsigned ? _mm256_cvtepu8_epi16(high) : _mm256_cvtepi8_epi16(high);
}

/* Pixels of two columns: of lines 0 and 1 in the first, in the second; of line 2 in both. */
typedef struct {
    const uint8_t *at[6];
} pixels;

/* The next two columns. acc: the outputs whose first or second column came last, then the next ones; done: those that end here. */
static inline __attribute__((always_inline)) void two_columns(const int is_unsigned, const int stride, const int blocks, const int begins, vector w[2][WEIGHTS],
                                                              vector bias, const constants *k, const pixels *x, int64_t at, vector acc[2][2], int32_t *done)
{
    vector both[2], next[2][2], last[2][2];
    interleave(is_unsigned, blocks, x->at[0] + at, x->at[1] + at, both);
#pragma GCC unroll 2
    for (int b = 0; b < blocks; b++) {
        if (!begins) last[b][0] = add_dot(acc[b][0], both[b], w[b][2]);
        if (!begins && stride == 1) last[b][1] = add_dot(acc[b][1], both[b], w[b][1]);
        next[b][0] = add_dot(blocks == 1 ? bias : load(k[b].bias), both[b], w[b][0]);
    }
    interleave(is_unsigned, blocks, x->at[2] + at, x->at[3] + at, both);
#pragma GCC unroll 2
    for (int b = 0; b < blocks; b++) {
        if (!begins && stride == 1) last[b][1] = add_dot(last[b][1], both[b], w[b][2]);
        next[b][0] = add_dot(next[b][0], both[b], w[b][1]);
        if (stride == 1) next[b][1] = add_dot(bias, both[b], w[b][0]);
    }
    interleave(is_unsigned, blocks, x->at[4] + at, x->at[5] + at, both);
#pragma GCC unroll 2
    for (int b = 0; b < blocks; b++) {
        if (!begins) store(done + b * LANES, add_dot(last[b][0], both[b], w[b][4]));
        if (!begins && stride == 1) store(done + GROUP + b * LANES, add_dot(last[b][1], both[b], w[b][6]));
        acc[b][0] = add_dot(next[b][0], both[b], w[b][3]);
        if (stride == 1) acc[b][1] = add_dot(next[b][1], both[b], w[b][5]);
    }
}

/* A piece of a line of outputs: its pairs of columns, of which those in the middle lie in the image, one after the other. */
typedef struct {
    int64_t left, middle, right;
    pixels inside; /* the first of the middle */
} piece;

/* Of one line, or of several whole ones. */
typedef struct {
    int64_t count, lines;
    piece pieces[SHORT];
    pixels edges[MOST + 1]; /* of each line the left ones, then the right ones */
} job;

static pixels find(const plan *p, const uint8_t *const lines[3], int64_t column)
{
    const int64_t width = p->conv->window.in[p->along];
    pixels x;
    for (int i = 0; i < 6; i++) {
        const int64_t l = i < 4 ? i % 2 : 2, at = column + (i < 4 ? i / 2 : i - 4);
        x.at[i] = lines[l] && at >= 0 && at < width ? lines[l] + at * p->column : p->padding;
    }
    return x;
}

/* `count` positions of line y from x on. Returns the next place for edges. */
static pixels *find_piece(const plan *p, const uint8_t *image, int64_t y, int64_t x, int64_t count, piece *to, pixels *edges)
{
    const hwq_window *w = &p->conv->window;
    const uint8_t *lines[3];
    const int64_t stride = w->stride[p->along], width = w->in[p->along], first = x * stride - w->pad[p->along], pairs = 1 + (stride == 1 ? (count + 1) / 2 : count);
    for (int l = 0; l < 3; l++) {
        const int64_t line = y * w->stride[p->across] - w->pad[p->across] + l;
        lines[l] = line >= 0 && line < w->in[p->across] ? image + line * p->line : NULL;
    }
    to->left = first + 2 >= 0 ? 1 : (1 - first) / 2; /* the first pair always */
    if (to->left > pairs) to->left = pairs;
    const int64_t from = first + 2 * to->left, inside = lines[0] && lines[1] && lines[2] && from < width ? (width - from) / 2 : 0;
    to->middle = inside < pairs - to->left ? inside : pairs - to->left;
    to->right = pairs - to->left - to->middle;
    for (int64_t i = 0; i < to->left; i++) *edges++ = find(p, lines, first + 2 * i);
    for (int64_t i = 0; i < to->right; i++) *edges++ = find(p, lines, from + 2 * (to->middle + i));
    to->inside = find(p, lines, from);
    return edges;
}

/* The sums in the 8 or 16 channels from `channel` on. A line of an odd number ends with one sum too many, in the next one's place. */
static inline __attribute__((always_inline)) void multiply(const int is_unsigned, const int stride, const int blocks, const constants *k, const job *j, int64_t channel,
                                                           int64_t pixel, int32_t *sums)
{
    const pixels *edge = j->edges;
    const vector bias = load(k->bias); /* there is no register for those of two blocks */
    vector w[2][WEIGHTS], acc[2][2];
#pragma GCC unroll 2
    for (int b = 0; b < blocks; b++)
#pragma GCC unroll 7
        for (int i = 0; i < WEIGHTS; i++)
            if (stride == 1 || i < EVEN_WEIGHTS) w[b][i] = load(k[b].weights[i]);
    for (int64_t line = 0; line < j->lines; line++, sums += j->count * GROUP) {
        const piece *x = j->pieces + line;
        const pixels inside = x->inside;
        int32_t *to = sums;
#define NEXT(x, at) (two_columns(is_unsigned, stride, blocks, 0, w, bias, k, x, at, acc, to), to += GROUP * (3 - stride))
        two_columns(is_unsigned, stride, blocks, 1, w, bias, k, edge++, channel, acc, NULL);
        for (int64_t i = 1; i < x->left; i++) NEXT(edge++, channel);
#pragma GCC unroll 2
        for (int64_t i = 0, at = channel; i < x->middle; i++, at += 2 * pixel) NEXT(&inside, at);
        for (int64_t i = 0; i < x->right; i++) NEXT(edge++, channel);
    }
}

/* Of `left` blocks that lie side by side one, or two: with stride 2, whose 10 vectors of weights leave room for that, a load serves both. Returns how many. */
static int multiply_any(const plan *p, const constants *k, int64_t left, const job *j, int64_t channel, int32_t *sums)
{
    const int is_unsigned = p->conv->a_type == HWQ_U8, blocks = p->conv->window.stride[p->along] == 1 ? 0 : left > 1 ? 2 : 1;
    switch (3 * is_unsigned + blocks) {
    case 0: multiply(0, 1, 1, k, j, channel, p->column, sums); break;
    case 1: multiply(0, 2, 1, k, j, channel, p->column, sums); break;
    case 2: multiply(0, 2, 2, k, j, channel, p->column, sums); break;
    case 3: multiply(1, 1, 1, k, j, channel, p->column, sums); break;
    case 4: multiply(1, 2, 1, k, j, channel, p->column, sums); break;
    default: multiply(1, 2, 2, k, j, channel, p->column, sums);
    }
    return blocks == 2 ? 2 : 1;
}

/* ---- Requantization ---- */

/* R4 of 16 channels to int16, in the order that packing leaves. */
static inline __attribute__((always_inline)) vector to_words(const plan *p, const int32_t *sums, __m256 low, __m256 high)
{
    const vector a = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_cvtepi32_ps(load(sums)), low));
    const vector b = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_cvtepi32_ps(load(sums + LANES)), high));
    return _mm256_adds_epi16(_mm256_packs_epi32(a, b), p->zero_point);
}

/* `width` channels, 8, 16 or 32, of all positions. Of the sums that 8 do not have nothing is kept. */
static inline __attribute__((always_inline)) void requantize(const int width, const plan *given, const constants *k, const int32_t *sums, int64_t count, uint8_t *out,
                                                             int64_t step)
{
    const plan here = *given, *p = &here; /* the output cannot alias it */
    __m256 scales[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) scales[i] = _mm256_loadu_ps(k[i * LANES < width ? i : 0].scales);
    for (int64_t i = 0; i < count; i++, sums += GROUP, out += step) {
        const vector a = to_words(p, sums, scales[0], scales[1]), b = width == 32 ? to_words(p, sums + 16, scales[2], scales[3]) : a;
        const vector bytes = _mm256_xor_si256(_mm256_min_epi8(_mm256_max_epi8(_mm256_packs_epi16(a, b), p->lo), p->hi), p->flip);
        const vector in_order = _mm256_permutevar8x32_epi32(bytes, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
        if (width == 32) store(out, in_order);
        else if (width == 16) _mm_storeu_si128((__m128i *)out, _mm256_castsi256_si128(in_order));
        else _mm_storel_epi64((__m128i *)out, _mm256_castsi256_si128(in_order));
    }
}

static void requantize_any(const plan *p, const constants *k, int64_t width, const int32_t *sums, int64_t count, uint8_t *out, int64_t step)
{
    for (int64_t block = 0, at; block * LANES < width;) {
        at = block_start(width, block);
        if (width == GROUP) requantize(32, p, k, sums, count, out, step), block += 4;
        else if (at + 16 <= width) requantize(16, p, k + block, sums + at, count, out + at, step), block += 2;
        else requantize(8, p, k + block, sums + at, count, out + at, step), block++;
    }
}

/* ---- The image ---- */

/* Of `lines` lines of outputs `per_line` positions, from (y, x) on; all of the width if there are several. All channels. */
static void run(const plan *p, const uint8_t *image, int64_t number, int64_t y, int64_t x, int64_t lines, int64_t per_line)
{
    const hwq_conv *c = p->conv;
    const int64_t width_out = c->window.out[2], outputs = hwq_window_outputs(&c->window), size = hwq_type_size(p->epilogue->out_type), count = lines * per_line;
    const int64_t at = p->along == 2 ? y * width_out + x : x * width_out + y;
    job j;
    j.count = per_line, j.lines = lines;
    pixels *edges = j.edges;
    for (int64_t i = 0; i < lines; i++) edges = find_piece(p, image, y + i, x, per_line, j.pieces + i, edges);
    for (int64_t group = 0; group * GROUP < c->channels; group++) {
        const int64_t channel = group_start(c->channels, group), width = group_width(c->channels, group);
        const constants *k = p->constants + group * (GROUP / LANES);
        for (int64_t block = 0; block * LANES < width;) {
            const int64_t start = block_start(width, block);
            block += multiply_any(p, k + block, (width - start) / LANES, &j, channel + start, p->acc + start);
        }
        char *const out = c->layout == HWQ_NHWC ? (char *)c->out + ((number * outputs + at) * c->channels + channel) * size : p->tile;
        const int64_t step = c->layout == HWQ_NHWC ? c->channels : GROUP;
        if (p->along != 2)
            for (int64_t i = 0; i < lines; i++) requantize_any(p, k, width, p->acc + i * per_line * GROUP, per_line, (uint8_t *)out + i * step, step * width_out);
        else if (p->fused) requantize_any(p, k, width, p->acc, count, (uint8_t *)out, step);
        else hwq_requantize(p->epilogue, count, width, channel, p->acc, HWQ_S32, GROUP, out, step);
        if (c->layout != HWQ_NHWC) hwq_transpose(size, count, width, out, GROUP, (char *)c->out + ((number * c->channels + channel) * outputs + at) * size, outputs);
    }
}

/* Positions [begin, end) of one image; of a turned one they are all. */
static void drive(const void *given, const uint8_t *image, int64_t number, int64_t begin, int64_t end)
{
    const plan *p = given;
    const int64_t width = p->conv->window.out[p->along];
    while (begin < end) {
        const int64_t x = begin % width, whole = x == 0 ? (end - begin) / width : 0;
        int64_t count = width - x < MOST ? width - x : MOST, lines = SHORT / width < whole ? SHORT / width : whole;
        if (count > end - begin) count = end - begin;
        if (lines < 1) lines = 1;
        run(p, image, number, begin / width, x, lines, count);
        begin += lines * count;
    }
}

static int scales_below_one(const hwq_epilogue *e, int64_t channels)
{
    int below = 1;
    for (int64_t i = 0; i < (e->channel_step ? channels : 1); i++) below &= e->scales_f32[i] > -1.0f && e->scales_f32[i] < 1.0f;
    return below;
}

void hwq_depthwise_3x3__avx2(const hwq_conv *c)
{
    const hwq_depthwise_shape shape = hwq_depthwise_measure(c);
    hwq_epilogue epilogue = *c->epilogue;
    epilogue.residual_op = NULL;
    plan p = {.conv = c, .epilogue = &epilogue};
    p.fused = epilogue.kind == HWQ_KIND_REQUANT && epilogue.rounding == HWQ_ROUND_FP32 && epilogue.out_type <= HWQ_S8 && !epilogue.float_bias && !epilogue.lut &&
              scales_below_one(&epilogue, c->channels);
    /* A line costs a pair of columns more than it has outputs: of small images take the longer ones. */
    const hwq_window *w = &c->window;
    const int64_t outputs = hwq_window_outputs(w);
    const int turned = p.fused && c->layout == HWQ_NHWC && w->out[2] < SHORT / 2 && w->out[2] < w->out[1] && c->first % outputs == 0 && c->last % outputs == 0;
    p.along = turned ? 1 : 2, p.across = turned ? 2 : 1;
    p.column = turned ? w->in[2] * c->channels : c->channels, p.line = turned ? c->channels : w->in[2] * c->channels;
    const int flip = epilogue.out_type == HWQ_U8 ? 0x80 : 0;
    p.zero_point = _mm256_set1_epi16((short)(epilogue.zero_point - flip)), p.flip = _mm256_set1_epi8((char)flip);
    p.lo = _mm256_set1_epi8((char)(epilogue.lo - flip)), p.hi = _mm256_set1_epi8((char)(epilogue.hi - flip));
    char *at = (char *)c->workspace + (c->layout == HWQ_NCHW ? hwq_align(hwq_window_inputs(&c->window) * c->channels) : 0);
    p.constants = (constants *)at, at += shape.weights;
    p.padding = (uint8_t *)at, at += shape.padding;
    p.acc = (int32_t *)at, at += shape.acc;
    p.tile = at;
    memset(p.padding, c->a_zero_point & 0xFF, (size_t)c->channels);
    for (int64_t group = 0; group * GROUP < c->channels; group++) {
        const int64_t width = group_width(c->channels, group);
        for (int64_t block = 0; block * LANES < width; block++)
            prepare(&p, group_start(c->channels, group) + block_start(width, block), p.constants + group * (GROUP / LANES) + block);
    }
    hwq_conv_images(c, drive, &p);
}

HWQ_TARGET_END
#endif
