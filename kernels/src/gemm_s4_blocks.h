/* Driver of the integer products with weights u of at most 4 bits; included once by each path, which defines VECTOR, FLOATS and their
 * operations, LANES, the widest tile (ROWS x STRIPS strips of columns), FEW_STRIPS of a single row, SOME_STRIPS of a
 * few, COLUMNS (their vectors at most), UNPACK_FROM, FEW_SIGNED, PANEL, PART (of k, or one whole block with a scale), SCALED_STRIPS (of the widest tile where blocks have scales), SUMS_HELD (it
 * keeps its sums of float in registers, and finishes float results there), few_dots, and many_rows after it.
 *
 *   sum (a - za)(u - zu) = sum a (u - c) - za * sum(u - zu) - (zu - c) * sum(a), every sum over the block's k, modulo 2^32.
 * UNPACK_FROM rows and more: a is read as u8 and c = 8. The nibbles of PART of k of some strips become s8 of -8..7 in the first-level cache, once
 * for all rows that are held; symmetric weights (zu = 8) need no sums of a, and where a is u8 already and k whole, no copy of it.
 * Rows are held in blocks of nearly the same size: a last block of few would unpack for itself.
 * Fewer rows do not repay that: they take nibbles apart in registers, c = 0, and read a in the signedness FEW_SIGNED.
 * The other signedness has its top bit flipped and its zero point moved by 128.
 * PANEL rows are interleaved quad by quad (1: left as they are), so that a tile walks one pointer. */

#include "tile_avx2.h"

enum { PER_STRIP = HWQ_STRIP / LANES, MOST_STRIPS = STRIPS > FEW_STRIPS ? STRIPS : FEW_STRIPS };
/* What the zero points of weights ask for: nothing, 8 times the sums of a, or any number of times. */
enum { NO_POINTS, EIGHTS, POINTS };
enum { FEW = 4 /* rows of a tile that unpacks in registers */ };

typedef union {
    int32_t integers[HWQ_GEMM_ROWS * STRIPS * HWQ_STRIP];
    float floats[HWQ_GEMM_ROWS * STRIPS * HWQ_STRIP];
} results;
_Static_assert(sizeof(results) <= HWQ_GEMM_FIXED /* 61,440 of 65,536 bytes */ && (int)MOST_STRIPS <= (int)HWQ_S4_STRIPS, "the workspace holds them");

/* What a tile reads beside a: strip after strip. */
typedef struct {
    const void *b;           /* nibbles; or s8 quads of the part, of all strips together */
    int64_t b_strip;         /* bytes from a strip of nibbles to the next */
    const int32_t *terms;    /* NULL, or blocks x 16: bias - za * sum(u - zu) */
    const int32_t *points;   /* blocks x 16: zu */
    const float *scales;     /* blocks x 16, or NULL */
    int64_t blocks, k, block;
    int64_t first, last;     /* of k in this part: all k of some blocks, or without scales a part of the only one */
    int with_points;
    const finish *fast;      /* NULL, or the way out of a tile of sums that are whole */
    const hwq_epilogue *epilogue;
    int64_t column;          /* its first */
} strips_of;

/* 64 bytes of nibbles of each of `strips` strips, to two quads of s8. */
static void unpack(const uint8_t *nibbles, int64_t strips, int64_t strip_bytes, int64_t pairs, int8_t *to)
{
    enum { WIDTH = LANES * 4 };
    const VECTOR mask = SET1(0x0F0F0F0F), eight = SET1(0x08080808);
    for (int64_t s = 0; s < strips; s++)
        for (int64_t i = 0; i < pairs; i++)
            for (int at = 0; at < 64; at += WIDTH) {
                const VECTOR x = load(nibbles + s * strip_bytes + i * 64 + at), low = SUB_BYTES(AND(x, mask), eight);
                const VECTOR high = SUB_BYTES(AND(SHIFT_RIGHT(x, 4), mask), eight);
                memcpy(to + (2 * i * strips + s) * 64 + at, &low, sizeof low);
                memcpy(to + ((2 * i + 1) * strips + s) * 64 + at, &high, sizeof high);
            }
}

/* A tile of at most `rows` rows of the part, into `done` from `at` on, strips * 16 apart, or the fast way to `out`; how many it took.
 * `sums` of a for every block. */
static int64_t many_rows(int64_t rows, int64_t strips, const strips_of *s, const uint8_t *a, int64_t a_stride, const int32_t *sums, int64_t sums_stride,
                         results *done, int64_t at, char *out);

/* One row copied, k padded with 0 to whole pairs of quads; its sums per block, as u8 or as s8. */
static void copy_row(const uint8_t *a, int64_t k, int64_t block, uint8_t flip, int is_signed, uint8_t *to, int32_t *sums)
{
    const __m256i flips = _mm256_set1_epi8((char)flip), up = _mm256_set1_epi8((char)(is_signed ? 0x80 : 0));
    for (int64_t first = 0; first < k; first += block) {
        const int64_t last = first + block < k ? first + block : k;
        __m256i four = _mm256_setzero_si256(); /* of u8: at most 255 * block; signed ones are u8 - 128 */
        int64_t i = first;
        for (; i + 32 <= last; i += 32) {
            const __m256i v = _mm256_xor_si256(_mm256_loadu_si256((const __m256i *)(a + i)), flips);
            _mm256_storeu_si256((__m256i *)(to + i), v);
            four = _mm256_add_epi64(four, _mm256_sad_epu8(_mm256_xor_si256(v, up), _mm256_setzero_si256()));
        }
        int64_t lanes[4], sum = 0;
        _mm256_storeu_si256((__m256i *)lanes, four);
        for (; i < last; i++) sum += (to[i] = a[i] ^ flip) ^ (is_signed ? 0x80 : 0);
        *sums++ = (int32_t)(lanes[0] + lanes[1] + lanes[2] + lanes[3] + sum - (is_signed ? 128 * (last - first) : 0));
    }
    for (int64_t i = k; i % 8; i++) to[i] = 0;
}

/* One line of PANEL lines interleaved quad by quad. */
static void interleave(const uint8_t *line, int64_t k8, uint8_t *to)
{
    for (int64_t i = 0; i < k8; i += HWQ_QUAD) memcpy(to + i * PANEL, line + i, HWQ_QUAD);
}

/* Nibbles in registers, c = 0: rows x strips * 16 results into `out`, strips * 16 apart. */
static inline __attribute__((always_inline)) void few_tile(const int rows, const int strips, const int scaled, const int points, const strips_of *s,
                                                           const uint8_t *a, int64_t a_stride, const int32_t *sums, int64_t sums_stride, void *out)
{
    const int vectors = strips * PER_STRIP;
    FLOATS y[FEW][COLUMNS];
    VECTOR acc[FEW][COLUMNS];
    const char *b = s->b;
    if (scaled)
        for (int r = 0; r < rows; r++)
            for (int v = 0; v < vectors; v++) y[r][v] = ZERO_FLOATS;
    int64_t g = 0;
    do { /* k > 0: at least one block */
        const int64_t left = s->k - g * s->block, pairs = ((left < s->block ? left : s->block) + 7) / 8;
        for (int v = 0; v < vectors; v++) {
            const VECTOR term = s->terms ? load(s->terms + (v / PER_STRIP * s->blocks + g) * HWQ_STRIP + v % PER_STRIP * LANES) : SET1(0);
            for (int r = 0; r < rows; r++) acc[r][v] = points == EIGHTS ? SUB(term, SET1(8 * sums[r * sums_stride + g])) : term;
        }
        few_dots(rows, vectors, pairs, a, a_stride, (const uint8_t *)b, s->b_strip, acc);
        a += pairs * 8, b += pairs * 64;
        for (int v = 0; v < vectors; v++) {
            const int64_t at = (v / PER_STRIP * s->blocks + g) * HWQ_STRIP + v % PER_STRIP * LANES;
            if (points == POINTS) {
                const VECTOR z = load(s->points + at);
                for (int r = 0; r < rows; r++) acc[r][v] = SUB(acc[r][v], MULLO(z, SET1(sums[r * sums_stride + g])));
            }
            if (scaled) {
                const FLOATS scale = LOAD_FLOATS(s->scales + at);
                for (int r = 0; r < rows; r++) y[r][v] = FMA(TO_FLOATS(acc[r][v]), scale, y[r][v]);
            }
        }
    } while (++g < s->blocks);
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < vectors; v++)
            if (scaled) memcpy((float *)out + (r * vectors + v) * LANES, &y[r][v], sizeof(FLOATS));
            else memcpy((int32_t *)out + (r * vectors + v) * LANES, &acc[r][v], sizeof(VECTOR));
}

static int64_t few_rows(int64_t rows, int64_t strips, int points, const strips_of *s, const uint8_t *a, int64_t a_stride, const int32_t *sums, int64_t sums_stride,
                        void *out)
{
#define TILE(rows, strips, points)                                                                                            \
    do {                                                                                                                      \
        if (s->scales) few_tile(rows, strips, 1, points, s, a, a_stride, sums, sums_stride, out);                             \
        else few_tile(rows, strips, 0, points, s, a, a_stride, sums, sums_stride, out);                                       \
        return rows;                                                                                                          \
    } while (0)
#define EITHER(rows, strips)                                                                                                  \
    do {                                                                                                                      \
        if (points == EIGHTS) TILE(rows, strips, EIGHTS);                                                                     \
        TILE(rows, strips, POINTS);                                                                                           \
    } while (0)
    if (strips == FEW_STRIPS) EITHER(1, FEW_STRIPS);
    if (SOME_STRIPS > 1 && strips == SOME_STRIPS) {
        if (rows >= FEW) EITHER(FEW, SOME_STRIPS);
        if (rows >= 3) EITHER(3, SOME_STRIPS);
        if (rows >= 2) EITHER(2, SOME_STRIPS);
        EITHER(1, SOME_STRIPS);
    }
    if (rows >= FEW) EITHER(FEW, 1);
    if (rows >= 2) EITHER(2, 1);
    EITHER(1, 1);
#undef EITHER
#undef TILE
}

/* `rows` x `width` results that lie `stride` apart to the output. */
static void finish_block(const hwq_gemm_s4_args *args, int64_t top, int64_t rows, int64_t column, int64_t width, const results *done, int64_t stride)
{
    const hwq_epilogue *e = args->epilogue;
    char *out = (char *)args->out + (top * args->out_stride + column) * hwq_type_size(e->out_type);
    if (!args->weights->scales) {
        const hwq_epilogue block = hwq_epilogue_at(e, top, column);
        hwq_requantize(&block, rows, width, column, done->integers, HWQ_S32, stride, out, args->out_stride);
        return;
    }
    hwq_finish_floats(e, rows, width, column, done->floats, stride, out, args->out_stride);
}

/* Rows from `top` on as the tiles read them: copied with their sums where they are not read in place, PANEL interleaved. */
static void prepare_rows(const uint8_t *a, int64_t a_stride, int64_t rows, int64_t panel, int64_t row_bytes, const hwq_packed_s4 *w, uint8_t flip, int is_signed,
                         uint8_t *line, uint8_t *copies)
{
    for (int64_t r = 0; r < rows; r++) {
        uint8_t *first = copies + r / panel * panel * row_bytes;
        const int64_t within = r % panel;
        int32_t *sums = (int32_t *)(first + panel * hwq_gemm_line(w->k)) + within * ((row_bytes - hwq_gemm_line(w->k)) / 4);
        copy_row(a + r * a_stride, w->k, w->block, flip, is_signed, panel > 1 ? line : first, sums);
        if (panel > 1) interleave(line, (w->k + 7) / 8 * 8, first + within * HWQ_QUAD);
    }
}

static void multiply(const hwq_gemm_s4_args *args)
{
    const hwq_packed_s4 *w = args->weights;
    if (w->k == 0) { /* no block to sum */
        hwq_gemm_s4__ref(args);
        return;
    }
    const int64_t k = w->k, n = w->n, blocks = hwq_s4_blocks(w), line = hwq_gemm_line(k), row_bytes = hwq_s4_row(k, w->block);
    const int64_t begin = args->first_strip * HWQ_STRIP, wanted = begin + args->strips * HWQ_STRIP, end = wanted < n ? wanted : n;
    const int64_t fit = hwq_gemm_block_rows(row_bytes, 12), count = (args->m + fit - 1) / fit, nibbles = (k + 7) / 8 * 64;
    const int64_t most = count > 0 ? ((args->m + count - 1) / count + 11) / 12 * 12 : fit; /* rows at a time */
    const int few = args->m < UNPACK_FROM, is_signed = few && FEW_SIGNED, flipped = (args->a_type == HWQ_S8) != is_signed;
    const int points = !w->symmetric ? POINTS : few ? EIGHTS : NO_POINTS, panel = few ? 1 : PANEL;
    const int copied = flipped || k % 8 || points || panel > 1;
    const int64_t part = few ? k : !w->scales ? PART : w->block < PART ? PART / w->block * w->block : w->block;
    const int64_t out_size = hwq_type_size(args->epilogue->out_type);
    const uint32_t zero_point = (uint32_t)(args->a_zero_point + (flipped ? (is_signed ? -128 : 128) : 0));
    finish fast = finish_of(args->epilogue, args->out_stride);
    fast.fast = !few && (w->scales ? SUMS_HELD && args->epilogue->kind == HWQ_KIND_F32 : fast.fast && !args->epilogue->residual_op);
    results *done = args->workspace;
    uint8_t *copies = (uint8_t *)args->workspace + HWQ_GEMM_FIXED;
    int8_t *unpacked = (int8_t *)copies + fit * row_bytes;
    int32_t *terms = (int32_t *)(unpacked + HWQ_S4_STRIPS * nibbles * 2);

    for (int64_t top = 0; top < args->m; top += most) {
        const int64_t rows = args->m - top < most ? args->m - top : most, a_stride = panel > 1 ? HWQ_QUAD : copied ? row_bytes : args->a_stride;
        const uint8_t *a = (const uint8_t *)args->a + top * args->a_stride;
        if (copied) {
            prepare_rows(a, args->a_stride, rows, panel, row_bytes, w, flipped ? 0x80 : 0, is_signed, (uint8_t *)unpacked, copies);
            a = copies;
        }
        for (int64_t column = begin, strips; column < end; column += strips * HWQ_STRIP) {
            const int64_t left = (end - column + HWQ_STRIP - 1) / HWQ_STRIP, at = column / HWQ_STRIP * blocks * HWQ_STRIP;
            const int64_t wide = !few ? (w->scales ? SCALED_STRIPS : STRIPS) : rows > 1 ? SOME_STRIPS : FEW_STRIPS, strip = column / HWQ_STRIP;
            strips = left >= wide ? wide : !few && left >= 2 && STRIPS > 2 ? 2 : 1;
            const int64_t stride = strips * HWQ_STRIP, width = end - column < stride ? end - column : stride;
            const int with_terms = zero_point != 0 || args->bias;
            for (int64_t i = 0; with_terms && i < strips * blocks * HWQ_STRIP; i++) terms[i] = (int32_t)(0 - zero_point * (uint32_t)w->sums[at + i]);
            for (int64_t j = 0; args->bias && j < width; j++) {
                int32_t *term = terms + j / HWQ_STRIP * blocks * HWQ_STRIP + j % HWQ_STRIP;
                *term = (int32_t)((uint32_t)*term + (uint32_t)args->bias[column + j]);
            }
            strips_of s = {.b = w->nibbles + strip * nibbles, .b_strip = nibbles, .terms = with_terms ? terms : NULL, .points = w->zero_points + at,
                           .scales = w->scales ? w->scales + at : NULL, .blocks = blocks, .k = k, .block = w->block, .with_points = points == POINTS, .epilogue = args->epilogue, .column = column};
            char *out = (char *)args->out + (top * args->out_stride + column) * out_size;
            if ((int)STRIPS <= 2) finish_columns(&fast, args->epilogue, column, width);
            else fast.width = width;
            for (s.first = 0; s.first < k; s.first = s.last) {
                s.last = k - s.first < part ? k : s.first + part;
                s.fast = fast.fast && s.last == k ? &fast : NULL;
                if (!few) {
                    unpack(w->nibbles + strip * nibbles + s.first * 8, strips, nibbles, (s.last - s.first + 7) / 8, unpacked);
                    s.b = unpacked;
                }
                for (int64_t r = 0, taken; r < rows; r += taken) {
                    const int64_t first = r / panel * panel * (copied ? row_bytes : a_stride), within = r % panel, sums_bytes = row_bytes - line;
                    const uint8_t *from = a + first + within * HWQ_QUAD + s.first * panel;
                    const int32_t *sums = (const int32_t *)(a + first + panel * line + within * sums_bytes);
                    const int64_t sums_stride = (panel > 1 ? sums_bytes : row_bytes) / 4;
                    taken = few ? few_rows(rows - r, strips, points, &s, from, a_stride, sums, sums_stride, done->integers + r * stride)
                                : many_rows(rows - r, strips, &s, from, a_stride, sums, sums_stride, done, r * stride, out + r * args->out_stride * out_size);
                }
            }
            if (!fast.fast) finish_block(args, top, rows, column, width, done, stride);
        }
    }
}
