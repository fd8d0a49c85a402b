/* One strip of 16 columns along a line of output positions: where a convolution's columns leave one over, tiles of two vectors would be half empty,
 * and tiles of one read a quad of the image for every dot, more than two loads a cycle. Include after tile_avx512vnni.h.
 *
 * A tile is 4, 8, 12 or 16 neighboring positions; it may hang over its line's end, which the copied image has room for, and gives what is wanted.
 * Where kernels are three taps wide, by strides of 1, and channels come by whole quads, a quad of the image is read once for its three taps, whose
 * weights stay in registers: 18 broadcasts and 3 loads for 48 dots. Else a quad at a time: 16 and 1 for 16. */
#ifndef HWQ_STRIP_AVX512VNNI_H
#define HWQ_STRIP_AVX512VNNI_H

enum { STRIP_MOST = 16 };

typedef struct {
    const piece *pieces;    /* whole runs: with three taps, rows of the kernel */
    int64_t count;
    const int8_t *weights;
    const int32_t *terms;
    int64_t step;           /* bytes from position to position */
    int64_t tap;            /* quads of a tap, where three go together */
} strip;

static inline __attribute__((always_inline)) __m512i quad_at(const uint8_t *x)
{
    int32_t bytes;
    memcpy(&bytes, x, 4);
    return _mm512_set1_epi32(bytes);
}

static inline __attribute__((always_inline)) void strip_tile(const int positions, const int taps, const strip *s, const uint8_t *a, int64_t wanted, int32_t *rest,
                                                             const finish *f, char *out)
{
    __m512i acc_s32x16[STRIP_MOST];
    const int64_t step = s->step, three = 3 * step, five = 5 * step, seven = 7 * step;
#pragma GCC unroll 16
    for (int i = 0; i < positions; i++) acc_s32x16[i] = _mm512_loadu_si512(s->terms);
#define AT(base, i) ((i) == 0 ? base : (i) == 1 ? base + step : (i) == 2 ? base + 2 * step : (i) == 3 ? base + three : (i) == 4 ? base + 4 * step : \
                     (i) == 5 ? base + five : (i) == 6 ? base + 2 * three : base + seven)
#define QUAD(i) quad_at((i) < 8 ? AT(x, i) : (i) < 16 ? AT(y, (i) - 8) : AT(z, (i) - 16))
    const int8_t *w = s->weights;
    for (int64_t p = 0; p < s->count; p++) {
        const uint8_t *x = a + s->pieces[p].offset, *y = x + 8 * step, *z = y + 8 * step;
        const int64_t tap_bytes = s->tap * HWQ_STRIP * HWQ_QUAD;
        for (const int8_t *end = w + s->pieces[p].quads / taps * HWQ_STRIP * HWQ_QUAD; w < end; w += HWQ_STRIP * HWQ_QUAD, x += HWQ_QUAD, y += HWQ_QUAD, z += HWQ_QUAD) {
            __m512i weights[3];
#pragma GCC unroll 3
            for (int t = 0; t < taps; t++) weights[t] = _mm512_loadu_si512(w + t * tap_bytes);
#pragma GCC unroll 18
            for (int i = 0; i < positions + taps - 1; i++) {
                const __m512i quad = QUAD(i);
#pragma GCC unroll 3
                for (int t = 0; t < taps; t++)
                    if (i >= t && i - t < positions) acc_s32x16[i - t] = DOT(acc_s32x16[i - t], quad, weights[t]);
            }
        }
        w += (taps - 1) * tap_bytes;
    }
#undef QUAD
#undef AT
    if (!f->fast) {
#pragma GCC unroll 16
        for (int i = 0; i < positions; i++) _mm512_storeu_si512(rest + i * HWQ_STRIP, acc_s32x16[i]);
        hwq_requantize(f->epilogue, wanted, f->width, f->channel, rest, HWQ_S32, HWQ_STRIP, out, f->stride);
        return;
    }
    const finish here = *f; /* the output cannot alias it */
    const __mmask16 mask = (__mmask16)(here.width >= HWQ_STRIP ? 0xFFFF : (1 << here.width) - 1);
    const __m512 scale = _mm512_loadu_ps(here.scales), scales[2] = {scale, scale};
#pragma GCC unroll 4
    for (int i = 0; i < positions; i += 4, out += 4 * here.stride) {
        const __m512i lines = sixteens(&here, acc_s32x16 + i, scales);
        _mm_mask_storeu_epi8(out, mask, _mm512_castsi512_si128(lines));
        if (i + 1 < wanted) _mm_mask_storeu_epi8(out + here.stride, mask, _mm512_extracti32x4_epi32(lines, 1));
        if (i + 2 < wanted) _mm_mask_storeu_epi8(out + 2 * here.stride, mask, _mm512_extracti32x4_epi32(lines, 2));
        if (i + 3 < wanted) _mm_mask_storeu_epi8(out + 3 * here.stride, mask, _mm512_extracti32x4_epi32(lines, 3));
    }
}

/* `count` positions of a line; pixel: bytes from output to output. */
static void strip_line(const strip *s, const uint8_t *a, int64_t count, int32_t *rest, const finish *f, char *out, int64_t pixel)
{
    const int64_t tiles = (count + STRIP_MOST - 1) / STRIP_MOST, each = ((count + tiles - 1) / tiles + 3) / 4 * 4;
    for (int64_t x = 0, n; x < count; x += n) {
        n = count - x < each ? count - x : each;
        const uint8_t *from = a + x * s->step;
        char *to = out + x * pixel;
#define CASE(positions) \
    if (s->tap) strip_tile(positions, 3, s, from, n, rest, f, to); \
    else strip_tile(positions, 1, s, from, n, rest, f, to)
        switch ((n + 3) / 4) {
        case 1: CASE(4); break;
        case 2: CASE(8); break;
        case 3: CASE(12); break;
        default: CASE(16);
        }
#undef CASE
    }
}

#endif
