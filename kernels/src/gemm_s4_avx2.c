/* INT4 x INT8 with deep int16 accumulation: 8 vpmaddubsw, 16 products, join one int16 lane before it is widened.
 * Bound: u8 x s4 is at most 16 * 255 * 8 = 32640 in size, and s8 x u4 at most 16 * 128 * 15 = 30720, both below 2^15: neither the
 * instruction nor the sums saturate or wrap. Per 32 MACs: vpmaddubsw, vpaddw, and a quarter of an instruction to widen; s8 x s8 by
 * scheme W takes four.
 * Tile of many rows: 3 x 32, 12 sums of int16; those of int32 stay in memory, touched every 8 quads. The first quad begins the sums and
 * spares their additions: 248 instructions for 3072 MACs, 12.4 each, where 4 x 16 with all sums in registers takes 10.2 or fewer; 116 loads
 * and 204 vector instructions leave no other port more to do. The tile alone runs at 87 to 90 percent of the register-only loop (4 x 16: 81;
 * 6 x 16: 82; 2 x 32: 89, but 88 loads for 2048 MACs), where another thread has half of the core at 78 (70), interleaved on a Cascade Lake Xeon.
 * One row: strip after strip (gemm.h), short ones and those with scales in between four side by side and asked for ahead. */
#include "gemm_s4.h"
#include "isa.h"

#if HWQ_X86
#include <immintrin.h>
#include <string.h>

HWQ_TARGET("avx2,fma")

#define VECTOR __m256i
#define FLOATS __m256
#define SET1 _mm256_set1_epi32
#define SUB _mm256_sub_epi32
#define AND _mm256_and_si256
#define SHIFT_RIGHT _mm256_srli_epi32
#define SUB_BYTES _mm256_sub_epi8
#define MULLO _mm256_mullo_epi32
#define TO_FLOATS _mm256_cvtepi32_ps
#define LOAD_FLOATS _mm256_loadu_ps
#define FMA _mm256_fmadd_ps
#define ZERO_FLOATS _mm256_setzero_ps()
enum { LANES = 8, ROWS = 3, STRIPS = 2, FEW_STRIPS = 4, SOME_STRIPS = 1, UNPACK_FROM = 8, COLUMNS = 8, FEW_SIGNED = 1, PANEL = 3, PART = 512, SUMS_HELD = 0, SCALED_STRIPS = STRIPS, DEPTH = 8 /* vpmaddubsw into a lane */ };

static inline __attribute__((always_inline)) __m256i load(const void *p) { return _mm256_loadu_si256((const __m256i *)p); }

static inline __attribute__((always_inline)) __m256i quad_at(const uint8_t *a)
{
    int32_t four;
    memcpy(&four, a, 4);
    return _mm256_set1_epi32(four);
}

static inline __attribute__((always_inline)) void widen(const int rows, const int vectors, __m256i s_s16x16[][COLUMNS], __m256i acc_s32x8[][COLUMNS])
{
#pragma GCC unroll 4
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 8
        for (int v = 0; v < vectors; v++) acc_s32x8[r][v] = _mm256_add_epi32(acc_s32x8[r][v], _mm256_madd_epi16(s_s16x16[r][v], _mm256_set1_epi16(1)));
}

/* `pairs` pairs of quads, at most DEPTH / 2, in registers: u4 times the s8 of a, into sums of int16, which the first begins. Each is kept in its
 * register: one row runs 1.25 times as fast so (Zen 5, weights in the second cache). */
static inline __attribute__((always_inline)) void few_pairs(const int rows, const int vectors, const int64_t pairs, const uint8_t *a, int64_t a_stride,
                                                            const uint8_t *b, int64_t b_strip, const int ahead, __m256i s[4][COLUMNS])
{
    const __m256i mask = _mm256_set1_epi8(15);
#pragma GCC unroll 4
    for (int64_t p = 0; p < pairs; p++, a += 8, b += 64)
#pragma GCC unroll 8
        for (int v = 0; v < vectors; v++) {
            const uint8_t *from = b + v / 2 * b_strip + v % 2 * 32;
            if (v % 2 == 0) _mm_prefetch((const char *)from + ahead, _MM_HINT_T0);
            __m256i x = load(from);
            HWQ_IN_REGISTER(x);
            const __m256i low = _mm256_and_si256(x, mask), high = _mm256_and_si256(_mm256_srli_epi16(x, 4), mask);
#pragma GCC unroll 4
            for (int r = 0; r < rows; r++) {
                const __m256i first = _mm256_maddubs_epi16(low, quad_at(a + r * a_stride)), second = _mm256_maddubs_epi16(high, quad_at(a + r * a_stride + 4));
                s[r][v] = _mm256_add_epi16(p ? _mm256_add_epi16(s[r][v], first) : first, second);
                HWQ_IN_REGISTER(s[r][v]);
            }
        }
}

/* rows x vectors, the strips side by side. */
static inline __attribute__((always_inline)) void beside(const int rows, const int vectors, int64_t pairs, const uint8_t *a, int64_t a_stride, const uint8_t *b,
                                                         int64_t b_strip, const int ahead, __m256i acc[][COLUMNS])
{
    __m256i s[4][COLUMNS];
    for (; pairs >= DEPTH / 2; pairs -= DEPTH / 2, a += 4 * DEPTH, b += 32 * DEPTH) {
        few_pairs(rows, vectors, DEPTH / 2, a, a_stride, b, b_strip, ahead, s);
        widen(rows, vectors, s, acc);
    }
    if (pairs > 0) {
        few_pairs(rows, vectors, pairs, a, a_stride, b, b_strip, ahead, s);
        widen(rows, vectors, s, acc);
    }
}

static inline __attribute__((always_inline)) void few_dots(const int rows, const int vectors, int64_t pairs, const uint8_t *a, int64_t a_stride,
                                                           const uint8_t *b, int64_t b_strip, __m256i acc[][COLUMNS])
{
    if (rows > 1 || pairs < HWQ_GEMM_LONG / 8) {
        beside(rows, vectors, pairs, a, a_stride, b, b_strip, HWQ_S4_AHEAD, acc);
        return;
    }
    for (int v = 0; v < vectors; v += 2, b += b_strip) {
        __m256i strip[1][COLUMNS] = {{acc[0][v], acc[0][v + 1]}};
        beside(1, 2, pairs, a, 0, b, 0, HWQ_GEMM_FAR, strip);
        acc[0][v] = strip[0][0], acc[0][v + 1] = strip[0][1];
    }
}

#include "gemm_s4_blocks.h"

/* The next quad of one row: `vectors` vectors of weights at b, the first also in b0. The others are operands from memory, which take no
 * instruction of their own; the assembly, tested equal, keeps gcc 12 from loading them once for all rows and spilling sums. */
static inline __attribute__((always_inline)) void row(const int vectors, const uint8_t *a, const int8_t *b, __m256i b0, __m256i s[4])
{
#if defined(__GNUC__) && defined(__x86_64__) && !defined(HWQ_NO_ASM)
    typedef int32_t __attribute__((may_alias, aligned(1))) four_bytes;
#define NEXT(weights, product, sum) "vpmaddubsw %[" weights "], %[q], %[" product "]\n\tvpaddw %[" product "], %[" sum "], %[" sum "]\n\t"
#define MEMORY(v) "m"(*(const __m256i_u *)(b + 32 * (v)))
    __m256i q, t;
    if (vectors == 4)
        __asm__("vpbroadcastd %[a], %[q]\n\t" NEXT("b0", "t", "s0") NEXT("b2", "t", "s2") NEXT("b1", "t", "s1") NEXT("b3", "q", "s3")
                : [s0] "+x"(s[0]), [s1] "+x"(s[1]), [s2] "+x"(s[2]), [s3] "+x"(s[3]), [q] "=&x"(q), [t] "=&x"(t)
                : [a] "m"(*(const four_bytes *)a), [b0] "x"(b0), [b1] MEMORY(1), [b2] MEMORY(2), [b3] MEMORY(3));
    else
        __asm__("vpbroadcastd %[a], %[q]\n\t" NEXT("b0", "t", "s0") NEXT("b1", "q", "s1")
                : [s0] "+x"(s[0]), [s1] "+x"(s[1]), [q] "=&x"(q), [t] "=&x"(t) : [a] "m"(*(const four_bytes *)a), [b0] "x"(b0), [b1] MEMORY(1));
#undef NEXT
#undef MEMORY
#else
    const __m256i q = quad_at(a);
    s[0] = _mm256_add_epi16(s[0], _mm256_maddubs_epi16(q, b0));
    for (int v = 1; v < vectors; v++) s[v] = _mm256_add_epi16(s[v], _mm256_maddubs_epi16(q, load(b + 32 * v)));
#endif
}

/* At most DEPTH quads into sums of int16, which the first begins. */
static inline __attribute__((always_inline)) void deep(const int rows, const int vectors, int64_t quads, const uint8_t *a, const int8_t *b, __m256i s[ROWS][4])
{
#pragma GCC unroll 3
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int v = 0; v < vectors; v++) s[r][v] = _mm256_maddubs_epi16(quad_at(a + 4 * r), load(b + 32 * v));
    if (quads >= DEPTH) {
#pragma GCC unroll 8
        for (int q = 1; q < DEPTH; q++) {
            const int8_t *at = b + 32 * vectors * q;
            const __m256i b0 = load(at);
#pragma GCC unroll 3
            for (int r = 0; r < rows; r++) row(vectors, a + 4 * PANEL * q + 4 * r, at, b0, s[r]);
        }
    } else {
        for (int64_t q = 1; q < quads; q++) {
            const int8_t *at = b + 32 * vectors * q;
            const __m256i b0 = load(at);
#pragma GCC unroll 3
            for (int r = 0; r < rows; r++) row(vectors, a + 4 * PANEL * q + 4 * r, at, b0, s[r]);
        }
    }
}

/* What a block's sums of int32 begin with: bias - za * sum(u - zu), less (zu - 8) times the row's sum. */
static inline __attribute__((always_inline)) __m256i begin(const strips_of *s, int64_t from, int32_t sum)
{
    const __m256i term = s->terms ? load(s->terms + from) : _mm256_setzero_si256();
    if (!s->with_points) return term;
    return _mm256_sub_epi32(term, _mm256_mullo_epi32(_mm256_sub_epi32(load(s->points + from), _mm256_set1_epi32(8)), _mm256_set1_epi32(sum)));
}

/* rows x (8 vectors) with a scale for every DEPTH quads, groups of 32: sums of int16 go to floats, which stay in memory, at once. */
static inline __attribute__((always_inline)) void group_tile(const int rows, const int vectors, const strips_of *part, const uint8_t *a, const int32_t *sums,
                                                             int64_t sums_stride, float *y)
{
    const strips_of s = *part; /* stores cannot alias it */
    const int64_t next = s.blocks * HWQ_STRIP, first = s.first / s.block, last = (s.last + s.block - 1) / s.block;
    const int8_t *b = s.b;
    if (first == 0) memset(y, 0, (size_t)(rows * vectors * LANES) * sizeof *y);
    for (int64_t g = first; g < last; g++, a += 4 * PANEL * DEPTH, b += 32 * vectors * DEPTH) {
        __m256i sum_s16x16[ROWS][4];
        deep(rows, vectors, (s.k - g * s.block + 7) / 8 * 2, a, b, sum_s16x16);
#pragma GCC unroll 4
        for (int v = 0; v < vectors; v++) {
            const int64_t from = g * HWQ_STRIP + v / 2 * next + v % 2 * LANES;
            const __m256 scale = _mm256_loadu_ps(s.scales + from);
#pragma GCC unroll 3
            for (int r = 0; r < rows; r++) {
                float *to = y + (r * vectors + v) * LANES;
                __m256i whole = _mm256_madd_epi16(sum_s16x16[r][v], _mm256_set1_epi16(1));
                if (s.terms || s.with_points) whole = _mm256_add_epi32(whole, begin(&s, from, sums[r * sums_stride + g]));
                _mm256_storeu_ps(to, _mm256_fmadd_ps(_mm256_cvtepi32_ps(whole), scale, _mm256_loadu_ps(to)));
            }
        }
    }
}

/* The same with other blocks, or without scales: sums of int32 stay in memory too. */
static inline __attribute__((always_inline)) void many_tile(const int rows, const int vectors, const strips_of *part, const uint8_t *a, const int32_t *sums,
                                                            int64_t sums_stride, results *done, int64_t at, char *out)
{
    const strips_of s = *part; /* stores cannot alias it */
    const int scaled = s.scales != NULL;
    const int8_t *b = s.b;
    int32_t space[ROWS * 4 * LANES], *acc = scaled ? space : done->integers + at;
    for (int64_t g = s.first / s.block; g * s.block < s.last; g++) {
        const int64_t first = scaled ? g * s.block : s.first, last = scaled && first + s.block < s.last ? first + s.block : s.last;
        const int64_t column = g * HWQ_STRIP, next = s.blocks * HWQ_STRIP;
        if (first == 0 || scaled)
            for (int v = 0; v < vectors; v++)
                for (int r = 0; r < rows; r++)
                    _mm256_storeu_si256((__m256i *)(acc + (r * vectors + v) * LANES), begin(&s, column + v / 2 * next + v % 2 * LANES, sums[r * sums_stride + g]));
        for (int64_t quads = (last - first + 7) / 8 * 2; quads > 0; quads -= DEPTH, a += 4 * PANEL * DEPTH, b += 32 * vectors * DEPTH) {
            __m256i sum_s16x16[ROWS][4];
            deep(rows, vectors, quads, a, b, sum_s16x16);
#pragma GCC unroll 3
            for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
                for (int v = 0; v < vectors; v++) {
                    __m256i *to = (__m256i *)(acc + (r * vectors + v) * LANES);
                    _mm256_storeu_si256(to, _mm256_add_epi32(_mm256_loadu_si256(to), _mm256_madd_epi16(sum_s16x16[r][v], _mm256_set1_epi16(1))));
                }
        }
        for (int v = 0; scaled && v < vectors; v++) {
            const __m256 scale = _mm256_loadu_ps(s.scales + column + v / 2 * next + v % 2 * LANES);
            for (int r = 0; r < rows; r++) {
                float *to = done->floats + at + (r * vectors + v) * LANES;
                const __m256 whole = _mm256_cvtepi32_ps(load(acc + (r * vectors + v) * LANES));
                _mm256_storeu_ps(to, _mm256_fmadd_ps(whole, scale, g ? _mm256_loadu_ps(to) : _mm256_setzero_ps()));
            }
        }
    }
    for (int r = 0; s.fast && r < rows; r++) {
        __m256i line[4];
        for (int v = 0; v < vectors; v++) line[v] = load(acc + (r * vectors + v) * LANES);
        finish_row(vectors, s.fast, line, out + r * s.fast->stride);
    }
}

static int64_t many_rows(int64_t rows, int64_t strips, const strips_of *s, const uint8_t *a, int64_t a_stride, const int32_t *sums, int64_t sums_stride,
                         results *done, int64_t at, char *out)
{
    (void)a_stride;
#define TILE(rows)                                                                                                            \
    do {                                                                                                                      \
        const int grouped = s->scales && s->block == 4 * DEPTH;                                                               \
        if (strips == 2 && grouped) group_tile(rows, 4, s, a, sums, sums_stride, done->floats + at);                          \
        else if (strips == 2) many_tile(rows, 4, s, a, sums, sums_stride, done, at, out);                                     \
        else if (grouped) group_tile(rows, 2, s, a, sums, sums_stride, done->floats + at);                                    \
        else many_tile(rows, 2, s, a, sums, sums_stride, done, at, out);                                                      \
        return rows;                                                                                                          \
    } while (0)
    if (rows >= 3) TILE(3);
    if (rows == 2) TILE(2);
    TILE(1);
#undef TILE
}

void hwq_gemm_s4__avx2(const hwq_gemm_s4_args *args) { multiply(args); }

HWQ_TARGET_END
#endif
