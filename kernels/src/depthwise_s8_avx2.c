/* Depthwise convolution of bytes, 16 channels at a time. Channel-last; channel-first images are turned in the workspace.
 *
 * Two taps meet in one dot of int16 pairs: their channels stand interleaved, (x of tap a, x of tap b), against (w of a, w of b).
 * Interleaving works in halves of 128 bits: `low` holds channels 0-3, 8-11, `high` 4-7, 12-15.
 * Inputs are taken as they are, |x| <= 255, weights less their zero point, |w - zw| <= 255: a pair is below 2^17. The activations'
 * zero point is a constant of each channel, za * sum (w - zw), because padding holds it too; it goes into the bias, modulo 2^32.
 * 3 x 3 in 8 channels or more has a driver of its own: depthwise_3x3_avx2.c.
 * R4 to bytes is finished in registers: packing undoes what interleaving did to the order of channels. */
#include "depthwise.h"
#include "epilogue.h"
#include "isa.h"
#include "window.h"

#if HWQ_X86
#include <immintrin.h>
#include <string.h>

HWQ_TARGET("avx2,fma")

enum { LANES = 16 };
typedef __m256i vector;

static inline vector zero(void) { return _mm256_setzero_si256(); }
static inline vector all16(int16_t v) { return _mm256_set1_epi16(v); }
static inline vector all32(int32_t v) { return _mm256_set1_epi32(v); }
static inline vector all_f32(float v) { return _mm256_castps_si256(_mm256_set1_ps(v)); }
static inline vector load(const void *p) { return _mm256_loadu_si256((const __m256i *)p); }
static inline void store(void *p, vector v) { _mm256_storeu_si256((__m256i *)p, v); }
static inline vector interleave_low(vector a, vector b) { return _mm256_unpacklo_epi16(a, b); }
static inline vector interleave_high(vector a, vector b) { return _mm256_unpackhi_epi16(a, b); }
static inline vector dot(vector acc, vector a, vector b) { return _mm256_add_epi32(acc, _mm256_madd_epi16(a, b)); }
static inline vector less(vector acc, vector a, vector b) { return _mm256_sub_epi32(acc, _mm256_mullo_epi32(a, b)); }

/* Of per-channel arrays, `left` elements from here on. */
static inline vector words(const int16_t *x, int64_t left)
{
    int16_t tail[LANES] = {0};
    return load(left >= LANES ? x : memcpy(tail, x, (size_t)left * 2));
}
static inline void halves(const int32_t *x, int64_t step, int64_t left, vector *low, vector *high)
{
    int32_t tail[LANES] = {0};
    if (!step) for (int64_t i = 0; i < LANES; i++) tail[i] = x[0];
    else if (left < LANES) memcpy(tail, x, (size_t)left * 4);
    const int32_t *from = step && left >= LANES ? x : tail;
    *low = _mm256_permute2x128_si256(load(from), load(from + 8), 0x20);
    *high = _mm256_permute2x128_si256(load(from), load(from + 8), 0x31);
}
static inline vector widen(const uint8_t *x, int is_unsigned, int64_t left)
{
    uint8_t tail[LANES] = {0};
    if (left < LANES) x = memcpy(tail, x, (size_t)left);
    const __m128i bytes = _mm_loadu_si128((const __m128i *)x);
    return is_unsigned ? _mm256_cvtepu8_epi16(bytes) : _mm256_cvtepi8_epi16(bytes);
}

/* R4: floats too great for int32 stop at hi; those too small become INT32_MIN, which the packing and the clamp bring to lo. */
static inline void to_bytes(int is_unsigned, vector low, vector high, const float *scales, vector lo, vector hi, vector zero_point, uint8_t *out)
{
    const __m256 first = _mm256_min_ps(_mm256_mul_ps(_mm256_cvtepi32_ps(low), _mm256_loadu_ps(scales)), _mm256_castsi256_ps(hi));
    const __m256 second = _mm256_min_ps(_mm256_mul_ps(_mm256_cvtepi32_ps(high), _mm256_loadu_ps(scales + 8)), _mm256_castsi256_ps(hi));
    const __m256i packed = _mm256_packs_epi32(_mm256_cvtps_epi32(first), _mm256_cvtps_epi32(second));
    const __m256i shifted = _mm256_max_epi16(_mm256_adds_epi16(packed, zero_point), lo);
    const __m128i one = _mm256_castsi256_si128(shifted), two = _mm256_extracti128_si256(shifted, 1);
    _mm_storeu_si128((__m128i *)out, is_unsigned ? _mm_packus_epi16(one, two) : _mm_packs_epi16(one, two));
}
static inline void in_order(vector low, vector high, int32_t *acc)
{
    _mm_storeu_si128((__m128i *)acc, _mm256_castsi256_si128(low));
    _mm_storeu_si128((__m128i *)(acc + 4), _mm256_castsi256_si128(high));
    _mm_storeu_si128((__m128i *)(acc + 8), _mm256_extracti128_si256(low, 1));
    _mm_storeu_si128((__m128i *)(acc + 12), _mm256_extracti128_si256(high, 1));
}

typedef struct {
    const hwq_conv *conv;
    const hwq_epilogue *epilogue; /* the residual comes later */
    hwq_depthwise_shape shape;
    int64_t blocks, padded;
    int fused;               /* the epilogue is done in registers */
    vector hi;               /* float; of the fused epilogue, less the zero point */
    vector lo, zero_point;   /* int16 */
    int16_t *weights;        /* [block][pair][channels][2], halves as unpacked */
    int32_t *constants;      /* [block][bias, then float scales], halves as unpacked */
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

static void prepare(const plan *p)
{
    const hwq_conv *c = p->conv;
    const int64_t taps = hwq_window_taps(&c->window);
    const vector ones = all16(1), zero_point = all32(c->a_zero_point);
    for (int64_t block = 0; block < p->blocks; block++) {
        const int64_t at = block_start(c->channels, block), left = c->channels - at;
        vector low = zero(), high = low, sum_low = low, sum_high = low;
        for (int64_t pair = 0; pair < p->shape.pairs; pair++) {
            const vector a = words(c->taps_s16 + 2 * pair * c->channels + at, left);
            const vector b = 2 * pair + 1 < taps ? words(c->taps_s16 + (2 * pair + 1) * c->channels + at, left) : zero();
            const vector l = interleave_low(a, b), h = interleave_high(a, b);
            int16_t *to = p->weights + (block * p->shape.pairs + pair) * LANES * 2;
            store(to, l), store(to + LANES, h);
            sum_low = dot(sum_low, l, ones), sum_high = dot(sum_high, h, ones);
        }
        int32_t *to = p->constants + block * LANES * 2;
        if (c->bias) halves(c->bias + at, 1, left, &low, &high);
        store(to, less(low, sum_low, zero_point));
        store(to + LANES / 2, less(high, sum_high, zero_point));
        if (!p->fused) continue;
        const int32_t step = c->epilogue->channel_step;
        halves((const int32_t *)c->epilogue->scales_f32 + (step ? at : 0), step, left, &low, &high); /* the bits of floats */
        store(to + LANES, low), store(to + LANES + LANES / 2, high);
    }
}

/* How a position ends: accumulators in order, or R4 in registers to int8 or uint8. */
enum { ACCUMULATORS, TO_S8, TO_U8 };

static inline __attribute__((always_inline)) void finish(const plan *p, const int how, const int32_t *constants, vector low, vector high, int64_t left,
                                                         uint8_t *out, int32_t *acc)
{
    uint8_t byte_space[LANES];
    int32_t acc_space[LANES];
    if (how != ACCUMULATORS) {
        to_bytes(how == TO_U8, low, high, (const float *)(constants + LANES), p->lo, p->hi, p->zero_point, left >= LANES ? out : byte_space);
        if (left < LANES) memcpy(out, byte_space, (size_t)left);
    } else {
        in_order(low, high, left >= LANES ? acc : acc_space);
        if (left < LANES) memcpy(acc, acc_space, (size_t)left * 4);
    }
}

#define PAIR(low, high, a, b, i) (low = dot(low, a, load(w + 2 * LANES * (i))), high = dot(high, b, load(w + 2 * LANES * (i) + LANES)))

/* All channels of one position, from its taps' pixels. */
static inline __attribute__((always_inline)) void position(const plan *p, const int is_unsigned, const int how, uint8_t *out, int32_t *acc)
{
    const int64_t channels = p->conv->channels, pairs = p->shape.pairs;
    const uint8_t *const *x = p->pointers;
    const int16_t *w = p->weights;
    for (int64_t block = 0; block < p->blocks; block++, w += pairs * LANES * 2) {
        const int64_t at = block_start(channels, block), left = channels - at;
        const int32_t *constants = p->constants + block * LANES * 2;
        vector low = load(constants), high = load(constants + LANES / 2);
        if (left >= LANES) {
            for (int64_t i = 0; i < pairs; i++) {
                const vector a = widen(x[2 * i] + at, is_unsigned, LANES), b = widen(x[2 * i + 1] + at, is_unsigned, LANES);
                PAIR(low, high, interleave_low(a, b), interleave_high(a, b), i);
            }
        } else {
            for (int64_t i = 0; i < pairs; i++) {
                const vector a = widen(x[2 * i], is_unsigned, left), b = widen(x[2 * i + 1], is_unsigned, left);
                PAIR(low, high, interleave_low(a, b), interleave_high(a, b), i);
            }
        }
        finish(p, how, constants, low, high, left, out + at, acc + at);
    }
}

/* `count` outputs of one row of outputs, all channels. origin: of the first. */
static inline __attribute__((always_inline)) void run(const plan *p, const int is_unsigned, const int how, const uint8_t *image, const int64_t origin[3],
                                                      int64_t count, uint8_t *out, int32_t *acc)
{
    const hwq_conv *c = p->conv;
    const hwq_window *w = &c->window;
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
        position(p, is_unsigned, how, out, acc);
    }
}

static void run_any(const plan *p, const uint8_t *image, const int64_t origin[3], int64_t count, uint8_t *out)
{
    const int is_unsigned = p->conv->a_type == HWQ_U8, how = !p->fused ? ACCUMULATORS : p->conv->epilogue->out_type == HWQ_U8 ? TO_U8 : TO_S8;
    switch (3 * is_unsigned + how) {
    case 0: run(p, 0, ACCUMULATORS, image, origin, count, out, p->acc); break;
    case 1: run(p, 0, TO_S8, image, origin, count, out, p->acc); break;
    case 2: run(p, 0, TO_U8, image, origin, count, out, p->acc); break;
    case 3: run(p, 1, ACCUMULATORS, image, origin, count, out, p->acc); break;
    case 4: run(p, 1, TO_S8, image, origin, count, out, p->acc); break;
    default: run(p, 1, TO_U8, image, origin, count, out, p->acc);
    }
}

/* Positions [begin, end) of one image, in runs that stay within a row of outputs. */
static void drive(const void *given, const uint8_t *image, int64_t number, int64_t begin, int64_t end)
{
    const plan *p = given;
    const hwq_conv *c = p->conv;
    const hwq_epilogue *epilogue = p->epilogue;
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

static void depthwise(const hwq_conv *c)
{
    const hwq_window *w = &c->window;
    const int64_t channels = c->channels, inputs = hwq_window_inputs(w);
    hwq_epilogue epilogue = *c->epilogue;
    epilogue.residual_op = NULL;
    plan p = {.conv = c, .epilogue = &epilogue, .shape = hwq_depthwise_measure(c), .blocks = (channels + LANES - 1) / LANES};
    p.padded = hwq_depthwise_padded(channels);
    p.fused = epilogue.kind == HWQ_KIND_REQUANT && epilogue.rounding == HWQ_ROUND_FP32 && epilogue.out_type <= HWQ_S8 && !epilogue.float_bias && !epilogue.lut;
    p.lo = all16((short)epilogue.lo);
    p.hi = all_f32((float)(epilogue.hi - epilogue.zero_point));
    p.zero_point = all16((short)epilogue.zero_point);
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
    hwq_conv_images(c, drive, &p);
}

void hwq_depthwise_s32__avx2(const hwq_conv *c)
{
    if (c->channels == 0 || c->first >= c->last) return;
    if (hwq_depthwise_is_3x3(c)) hwq_depthwise_3x3__avx2(c);
    else depthwise(c);
}

HWQ_TARGET_END
#endif
