/* INT4 x INT8 on vpdpbusd: u8 x s8, where nibbles are s8 of -8..7, or for few rows u8 of 0..15 and a is s8. Exact: no lane saturates on the
 * way; |acc| grows by at most 4 * 255 * 8 a step. Included by each path after its vector's names.
 * Tile: 6 rows x 4 vectors of accumulators on 512 bits, 37 instructions for 24 products and 10 loads (12 x 2: 45 and 14; the broadcast as an
 * operand of the product: 29 and 26, which the two load ports pay for). The tile alone: 89 to 91 percent of the register-only loop, 77 to 82
 * where another thread has half of the core (12 x 2: 78 to 92, and 65 to 69), interleaved on a Cascade Lake Xeon.
 * With scales the tile is 6 x 2 on 512 bits, so that as many sums of float fit beside it: 0.72 to 0.75 of the loop in groups of 32, where 6 x 4 with its
 * sums in memory had 0.49 (Zen 5; a block of 32 k costs 96 products, 12 conversions, 12 multiply-adds). */
#include "dot_vnni.h"

static inline __attribute__((always_inline)) VECTOR load(const void *p)
{
    VECTOR v;
    memcpy(&v, p, sizeof v);
    return v;
}
static inline __attribute__((always_inline)) VECTOR quad_at(const uint8_t *a)
{
    int32_t four;
    memcpy(&four, a, 4);
    return SET1(four);
}
enum { BYTES = LANES * 4, PIECES = 64 / BYTES /* vectors of a strip */, WIDE = STRIPS * PIECES, AHEAD = 256 /* bytes, of several strips */ };

/* One strip of one row from end to end. Low and high nibbles, and neighbors, in sums of their own: a chain would wait for itself. */
static inline __attribute__((always_inline)) void one_strip(int64_t pairs, const uint8_t *a, const uint8_t *b, VECTOR acc[PIECES])
{
    const VECTOR mask = SET1(0x0F0F0F0F);
    VECTOR sums[8];
    for (int i = 0; i < 8; i++) sums[i] = SET1(0);
    for (; pairs >= 4 / PIECES; pairs -= 4 / PIECES, a += 32 / PIECES, b += 4 * BYTES)
#pragma GCC unroll 4
        for (int i = 0; i < 4; i++) {
            if (i % PIECES == 0) _mm_prefetch((const char *)b + BYTES * i + HWQ_GEMM_FAR, _MM_HINT_T0);
            const VECTOR x = load(b + BYTES * i);
            sums[2 * i] = DOT(sums[2 * i], AND(x, mask), quad_at(a + i / PIECES * 8));
            sums[2 * i + 1] = DOT(sums[2 * i + 1], AND(SHIFT_RIGHT(x, 4), mask), quad_at(a + i / PIECES * 8 + 4));
        }
    for (; pairs > 0; pairs--, a += 8, b += 64)
        for (int i = 0; i < PIECES; i++) {
            const VECTOR x = load(b + BYTES * i);
            sums[2 * i] = DOT(sums[2 * i], AND(x, mask), quad_at(a));
            sums[2 * i + 1] = DOT(sums[2 * i + 1], AND(SHIFT_RIGHT(x, 4), mask), quad_at(a + 4));
        }
    for (int i = 0; i < 8; i++) acc[i / 2 % PIECES] = ADD(acc[i / 2 % PIECES], sums[i]);
}

/* Here the nibbles are the unsigned operand, a the signed one. */
static inline __attribute__((always_inline)) void few_dots(const int rows, const int vectors, int64_t pairs, const uint8_t *a, int64_t a_stride,
                                                           const uint8_t *b, int64_t b_strip, VECTOR acc[][COLUMNS])
{
    if (rows == 1 && (vectors == PIECES || pairs >= HWQ_GEMM_LONG / 8)) {
        for (int v = 0; v < vectors; v += PIECES) one_strip(pairs, a, b + v / PIECES * b_strip, acc[0] + v);
        return;
    }
    VECTOR high[4][COLUMNS];
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < vectors; v++) high[r][v] = SET1(0);
    for (int64_t p = 0; p < pairs; p++, a += 8, b += 64) {
#pragma GCC unroll 8
        for (int v = 0; v < vectors; v++) {
            const uint8_t *from = b + v / PIECES * b_strip + v % PIECES * BYTES;
            if (v % PIECES == 0) _mm_prefetch((const char *)from + AHEAD, _MM_HINT_T0);
            const VECTOR x = load(from), mask = SET1(0x0F0F0F0F);
#pragma GCC unroll 8
            for (int r = 0; r < rows; r++) {
                acc[r][v] = DOT(acc[r][v], AND(x, mask), quad_at(a + r * a_stride));
                high[r][v] = DOT(high[r][v], AND(SHIFT_RIGHT(x, 4), mask), quad_at(a + r * a_stride + 4));
            }
        }
    }
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < vectors; v++) acc[r][v] = ADD(acc[r][v], high[r][v]);
}

#include "gemm_s4_blocks.h"

/* The fast way out of rows x vectors sums. */
static inline __attribute__((always_inline)) void finish_lines(const int rows, const int vectors, const strips_of *s, VECTOR acc[ROWS][WIDE], char *out);
/* The float epilogue of rows x vectors sums, where they are held in registers. */
static inline __attribute__((always_inline)) void finish_sums(const int rows, const int vectors, const strips_of *s, FLOATS y[ROWS][WIDE], char *out);

/* `quads` quads of rows x vectors: a of as many rows, b of all strips together. */
static inline __attribute__((always_inline)) void dots(const int rows, const int vectors, int64_t quads, const uint8_t *a, int64_t a_stride,
                                                       const int8_t *b, VECTOR acc[ROWS][WIDE])
{
    const uint8_t *groups[ROWS / 3 + 1]; /* a pointer serves three rows: plain, + stride, + 2 strides */
#pragma GCC unroll 8
    for (int r = 0; r < rows; r += 3) groups[r / 3] = a + r * a_stride;
    for (int64_t q = 0; q < quads; q++, b += vectors * BYTES) {
        VECTOR w[WIDE];
#pragma GCC unroll 8
        for (int v = 0; v < vectors; v++) w[v] = load(b + v * BYTES);
#pragma GCC unroll 16
        for (int r = 0; r < rows; r++) {
            const VECTOR x = quad_at(groups[r / 3] + r % 3 * a_stride);
#pragma GCC unroll 8
            for (int v = 0; v < vectors; v++) acc[r][v] = DOT(acc[r][v], x, w[v]);
        }
#pragma GCC unroll 8
        for (int r = 0; r < rows; r += 3) groups[r / 3] += 4;
    }
}

/* What a block's sums begin with: bias - za * sum(u - zu), less (zu - 8) times each row's sum. */
static inline __attribute__((always_inline)) void begin(const int rows, const int vectors, const strips_of *s, const int32_t *sums, int64_t sums_stride, int64_t g,
                                                        VECTOR acc[ROWS][WIDE])
{
#pragma GCC unroll 8
    for (int v = 0; v < vectors; v++) {
        const int64_t from = (v / PER_STRIP * s->blocks + g) * HWQ_STRIP + v % PER_STRIP * LANES;
        const VECTOR term = s->terms ? load(s->terms + from) : SET1(0);
#pragma GCC unroll 16
        for (int r = 0; r < rows; r++) acc[r][v] = term;
        if (s->with_points) {
            const VECTOR point = SUB(load(s->points + from), SET1(8));
#pragma GCC unroll 16
            for (int r = 0; r < rows; r++) acc[r][v] = SUB(term, MULLO(point, SET1(sums[r * sums_stride + g])));
        }
    }
}

/* A tile in registers. */
static inline __attribute__((always_inline)) void plain_tile(const int rows, const int strips, const strips_of *s, const uint8_t *a, int64_t a_stride,
                                                             const int32_t *sums, int64_t sums_stride, int32_t *done, char *out)
{
    const int vectors = strips * PER_STRIP;
    VECTOR acc[ROWS][WIDE];
    if (s->first == 0) begin(rows, vectors, s, sums, sums_stride, 0, acc);
    else
#pragma GCC unroll 16
        for (int r = 0; r < rows; r++)
#pragma GCC unroll 8
            for (int v = 0; v < vectors; v++) acc[r][v] = load(done + (r * vectors + v) * LANES);
    dots(rows, vectors, (s->last - s->first + 7) / 8 * 2, a, a_stride, s->b, acc);
    if (s->fast) finish_lines(rows, vectors, s, acc, out);
    else
#pragma GCC unroll 16
        for (int r = 0; r < rows; r++)
#pragma GCC unroll 8
            for (int v = 0; v < vectors; v++) memcpy(done + (r * vectors + v) * LANES, &acc[r][v], sizeof(VECTOR));
}

/* Sums of float are held beside those of integers where registers suffice for a tile of SCALED_STRIPS, else in memory. */
static inline __attribute__((always_inline)) void scaled_tile(const int rows, const int strips, const strips_of *part, const uint8_t *a, int64_t a_stride,
                                                              const int32_t *sums, int64_t sums_stride, float *y, char *out)
{
    const strips_of s = *part; /* stores cannot alias it */
    const int vectors = strips * PER_STRIP;
    const int8_t *b = s.b;
    FLOATS held[ROWS][WIDE];
    if (SUMS_HELD)
#pragma GCC unroll 16
        for (int r = 0; r < rows; r++)
#pragma GCC unroll 8
            for (int v = 0; v < vectors; v++) held[r][v] = s.first == 0 ? ZERO_FLOATS : LOAD_FLOATS(y + (r * vectors + v) * LANES);
    else if (s.first == 0) memset(y, 0, (size_t)(rows * vectors * LANES) * sizeof *y);
    for (int64_t g = s.first / s.block, k = s.first; k < s.last; g++, k += s.block) {
        const int64_t quads = ((s.last - k < s.block ? s.last - k : s.block) + 7) / 8 * 2;
        VECTOR acc[ROWS][WIDE];
        begin(rows, vectors, &s, sums, sums_stride, g, acc);
        if (quads == 8) dots(rows, vectors, 8, a, a_stride, b, acc); /* no loop, no spills */
        else dots(rows, vectors, quads, a, a_stride, b, acc);
        a += quads * 4, b += quads * vectors * BYTES;
#pragma GCC unroll 8
        for (int v = 0; v < vectors; v++) {
            const FLOATS scale = LOAD_FLOATS(s.scales + (v / PER_STRIP * s.blocks + g) * HWQ_STRIP + v % PER_STRIP * LANES);
#pragma GCC unroll 16
            for (int r = 0; r < rows; r++) {
                const FLOATS sum = FMA(TO_FLOATS(acc[r][v]), scale, SUMS_HELD ? held[r][v] : LOAD_FLOATS(y + (r * vectors + v) * LANES));
                if (SUMS_HELD) held[r][v] = sum;
                else memcpy(y + (r * vectors + v) * LANES, &sum, sizeof sum);
            }
        }
    }
    if (SUMS_HELD && s.fast) finish_sums(rows, vectors, &s, held, out);
    else if (SUMS_HELD)
#pragma GCC unroll 16
        for (int r = 0; r < rows; r++)
#pragma GCC unroll 8
            for (int v = 0; v < vectors; v++) memcpy(y + (r * vectors + v) * LANES, &held[r][v], sizeof(FLOATS));
}

static int64_t many_rows(int64_t rows, int64_t strips, const strips_of *s, const uint8_t *a, int64_t a_stride, const int32_t *sums, int64_t sums_stride,
                         results *done, int64_t at, char *out)
{
#define TILE(rows, strips)                                                                                                    \
    do {                                                                                                                      \
        if ((int)strips <= (int)SCALED_STRIPS && s->scales) scaled_tile(rows, strips, s, a, a_stride, sums, sums_stride, done->floats + at, out);                       \
        else plain_tile(rows, strips, s, a, a_stride, sums, sums_stride, done->integers + at, out);                           \
        return rows;                                                                                                          \
    } while (0)
#define ROWS_OF(strips)                                                                                                       \
    do {                                                                                                                      \
        if (rows >= 6) TILE(6, strips);                                                                                       \
        if (rows >= 4) TILE(4, strips); /* one row alone would wait for its few sums */                                       \
        if (rows >= 2) TILE(2, strips);                                                                                       \
        TILE(1, strips);                                                                                                      \
    } while (0)
    if (strips == STRIPS) ROWS_OF(STRIPS);
    if (STRIPS > 2 && strips == 2) ROWS_OF((STRIPS > 2 ? 2 : 1));
    ROWS_OF(1);
#undef ROWS_OF
#undef TILE
}
