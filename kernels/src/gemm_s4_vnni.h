/* INT4 x INT8 on vpdpbusd: u8 x s8, where nibbles are s8 of -8..7, or for few rows u8 of 0..15 and a is s8. Exact: no lane saturates on the
 * way; |acc| grows by at most 4 * 255 * 8 a step. Included by each path after its vector's names. */
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
enum { BYTES = LANES * 4, PIECES = 64 / BYTES /* vectors of a strip */ };

static inline __attribute__((always_inline)) void dots(const int rows, const int vectors, int64_t quads, const uint8_t *a, int64_t a_stride,
                                                       const int8_t *b, int64_t b_strip, VECTOR acc[][COLUMNS])
{
    const uint8_t *groups[ROWS / 3 + 1]; /* a pointer serves three rows: plain, + stride, + 2 strides */
#pragma GCC unroll 8
    for (int r = 0; r < rows; r += 3) groups[r / 3] = a + r * a_stride;
    for (int64_t q = 0; q < quads; q++, b += 64) {
        VECTOR w[COLUMNS];
#pragma GCC unroll 8
        for (int v = 0; v < vectors; v++) w[v] = load(b + v / PIECES * b_strip + v % PIECES * BYTES);
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

/* Here the nibbles are the unsigned operand, a the signed one. Low and high nibbles in sums of their own: a chain would wait for itself. */
static inline __attribute__((always_inline)) void few_dots(const int rows, const int vectors, int64_t pairs, const uint8_t *a, int64_t a_stride,
                                                           const uint8_t *b, int64_t b_strip, VECTOR acc[][COLUMNS])
{
    VECTOR high[4][COLUMNS];
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < vectors; v++) high[r][v] = SET1(0);
    for (int64_t p = 0; p < pairs; p++, a += 8, b += 64) {
#pragma GCC unroll 8
        for (int v = 0; v < vectors; v++) {
            const uint8_t *from = b + v / PIECES * b_strip + v % PIECES * BYTES;
            if (v % PIECES == 0) _mm_prefetch((const char *)from + HWQ_S4_AHEAD, _MM_HINT_T0);
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
