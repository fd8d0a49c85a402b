/* One strip of 16 columns along a line of output positions: where a convolution's columns leave one over, tiles of two vectors would be half empty,
 * and tiles of one read a quad of the image for every dot, more than two loads a cycle. Include after tile_avx512vnni.h.
 *
 * A tile is 4, 8, 12 or 16 neighboring positions; it may hang over its line's end, which the copied image has room for, and gives what is wanted.
 * Where kernels are three taps wide, by strides of 1, and channels come by whole quads, a quad of the image is read once for its three taps, whose
 * weights stay in registers: 18 broadcasts and 3 loads for 48 dots. Else a quad at a time: 16 and 1 for 16.
 * With three taps 8 columns or fewer take half a vector: the other half holds the position `apart` further on, and 39 loads serve twice as many. */
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

/* A quad of the image in every lane, or in the upper ones that from `apart` bytes on. */
static inline __attribute__((always_inline)) __m512i quad_at(const int halves, const uint8_t *x, int64_t apart)
{
    int32_t bytes, more;
    memcpy(&bytes, x, 4);
    if (!halves) return _mm512_set1_epi32(bytes);
    memcpy(&more, x + apart, 4);
    return _mm512_mask_set1_epi32(_mm512_set1_epi32(bytes), 0xFF00, more);
}
static inline __attribute__((always_inline)) __m512i columns_at(const int halves, const void *p)
{
    return halves ? _mm512_broadcast_i64x4(_mm256_loadu_si256((const __m256i *)p)) : _mm512_loadu_si512(p);
}

/* `wanted` of `positions`, or twice as many, outputs. */
static inline __attribute__((always_inline)) void strip_tile(const int positions, const int taps, const int halves, const strip *s, const uint8_t *a, int64_t wanted,
                                                             int32_t *rest, const finish *f, char *out)
{
    __m512i acc_s32x16[STRIP_MOST];
    const int64_t step = s->step, three = 3 * step, five = 5 * step, seven = 7 * step, apart = positions * step;
#pragma GCC unroll 16
    for (int i = 0; i < positions; i++) acc_s32x16[i] = columns_at(halves, s->terms);
#define AT(base, i) ((i) == 0 ? base : (i) == 1 ? base + step : (i) == 2 ? base + 2 * step : (i) == 3 ? base + three : (i) == 4 ? base + 4 * step : \
                     (i) == 5 ? base + five : (i) == 6 ? base + 2 * three : base + seven)
#define QUAD(i) quad_at(halves, (i) < 8 ? AT(x, i) : (i) < 16 ? AT(y, (i) - 8) : AT(z, (i) - 16), apart)
    const int8_t *w = s->weights;
    for (int64_t p = 0; p < s->count; p++) {
        const uint8_t *x = a + s->pieces[p].offset, *y = x + 8 * step, *z = y + 8 * step;
        const int64_t tap_bytes = s->tap * HWQ_STRIP * HWQ_QUAD;
        for (const int8_t *end = w + s->pieces[p].quads / taps * HWQ_STRIP * HWQ_QUAD; w < end; w += HWQ_STRIP * HWQ_QUAD, x += HWQ_QUAD, y += HWQ_QUAD, z += HWQ_QUAD) {
            __m512i weights[3];
#pragma GCC unroll 3
            for (int t = 0; t < taps; t++) weights[t] = columns_at(halves, w + t * tap_bytes);
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
        const int64_t first = wanted < positions ? wanted : positions;
        hwq_requantize(f->epilogue, first, f->width, f->channel, rest, HWQ_S32, HWQ_STRIP, out, f->stride);
        if (first == wanted) return;
        char *next = out + positions * f->stride * hwq_type_size(f->epilogue->out_type);
        hwq_requantize(f->epilogue, wanted - first, f->width, f->channel, rest + HWQ_STRIP / 2, HWQ_S32, HWQ_STRIP, next, f->stride);
        return;
    }
    const finish here = *f; /* the output cannot alias it */
    const __mmask16 mask = (__mmask16)(here.width >= HWQ_STRIP ? 0xFFFF : (1 << here.width) - 1);
    const __m512 scale = _mm512_castsi512_ps(columns_at(halves, here.scales)), scales[2] = {scale, scale};
#pragma GCC unroll 4
    for (int i = 0; i < positions; i += 4) {
        const __m512i lines = sixteens(&here, acc_s32x16 + i, scales);
        const __m128i line[4] = {_mm512_castsi512_si128(lines), _mm512_extracti32x4_epi32(lines, 1), _mm512_extracti32x4_epi32(lines, 2),
                                 _mm512_extracti32x4_epi32(lines, 3)};
#pragma GCC unroll 4
        for (int j = 0; j < 4; j++) {
            if (i + j < wanted) _mm_mask_storeu_epi8(out + (i + j) * here.stride, mask, line[j]);
            if (halves && i + j + positions < wanted) _mm_mask_storeu_epi8(out + (i + j + positions) * here.stride, mask, _mm_unpackhi_epi64(line[j], line[j]));
        }
    }
}

/* `count` positions of a line; pixel: bytes from output to output. */
static void strip_line(const strip *s, const uint8_t *a, int64_t count, int32_t *rest, const finish *f, char *out, int64_t pixel)
{
    const int64_t halves = s->tap && f->width <= HWQ_STRIP / 2 ? 2 : 1, most = halves * STRIP_MOST, round = 4 * halves;
    const int64_t tiles = (count + most - 1) / most, each = ((count + tiles - 1) / tiles + round - 1) / round * round;
    for (int64_t x = 0, n; x < count; x += n) {
        n = count - x < each ? count - x : each;
        const uint8_t *from = a + x * s->step;
        char *to = out + x * pixel;
#define CASE(positions) \
    if (halves == 2) strip_tile(positions, 3, 1, s, from, n, rest, f, to); \
    else if (s->tap) strip_tile(positions, 3, 0, s, from, n, rest, f, to); \
    else strip_tile(positions, 1, 0, s, from, n, rest, f, to)
        switch ((n + round - 1) / round) {
        case 1: CASE(4); break;
        case 2: CASE(8); break;
        case 3: CASE(12); break;
        default: CASE(16);
        }
#undef CASE
    }
}

#endif
