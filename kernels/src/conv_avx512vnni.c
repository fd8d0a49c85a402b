/* Convolution straight from the image on vpdpbusd: no gathered rows. Channel-last, weights without zero points; what is
 * else runs as blocks of GEMM.
 *
 * The packed order of k is (row of the kernel, tap, channel), so the bytes of one row of the kernel lie together both in the
 * weights and in the image: a *run*. A tile holds up to 12 neighboring output positions x 32 channels in 24 registers; each
 * quad of a run is one load of weights and one broadcast of 4 image bytes per position. The image is copied, block by block
 * of output rows, only where padding must be filled in, where s8 must be flipped to u8, or where runs are no multiple of 4
 * bytes: then weights are copied too, runs padded with 0, so that what is read behind a run counts nothing.
 *
 *   sum (a - za) w = sum a*w - za * colsum(w)     (padding holds za)
 *
 * Bounds: one step adds at most 4 * 255 * 128 < 2^17 in size to an int32 lane; every sum is modulo 2^32, as ref's.
 * Measured on a Cascade Lake Xeon, one thread, gcc 12, int8 in, R4 to bytes through Python, in shares of the register-only loop timed
 * between the calls ("int8-avx512vnni", 215 GMAC/s where nothing shared the core): 97 percent at 3 x 3 stride 2, 56 x 56 x 64 -> 128;
 * 1 x 1: 94 (14 x 14 x 256 -> 1024), 91 (7 x 7 x 512 -> 2048), 56 (56 x 56 x 64 -> 64, whose k of 64 hardly repays a tile's way out). */
#include "conv.h"
#include "epilogue.h"
#include "isa.h"
#include "window.h"

enum { TILE = 12, FLAT = 48, BLOCK_BYTES = 1 << 17, WIDE = 2 * HWQ_STRIP, SLACK = 64 };

/* A convolution as runs. `wide`: output positions in a row; pointwise ones are one dense line, cut into rows at will. */
typedef struct {
    int64_t wide, high;             /* rows of output positions */
    int64_t runs, run, quads;       /* runs per position, bytes and quads of each */
    int64_t in_row, step, row_step; /* bytes: an input row; between neighboring positions; between output rows */
    int64_t rows;                   /* output rows of a block */
    int64_t image_bytes, weight_bytes; /* workspace */
    int flat, copied, repacked;
} plan;

static int plan_of(const hwq_conv *c, plan *p)
{
    const hwq_window *w = &c->window;
    const int64_t depth = c->channels / c->groups;
    const int whole = c->groups == 1 && w->dilation[2] == 1;
    if (c->layout != HWQ_NHWC || c->a_type == HWQ_F32 || c->depthwise || c->weights->zero_points || w->kernel[0] != 1 || w->in[0] != 1 ||
        w->out[0] != 1 || w->pad[0] || c->channels == 0)
        return 0;
    if (!whole && depth % HWQ_QUAD) return 0;
    const int padded = w->pad[1] || w->pad[2] || (w->out[1] - 1) * w->stride[1] + (w->kernel[1] - 1) * w->dilation[1] >= w->in[1] ||
                       (w->out[2] - 1) * w->stride[2] + (w->kernel[2] - 1) * w->dilation[2] >= w->in[2];
    p->runs = whole ? w->kernel[1] : w->kernel[1] * w->kernel[2];
    p->run = whole ? w->kernel[2] * depth : depth;
    p->quads = (p->run + HWQ_QUAD - 1) / HWQ_QUAD;
    p->repacked = p->run % HWQ_QUAD != 0;
    p->copied = padded || c->a_type == HWQ_S8 || p->repacked;
    p->flat = !padded && !p->repacked && w->kernel[1] == 1 && w->kernel[2] == 1 && w->stride[1] == 1 && w->stride[2] == 1 &&
              w->in[1] == w->out[1] && w->in[2] == w->out[2];
    p->wide = p->flat ? FLAT : w->out[2];
    p->high = p->flat ? (w->out[1] * w->out[2] + FLAT - 1) / FLAT : w->out[1];
    p->step = w->stride[2] * c->channels;
    const int64_t columns = p->copied ? (w->out[2] - 1) * w->stride[2] + (w->kernel[2] - 1) * w->dilation[2] + 1 : w->in[2];
    p->in_row = columns * c->channels;
    p->row_step = p->flat ? FLAT * c->channels : p->in_row * w->stride[1];
    p->rows = p->row_step && BLOCK_BYTES / p->row_step > 1 ? BLOCK_BYTES / p->row_step : 1;
    if (p->rows > p->high) p->rows = p->high;
    const int64_t in_rows = (p->rows - 1) * w->stride[1] + (w->kernel[1] - 1) * w->dilation[1] + 1;
    p->image_bytes = p->copied ? hwq_align((p->flat ? p->rows * p->row_step : in_rows * p->in_row) + SLACK) : 0;
    p->weight_bytes = p->repacked ? (c->weights->n + HWQ_STRIP - 1) / HWQ_STRIP * p->runs * p->quads * HWQ_STRIP * HWQ_QUAD : 0;
    return 1;
}

int64_t hwq_conv_direct_workspace(const hwq_conv *conv)
{
    plan p;
    return plan_of(conv, &p) ? p.image_bytes + p.weight_bytes + hwq_align(conv->window.kernel[1] * conv->window.kernel[2] * 8) : 0;
}

#if HWQ_X86
#include <immintrin.h>
#include <string.h>

HWQ_TARGET("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")

/* How a tile leaves: in registers where it is R4 to bytes, the common case; else by the epilogue of the path. */
typedef struct {
    const hwq_epilogue *epilogue;
    const float *scales; /* of the tile's first column */
    int64_t channel, width, stride;
    __m512 lo, hi;
    __m512i zero_point, lo_bytes, zero_point_words;
    int fast, is_unsigned;
} finish;

/* gcc 12 copies the accumulator around the intrinsic. */
#if defined(__GNUC__) && !HWQ_EMULATE
static inline __attribute__((always_inline)) __m512i dot(__m512i acc, __m512i a, __m512i w)
{
    __asm__("vpdpbusd %[w], %[a], %[c]" : [c] "+v"(acc) : [a] "v"(a), [w] "v"(w));
    return acc;
}
#else
#define dot _mm512_dpbusd_epi32
#endif

static inline __attribute__((always_inline)) __m512i four(const uint8_t *a)
{
    int32_t bytes;
    memcpy(&bytes, a, 4);
    return _mm512_set1_epi32(bytes);
}

/* Two positions of 32 channels by R4. Only the upper clamp is needed in floats: minps leaves NaN, which like all that is below int32
 * becomes INT32_MIN, and packing saturates that down to the lower clamp's side. */
static inline __attribute__((always_inline)) __m512i round32(const finish *f, const __m512i acc[2])
{
    const float *scales = f->scales;
    const int step = f->epilogue->channel_step;
    const __m512 first = _mm512_mul_ps(_mm512_cvtepi32_ps(acc[0]), step ? _mm512_loadu_ps(scales) : _mm512_set1_ps(scales[0]));
    const __m512 second = _mm512_mul_ps(_mm512_cvtepi32_ps(acc[1]), step ? _mm512_loadu_ps(scales + HWQ_STRIP) : _mm512_set1_ps(scales[0]));
    const __m512i words = _mm512_packs_epi32(_mm512_cvtps_epi32(_mm512_min_ps(f->hi, first)), _mm512_cvtps_epi32(_mm512_min_ps(f->hi, second)));
    return _mm512_adds_epi16(words, f->zero_point_words);
}

static inline __attribute__((always_inline)) void put_two(const finish *f, const __m512i above[2], const __m512i below[2], int both, char *out)
{
    const __m512i a = round32(f, above), b = both ? round32(f, below) : a, order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    const __m512i bytes = f->is_unsigned ? _mm512_max_epu8(_mm512_packus_epi16(a, b), f->lo_bytes) : _mm512_max_epi8(_mm512_packs_epi16(a, b), f->lo_bytes);
    const __m512i lines = _mm512_permutexvar_epi32(order, bytes);
    _mm256_storeu_si256((__m256i *)out, _mm512_castsi512_si256(lines));
    if (both) _mm256_storeu_si256((__m256i *)(out + f->stride), _mm512_extracti64x4_epi64(lines, 1));
}

/* positions x vectors of 16 channels. */
static inline __attribute__((always_inline)) void tile(const int positions, const int vectors, const plan *p, const uint8_t *a,
                                                       const int64_t *offsets, const int8_t *w, int64_t strip_bytes, const int32_t *terms,
                                                       const finish *f, char *out)
{
    __m512i acc_s32x16[TILE][2];
#pragma GCC unroll 2
    for (int v = 0; v < vectors; v++)
#pragma GCC unroll 12
        for (int i = 0; i < positions; i++) acc_s32x16[i][v] = _mm512_loadu_si512(terms + v * HWQ_STRIP);
    const int64_t step = p->step;
    for (int64_t r = 0; r < p->runs; r++) {
        const uint8_t *threes[(TILE + 2) / 3]; /* a pointer serves three positions: plain, + step, + 2 steps */
#pragma GCC unroll 4
        for (int i = 0; i < positions; i += 3) threes[i / 3] = a + offsets[r] + i * step;
        for (int64_t q = 0; q < p->quads; q++, w += HWQ_STRIP * HWQ_QUAD) {
            const __m512i w0 = _mm512_loadu_si512(w), w1 = vectors > 1 ? _mm512_loadu_si512(w + strip_bytes) : w0;
#pragma GCC unroll 12
            for (int i = 0; i < positions; i++) {
                const __m512i x = four(threes[i / 3] + i % 3 * step);
                acc_s32x16[i][0] = dot(acc_s32x16[i][0], x, w0);
                if (vectors > 1) acc_s32x16[i][1] = dot(acc_s32x16[i][1], x, w1);
            }
#pragma GCC unroll 4
            for (int i = 0; i < positions; i += 3) threes[i / 3] += HWQ_QUAD;
        }
    }
    if (!f->fast) {
        int32_t block[TILE * WIDE];
#pragma GCC unroll 12
        for (int i = 0; i < positions; i++)
#pragma GCC unroll 2
            for (int v = 0; v < vectors; v++) _mm512_storeu_si512(block + (i * vectors + v) * HWQ_STRIP, acc_s32x16[i][v]);
        hwq_requantize(f->epilogue, positions, f->width, f->channel, block, HWQ_S32, vectors * HWQ_STRIP, out, f->stride);
        return;
    }
    if (vectors == 2 && f->width == WIDE) {
        const finish here = *f; /* the output cannot alias it */
#pragma GCC unroll 6
        for (int i = 0; i < positions; i += 2)
            put_two(&here, acc_s32x16[i], acc_s32x16[i + 1 < positions ? i + 1 : i], i + 1 < positions, out + i * here.stride);
        return;
    }
#pragma GCC unroll 2
    for (int v = 0; v < vectors; v++) {
        const int64_t left = f->width - v * HWQ_STRIP;
        const __mmask16 mask = (__mmask16)(left >= HWQ_STRIP ? 0xFFFF : (1 << left) - 1);
        const __m512 scale = f->epilogue->channel_step ? _mm512_maskz_loadu_ps(mask, f->scales + v * HWQ_STRIP) : _mm512_set1_ps(f->scales[0]);
#pragma GCC unroll 12
        for (int i = 0; i < positions; i++) {
            const __m512 x = _mm512_mul_ps(_mm512_cvtepi32_ps(acc_s32x16[i][v]), scale);
            const __m512i y = _mm512_cvtps_epi32(_mm512_min_ps(_mm512_max_ps(x, f->lo), f->hi));
            const __m128i bytes = _mm512_cvtepi32_epi8(_mm512_add_epi32(y, f->zero_point));
            _mm_mask_storeu_epi8(out + i * f->stride + v * HWQ_STRIP, mask, bytes);
        }
    }
}

#define CASE(n) case n: if (vectors > 1) tile(n, 2, p, a, offsets, w, strip_bytes, terms, f, out); else tile(n, 1, p, a, offsets, w, strip_bytes, terms, f, out); break;
static void some(int64_t positions, int vectors, const plan *p, const uint8_t *a, const int64_t *offsets, const int8_t *w, int64_t strip_bytes,
                 const int32_t *terms, const finish *f, char *out)
{
    switch (positions) { CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6) CASE(7) CASE(8) CASE(9) CASE(10) CASE(11) default: CASE(12) }
}

/* n bytes, their signs flipped. */
static void flip_bytes(const uint8_t *from, int64_t n, uint8_t *to)
{
    const __m512i flip = _mm512_set1_epi8((char)0x80);
    for (int64_t i = 0; i < n; i += 64) {
        const __mmask64 mask = n - i >= 64 ? ~(__mmask64)0 : ((__mmask64)1 << (n - i)) - 1;
        _mm512_mask_storeu_epi8(to + i, mask, _mm512_xor_si512(_mm512_maskz_loadu_epi8(mask, from + i), flip));
    }
}

/* Output rows [top, bottom) need input rows [top * stride - pad, ...): padding filled, signs flipped. */
static void copy_image(const hwq_conv *c, const plan *p, const uint8_t *image, int64_t top, int64_t bottom, uint8_t fill, uint8_t *to)
{
    const hwq_window *w = &c->window;
    const int64_t rows = (bottom - 1 - top) * w->stride[1] + (w->kernel[1] - 1) * w->dilation[1] + 1, row_bytes = w->in[2] * c->channels;
    const int64_t before = w->pad[2] * c->channels < p->in_row ? w->pad[2] * c->channels : p->in_row;
    const int64_t inside = p->in_row - before < row_bytes ? p->in_row - before : row_bytes;
    if (p->flat) {
        const int64_t positions = w->out[1] * w->out[2], last = bottom * p->wide < positions ? bottom * p->wide : positions;
        flip_bytes(image + top * p->wide * c->channels, (last - top * p->wide) * c->channels, to);
        return;
    }
    for (int64_t r = 0; r < rows; r++, to += p->in_row) {
        const int64_t y = top * w->stride[1] - w->pad[1] + r;
        if (y < 0 || y >= w->in[1]) {
            memset(to, fill, (size_t)p->in_row);
            continue;
        }
        const uint8_t *from = image + y * row_bytes;
        memset(to, fill, (size_t)before);
        if (c->a_type == HWQ_U8) memcpy(to + before, from, (size_t)inside);
        else flip_bytes(from, inside, to + before);
        memset(to + before + inside, fill, (size_t)(p->in_row - before - inside));
    }
}

/* Weights of one group (there is one) with every run padded to whole quads. */
static void copy_weights(const hwq_packed *w, const plan *p, int8_t *to)
{
    const int64_t strips = (w->n + HWQ_STRIP - 1) / HWQ_STRIP, k4 = (w->k + 3) / 4 * 4, strip_bytes = p->runs * p->quads * HWQ_STRIP * HWQ_QUAD;
    memset(to, 0, (size_t)(strips * strip_bytes));
    for (int64_t s = 0; s < strips; s++, to += strip_bytes)
        for (int64_t r = 0; r < p->runs; r++)
            for (int64_t i = 0; i < p->run; i++) {
                const int64_t k = r * p->run + i;
                const int8_t *from = w->quads + s * k4 * HWQ_STRIP + k / HWQ_QUAD * HWQ_STRIP * HWQ_QUAD + k % HWQ_QUAD;
                int8_t *at = to + (r * p->quads + i / HWQ_QUAD) * HWQ_STRIP * HWQ_QUAD + i % HWQ_QUAD;
                for (int j = 0; j < HWQ_STRIP; j++) at[j * HWQ_QUAD] = from[j * HWQ_QUAD];
            }
}

/* Columns [column, column + width) of a group on output rows [top, bottom); positions outside [begin, end) are left out. */
static void block(const hwq_conv *c, const plan *p, const uint8_t *image, int64_t image_top, const int64_t *offsets, const int8_t *weights,
                  int64_t strip_bytes, int64_t channel, int64_t width, uint32_t za, finish *f, int64_t top, int64_t bottom, int64_t begin,
                  int64_t end, char *out)
{
    int32_t terms[WIDE] = {0};
    for (int64_t j = 0; j < width; j++)
        terms[j] = (int32_t)((c->bias ? (uint32_t)c->bias[channel + j] : 0) - za * (uint32_t)c->weights->column_sums[channel + j]);
    const int64_t size = hwq_type_size(f->epilogue->out_type);
    f->channel = channel, f->width = width;
    f->scales = f->epilogue->scales_f32 ? f->epilogue->scales_f32 + (f->epilogue->channel_step ? channel : 0) : NULL;
    for (int64_t y = top; y < bottom; y++) {
        int64_t x = y * p->wide < begin ? begin - y * p->wide : 0;
        const int64_t last = end - y * p->wide < p->wide ? end - y * p->wide : p->wide;
        if (x >= last) continue;
        const int64_t tiles = (last - x + TILE - 1) / TILE, each = (last - x + tiles - 1) / tiles;
        for (; x < last; x += each)
            some(last - x < each ? last - x : each, width > HWQ_STRIP ? 2 : 1, p, image + (y - image_top) * p->row_step + x * p->step, offsets,
                 weights, strip_bytes, terms, f, out + ((y * p->wide + x) * c->out_channels + channel) * size);
    }
}

static void convolve(const hwq_conv *c, const plan *p)
{
    const hwq_window *w = &c->window;
    const hwq_packed *packed = c->weights;
    const int64_t outputs = hwq_window_outputs(w), inputs = hwq_window_inputs(w), n = packed->n, depth = c->channels / c->groups;
    const uint8_t flip = c->a_type == HWQ_S8 ? 0x80 : 0, za = (uint8_t)(c->a_zero_point + flip);
    uint8_t *copy = c->workspace;
    int8_t *repacked = (int8_t *)copy + p->image_bytes;
    int64_t *offsets = (int64_t *)(repacked + p->weight_bytes);
    for (int64_t r = 0; r < p->runs; r++) {
        const int64_t columns = p->runs / w->kernel[1]; /* 1, or the kernel's taps in a row */
        offsets[r] = r / columns * w->dilation[1] * p->in_row + r % columns * w->dilation[2] * c->channels;
    }
    if (p->repacked) copy_weights(packed, p, repacked);
    const int64_t strip_bytes = p->runs * p->quads * HWQ_STRIP * HWQ_QUAD;
    hwq_epilogue e = *c->epilogue;
    e.lut = NULL, e.residual_op = NULL;
    finish f = {.epilogue = &e, .stride = c->out_channels, .lo = _mm512_set1_ps((float)(e.lo - e.zero_point)),
                .hi = _mm512_set1_ps((float)(e.hi - e.zero_point)), .zero_point = _mm512_set1_epi32(e.zero_point),
                .lo_bytes = _mm512_set1_epi8((char)e.lo), .zero_point_words = _mm512_set1_epi16((short)e.zero_point), .is_unsigned = e.out_type == HWQ_U8,
                .fast = e.kind == HWQ_KIND_REQUANT && e.rounding == HWQ_ROUND_FP32 && e.out_type <= HWQ_S8 && !e.float_bias};
    const int64_t size = hwq_type_size(e.out_type);
    for (int64_t at = c->first; at < c->last;) {
        const int64_t number = at / outputs, begin = at % outputs, end = c->last - at + begin < outputs ? c->last - at + begin : outputs;
        const uint8_t *image = (const uint8_t *)c->x + number * inputs * c->channels;
        char *out = (char *)c->out + number * outputs * c->out_channels * size;
        for (int64_t top = begin / p->wide; top * p->wide < end; top += p->rows) {
            const int64_t stop = (end + p->wide - 1) / p->wide, bottom = top + p->rows < stop ? top + p->rows : stop;
            if (p->copied) copy_image(c, p, image, top, bottom, za, copy);
            for (int64_t group = 0; group < c->groups; group++) {
                const uint8_t *from = (p->copied ? copy : image) + group * depth;
                const int8_t *weights = p->repacked ? repacked : packed->quads + group * hwq_packed_bytes(packed->k, n);
                for (int64_t column = 0; column < n; column += WIDE)
                    block(c, p, from, p->copied ? top : 0, offsets, weights + column / HWQ_STRIP * strip_bytes, strip_bytes, group * n + column,
                          n - column < WIDE ? n - column : WIDE, za, &f, top, bottom, begin, end, out);
            }
        }
        if (c->epilogue->lut) {
            uint8_t *line = (uint8_t *)out + begin * c->out_channels;
            hwq_lut((end - begin) * c->out_channels, line, e.out_type == HWQ_S8 ? 0x80 : 0, c->epilogue->lut, line);
        }
        if (c->epilogue->residual_op) hwq_conv_residual(c, number, begin, end);
        at += end - begin;
    }
}

void hwq_conv_s32__avx512vnni(const hwq_conv *conv)
{
    plan p;
    if (plan_of(conv, &p)) convolve(conv, &p);
    else hwq_conv_s32__avx2(conv);
}

HWQ_TARGET_END
#endif
