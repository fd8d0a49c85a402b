/* Depthwise convolution of bytes, 16 channels at a time, channel-last (channel-first images are turned in the workspace).
 *
 * Two taps meet in one vpmaddwd: their channels stand interleaved, (x of tap a, x of tap b), against (w of a, w of b). Inputs
 * are taken as they are, |x| <= 255, weights less their zero point, |w - zw| <= 255: a pair is below 2^17. The activations' zero
 * point is a constant of each channel, za * sum (w - zw), because padding holds it too; it goes into the bias, modulo 2^32.
 * 3 x 3 with stride and dilation 1 slides along x: a column is loaded, widened and interleaved once and serves three outputs,
 * (row 0, row 1) in one pair, row 2 with its neighbor in another: 10 vpmaddwd, 10 vpaddd, 3 loads, 4 unpacks for 144 MACs.
 * R4 to bytes is finished in registers; the unpacked halves (channels 0-3, 8-11 and 4-7, 12-15) are just what packing undoes. */
#include "depthwise.h"

#include "epilogue.h"
#include "isa.h"

#if HWQ_X86
#include <immintrin.h>
#include <string.h>

HWQ_TARGET("avx2,fma")

enum { LANES = HWQ_DEPTHWISE_LANES };

typedef struct {
    const hwq_conv *conv;
    hwq_depthwise_shape shape;
    int64_t block_count, padded;
    int fused, slides;       /* the epilogue is done in registers; the 3 x 3 driver runs */
    __m256 lo, hi;           /* of the fused epilogue, less the zero point */
    __m256i zero_point;      /* int16 */
    int16_t *weights;        /* [block][pair][16 channels][2], halves as unpacked */
    int32_t *constants;      /* [block][bias of 16 channels, then float scales of 16], halves as unpacked */
    uint8_t *padding;
    int32_t *acc;
    char *tile;
    const uint8_t **pointers;
    int64_t *offsets;
} plan;

/* First channel of a block: the last block ends at the last channel, and overlaps the one before. */
static inline int64_t block_start(int64_t channels, int64_t block)
{
    return channels < LANES ? 0 : block * LANES + LANES > channels ? channels - LANES : block * LANES;
}

/* Place of channel i among 16 in a pair of unpacked halves. */
static inline int place(int i) { return (i & 3) + (i & 8) / 2 + (i & 4) * 2; }

static void prepare(const plan *p)
{
    const hwq_conv *c = p->conv;
    const int64_t taps = hwq_window_taps(&c->window);
    static const int sliding[5][2] = {{0, 3}, {1, 4}, {2, 5}, {6, 7}, {-1, 8}};
    for (int64_t block = 0; block < p->block_count; block++) {
        const int64_t at = block_start(c->channels, block);
        for (int i = 0; i < LANES; i++) {
            const int64_t channel = at + i;
            const int inside = channel < c->channels;
            uint32_t sum = 0;
            for (int64_t pair = 0; pair < p->shape.pairs; pair++)
                for (int j = 0; j < 2; j++) {
                    const int64_t tap = p->slides ? sliding[pair][j] : 2 * pair + j;
                    const int16_t w = inside && tap >= 0 && tap < taps ? c->taps_s16[tap * c->channels + channel] : 0;
                    p->weights[((block * p->shape.pairs + pair) * LANES + place(i)) * 2 + j] = w;
                    sum += (uint32_t)w;
                }
            int32_t *to = p->constants + block * LANES * 2;
            to[place(i)] = (int32_t)((inside && c->bias ? (uint32_t)c->bias[channel] : 0) - (uint32_t)c->a_zero_point * sum);
            const float scale = p->fused && inside ? c->epilogue->scales_f32[c->epilogue->channel_step ? channel : 0] : 0.0f;
            memcpy(to + LANES + place(i), &scale, 4);
        }
    }
}

static inline __attribute__((always_inline)) __m256i load16(const uint8_t *x, const int is_unsigned, int64_t left)
{
    uint8_t tail[16] = {0};
    if (left < LANES) x = memcpy(tail, x, (size_t)left);
    const __m128i bytes = _mm_loadu_si128((const __m128i *)x);
    return is_unsigned ? _mm256_cvtepu8_epi16(bytes) : _mm256_cvtepi8_epi16(bytes);
}

/* One position's 16 channels: to bytes, or to accumulators in order. */
static inline __attribute__((always_inline)) void finish(const plan *p, const int fused, const int32_t *constants, __m256i low, __m256i high, int64_t left,
                                                         uint8_t *out, int32_t *acc)
{
    if (fused) {
        const float *scales = (const float *)(constants + LANES);
        __m256 first = _mm256_mul_ps(_mm256_cvtepi32_ps(low), _mm256_loadu_ps(scales)), second = _mm256_mul_ps(_mm256_cvtepi32_ps(high), _mm256_loadu_ps(scales + 8));
        first = _mm256_min_ps(_mm256_max_ps(first, p->lo), p->hi);
        second = _mm256_min_ps(_mm256_max_ps(second, p->lo), p->hi);
        const __m256i words = _mm256_add_epi16(_mm256_packs_epi32(_mm256_cvtps_epi32(first), _mm256_cvtps_epi32(second)), p->zero_point);
        const __m128i one = _mm256_castsi256_si128(words), two = _mm256_extracti128_si256(words, 1);
        const __m128i bytes = p->conv->epilogue->out_type == HWQ_U8 ? _mm_packus_epi16(one, two) : _mm_packs_epi16(one, two);
        if (left >= LANES) {
            _mm_storeu_si128((__m128i *)out, bytes);
        } else {
            uint8_t tail[16];
            _mm_storeu_si128((__m128i *)tail, bytes);
            memcpy(out, tail, (size_t)left);
        }
        return;
    }
    _mm_storeu_si128((__m128i *)acc, _mm256_castsi256_si128(low));
    _mm_storeu_si128((__m128i *)(acc + 4), _mm256_castsi256_si128(high));
    _mm_storeu_si128((__m128i *)(acc + 8), _mm256_extracti128_si256(low, 1));
    _mm_storeu_si128((__m128i *)(acc + 12), _mm256_extracti128_si256(high, 1));
}

#define LOAD(p) _mm256_loadu_si256((const __m256i *)(p))
#define PAIR(low, high, a, b, i)                                                                                              \
    do {                                                                                                                      \
        low = _mm256_add_epi32(low, _mm256_madd_epi16(a, LOAD(w + 32 * (i))));                                                \
        high = _mm256_add_epi32(high, _mm256_madd_epi16(b, LOAD(w + 32 * (i) + 16)));                                         \
    } while (0)

/* `count` outputs of one block along a row; rows[r]: pixel 0 of the input row under kernel row r, or NULL in the padding. */
static inline __attribute__((always_inline)) void slide(const plan *p, const int is_unsigned, const int fused, const uint8_t *const rows[3], int64_t column,
                                                        int64_t count, int64_t block, uint8_t *out, int32_t *acc)
{
    const int64_t channels = p->conv->channels, at = block_start(channels, block), width = p->conv->window.in[2];
    const int16_t *w = p->weights + block * p->shape.pairs * LANES * 2;
    const int32_t *constants = p->constants + block * LANES * 2;
    __m256i a0 = _mm256_setzero_si256(), b0 = a0, a1 = a0, b1 = a0, i1 = a0, j1 = a0, last = a0;
    for (int64_t i = -2; i < count; i++, column++) {
        const int inside = column >= 0 && column < width;
        const uint8_t *x0 = (inside && rows[0] ? rows[0] + column * channels : p->padding) + at;
        const uint8_t *x1 = (inside && rows[1] ? rows[1] + column * channels : p->padding) + at;
        const uint8_t *x2 = (inside && rows[2] ? rows[2] + column * channels : p->padding) + at;
        const __m256i d0 = load16(x0, is_unsigned, LANES), d1 = load16(x1, is_unsigned, LANES), d2 = load16(x2, is_unsigned, LANES);
        const __m256i a2 = _mm256_unpacklo_epi16(d0, d1), b2 = _mm256_unpackhi_epi16(d0, d1);
        const __m256i i2 = _mm256_unpacklo_epi16(last, d2), j2 = _mm256_unpackhi_epi16(last, d2);
        if (i >= 0) {
            __m256i low = LOAD(constants), high = LOAD(constants + 8);
            PAIR(low, high, a0, b0, 0);
            PAIR(low, high, a1, b1, 1);
            PAIR(low, high, a2, b2, 2);
            PAIR(low, high, i1, j1, 3);
            PAIR(low, high, i2, j2, 4);
            finish(p, fused, constants, low, high, LANES, out + i * channels + at, acc + i * p->padded + at);
        }
        a0 = a1, b0 = b1, a1 = a2, b1 = b2, i1 = i2, j1 = j2, last = d2;
    }
}

/* All channels of one position, from its taps' pixels. */
static inline __attribute__((always_inline)) void position(const plan *p, const int is_unsigned, const int fused, uint8_t *out, int32_t *acc)
{
    const int64_t channels = p->conv->channels, pairs = p->shape.pairs;
    const uint8_t *const *x = p->pointers;
    const int16_t *w = p->weights;
    for (int64_t block = 0; block < p->block_count; block++, w += pairs * LANES * 2) {
        const int64_t at = block_start(channels, block), left = channels - at;
        const int32_t *constants = p->constants + block * LANES * 2;
        __m256i low = LOAD(constants), high = LOAD(constants + 8);
        if (left >= LANES) {
            for (int64_t i = 0; i < pairs; i++) {
                const __m256i a = load16(x[2 * i] + at, is_unsigned, LANES), b = load16(x[2 * i + 1] + at, is_unsigned, LANES);
                PAIR(low, high, _mm256_unpacklo_epi16(a, b), _mm256_unpackhi_epi16(a, b), i);
            }
        } else {
            for (int64_t i = 0; i < pairs; i++) {
                const __m256i a = load16(x[2 * i], is_unsigned, left), b = load16(x[2 * i + 1], is_unsigned, left);
                PAIR(low, high, _mm256_unpacklo_epi16(a, b), _mm256_unpackhi_epi16(a, b), i);
            }
        }
        finish(p, fused, constants, low, high, left, out + at, acc + at);
    }
}

/* `count` outputs of one row of outputs, all channels. origin: of the first. */
static inline __attribute__((always_inline)) void run(const plan *p, const int is_unsigned, const int fused, const uint8_t *image, const int64_t origin[3],
                                                      int64_t count, uint8_t *out, int32_t *acc)
{
    const hwq_conv *c = p->conv;
    const hwq_window *w = &c->window;
    const int64_t row_bytes = w->in[2] * c->channels;
    if (p->slides) {
        const uint8_t *rows[3];
        for (int r = 0; r < 3; r++) rows[r] = origin[1] + r >= 0 && origin[1] + r < w->in[1] ? image + (origin[1] + r) * row_bytes : NULL;
        for (int64_t block = 0; block < p->block_count; block++) slide(p, is_unsigned, fused, rows, origin[2], count, block, out, acc);
        return;
    }
    int64_t here[3] = {origin[0], origin[1], origin[2]};
    int whole_rows = 1;
    for (int d = 0; d < 2; d++) whole_rows &= here[d] >= 0 && here[d] + (w->kernel[d] - 1) * w->dilation[d] < w->in[d];
    const int64_t taps = hwq_window_taps(w), reach = (w->kernel[2] - 1) * w->dilation[2];
    for (int64_t i = 0; i < count; i++, here[2] += w->stride[2], out += c->channels, acc += p->padded) {
        if (whole_rows && here[2] >= 0 && here[2] + reach < w->in[2]) {
            const uint8_t *base = image + ((here[0] * w->in[1] + here[1]) * w->in[2] + here[2]) * c->channels;
            for (int64_t t = 0; t < taps; t++) p->pointers[t] = base + p->offsets[t];
        } else {
            int64_t t = 0;
            for (int64_t t0 = 0; t0 < w->kernel[0]; t0++)
                for (int64_t t1 = 0; t1 < w->kernel[1]; t1++)
                    for (int64_t t2 = 0; t2 < w->kernel[2]; t2++, t++) {
                        const int64_t pixel = hwq_window_pixel(w, here, t0, t1, t2);
                        p->pointers[t] = pixel < 0 ? p->padding : image + pixel * c->channels;
                    }
        }
        position(p, is_unsigned, fused, out, acc);
    }
}

static void run_any(const plan *p, const uint8_t *image, const int64_t origin[3], int64_t count, uint8_t *out)
{
    if (p->conv->a_type == HWQ_U8) {
        if (p->fused) run(p, 1, 1, image, origin, count, out, p->acc);
        else run(p, 1, 0, image, origin, count, out, p->acc);
    } else {
        if (p->fused) run(p, 0, 1, image, origin, count, out, p->acc);
        else run(p, 0, 0, image, origin, count, out, p->acc);
    }
}

/* Positions [begin, end) of one image, in runs that stay within a row of outputs. */
static void drive(const plan *p, const hwq_epilogue *epilogue, const uint8_t *image, int64_t number, int64_t begin, int64_t end)
{
    const hwq_conv *c = p->conv;
    const int64_t width = c->window.out[2], outputs = hwq_window_outputs(&c->window), most = hwq_depthwise_rows(c->channels);
    const int64_t size = hwq_type_size(epilogue->out_type);
    for (int64_t at = begin, count; at < end; at += count) {
        int64_t origin[3];
        count = width - at % width;
        if (count > end - at) count = end - at;
        if (count > most) count = most;
        hwq_window_origin(&c->window, at, origin);
        char *out = c->layout == HWQ_NHWC ? (char *)c->out + (number * outputs + at) * c->channels * size : p->tile;
        run_any(p, image, origin, count, (uint8_t *)out);
        if (!p->fused) hwq_requantize(epilogue, count, c->channels, 0, p->acc, HWQ_S32, p->padded, out, c->channels);
        if (c->layout == HWQ_NCHW)
            hwq_transpose(size, count, c->channels, out, c->channels, (char *)c->out + (number * c->channels * outputs + at) * size, outputs);
    }
}

void hwq_depthwise_s32__avx2(const hwq_conv *c)
{
    const hwq_window *w = &c->window;
    const int64_t channels = c->channels, outputs = hwq_window_outputs(w), inputs = hwq_window_inputs(w);
    hwq_epilogue epilogue = *c->epilogue;
    epilogue.residual_op = NULL;
    if (channels == 0 || c->first >= c->last) return;
    plan p = {.conv = c, .shape = hwq_depthwise_measure(c), .block_count = hwq_depthwise_blocks(channels)};
    p.padded = p.block_count * LANES;
    p.fused = epilogue.kind == HWQ_KIND_REQUANT && epilogue.rounding == HWQ_ROUND_FP32 && epilogue.out_type <= HWQ_S8 && !epilogue.float_bias && !epilogue.lut;
    p.slides = channels >= LANES && w->in[0] == 1 && w->out[0] == 1;
    for (int d = 0; d < 3; d++) p.slides &= w->kernel[d] == (d ? 3 : 1) && w->stride[d] == 1 && w->dilation[d] == 1 && (d || w->pad[0] == 0);
    p.lo = _mm256_set1_ps((float)(epilogue.lo - epilogue.zero_point));
    p.hi = _mm256_set1_ps((float)(epilogue.hi - epilogue.zero_point));
    p.zero_point = _mm256_set1_epi16((short)epilogue.zero_point);
    char *image_space = c->workspace, *at = image_space + (c->layout == HWQ_NCHW ? hwq_align(inputs * channels) : 0);
    p.weights = (int16_t *)at, at += p.shape.weights;
    p.constants = (int32_t *)at, at += p.shape.constants;
    p.padding = (uint8_t *)at, at += p.shape.padding;
    p.acc = (int32_t *)at, at += p.shape.acc;
    p.tile = at, at += p.shape.tile;
    p.pointers = (const uint8_t **)at;
    p.offsets = (int64_t *)(at + p.shape.taps / 2);
    memset(p.padding, c->a_zero_point & 0xFF, (size_t)p.padded);
    int64_t tap = 0;
    for (int64_t t0 = 0; t0 < w->kernel[0]; t0++)
        for (int64_t t1 = 0; t1 < w->kernel[1]; t1++)
            for (int64_t t2 = 0; t2 < w->kernel[2]; t2++)
                p.offsets[tap++] = ((t0 * w->dilation[0] * w->in[1] + t1 * w->dilation[1]) * w->in[2] + t2 * w->dilation[2]) * channels;
    p.pointers[tap] = p.padding; /* the partner of the last tap of an odd number meets zero weights */
    prepare(&p);
    for (int64_t i = c->first; i < c->last;) {
        const int64_t number = i / outputs, begin = i % outputs, end = c->last - i + begin < outputs ? c->last - i + begin : outputs;
        const uint8_t *image = (const uint8_t *)c->x + number * inputs * channels;
        if (c->layout == HWQ_NCHW) {
            hwq_transpose(1, channels, inputs, (const char *)image, inputs, image_space, channels);
            image = (const uint8_t *)image_space;
        }
        drive(&p, &epilogue, image, number, begin, end);
        if (c->epilogue->residual_op) hwq_conv_residual(c, number, begin, end);
        i += end - begin;
    }
}

HWQ_TARGET_END
#endif
