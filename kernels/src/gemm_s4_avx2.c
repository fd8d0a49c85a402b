/* INT4 x INT8 with deep int16 accumulation: 8 vpmaddubsw, 16 products, join one int16 lane before it is widened.
 * Bound: u8 x s4 is at most 16 * 255 * 8 = 32640 in size, and s8 x u4 at most 16 * 128 * 15 = 30720, both below 2^15: neither the
 * instruction nor the sums saturate or wrap. Per 32 MACs: vpmaddubsw, vpaddw, and a quarter of an instruction to widen; s8 x s8 by
 * scheme W takes four. One row, memory-bound: four strips are read side by side and asked for ahead. */
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
enum { LANES = 8, ROWS = 4, SCALED_ROWS = 4, STRIPS = 1, FEW_STRIPS = 4, COLUMNS = 8, FEW_SIGNED = 1, PANEL = 4, DEPTH = 8 /* vpmaddubsw into a lane */ };

static inline __attribute__((always_inline)) __m256i load(const void *p) { return _mm256_loadu_si256((const __m256i *)p); }

static inline __attribute__((always_inline)) __m256i quad_at(const uint8_t *a)
{
    int32_t four;
    memcpy(&four, a, 4);
    return _mm256_set1_epi32(four);
}

/* One row of one quad of s8; the assembly keeps gcc 12 from hoisting the broadcasts of all rows and spilling sums. */
static inline __attribute__((always_inline)) void row(const uint8_t *a, __m256i b0, __m256i b1, __m256i s[2])
{
#if defined(__GNUC__) && defined(__x86_64__) && !defined(HWQ_NO_ASM)
    __m256i q, t;
    __asm__("vpbroadcastd %[a], %[q]\n\tvpmaddubsw %[b0], %[q], %[t]\n\tvpaddw %[t], %[s0], %[s0]\n\t"
            "vpmaddubsw %[b1], %[q], %[q]\n\tvpaddw %[q], %[s1], %[s1]"
            : [s0] "+x"(s[0]), [s1] "+x"(s[1]), [q] "=&x"(q), [t] "=&x"(t)
            : [b0] "x"(b0), [b1] "x"(b1), [a] "m"(*(const int32_t(*)[1])a));
#else
    const __m256i q = quad_at(a);
    s[0] = _mm256_add_epi16(s[0], _mm256_maddubs_epi16(q, b0));
    s[1] = _mm256_add_epi16(s[1], _mm256_maddubs_epi16(q, b1));
#endif
}

static inline __attribute__((always_inline)) void widen(const int rows, const int vectors, __m256i s_s16x16[][COLUMNS], __m256i acc_s32x8[][COLUMNS])
{
#pragma GCC unroll 4
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 8
        for (int v = 0; v < vectors; v++) acc_s32x8[r][v] = _mm256_add_epi32(acc_s32x8[r][v], _mm256_madd_epi16(s_s16x16[r][v], _mm256_set1_epi16(1)));
}

static inline __attribute__((always_inline)) void quad(const int rows, const uint8_t *a, const int8_t *b, __m256i s[ROWS][COLUMNS])
{
    const __m256i b0 = load(b), b1 = load(b + 32);
#pragma GCC unroll 4
    for (int r = 0; r < rows; r++) row(a + 4 * r, b0, b1, s[r]);
}

static inline __attribute__((always_inline)) void dots(const int rows, const int vectors, int64_t quads, const uint8_t *a, int64_t a_stride,
                                                       const int8_t *b, int64_t b_strip, __m256i acc[][COLUMNS])
{
    (void)vectors, (void)a_stride, (void)b_strip;
    __m256i s[ROWS][COLUMNS];
    for (; quads > 0; quads -= DEPTH, a += 4 * PANEL * DEPTH, b += 64 * DEPTH) {
        for (int r = 0; r < rows; r++) s[r][0] = s[r][1] = _mm256_setzero_si256();
        if (quads >= DEPTH) {
#pragma GCC unroll 8
            for (int q = 0; q < DEPTH; q++) quad(rows, a + 4 * PANEL * q, b + 64 * q, s);
        } else {
            for (int64_t q = 0; q < quads; q++) quad(rows, a + 4 * PANEL * q, b + 64 * q, s);
        }
        widen(rows, 2, s, acc);
    }
}

/* Nibbles in registers: u4 times the s8 of a. */
static inline __attribute__((always_inline)) void few_dots(const int rows, const int vectors, int64_t pairs, const uint8_t *a, int64_t a_stride,
                                                           const uint8_t *b, int64_t b_strip, __m256i acc[][COLUMNS])
{
    const __m256i mask = _mm256_set1_epi8(15);
    for (; pairs > 0; pairs -= DEPTH / 2) {
        __m256i s[4][COLUMNS];
#pragma GCC unroll 4
        for (int r = 0; r < rows; r++)
#pragma GCC unroll 8
            for (int v = 0; v < vectors; v++) s[r][v] = _mm256_setzero_si256();
        const int64_t depth = pairs < DEPTH / 2 ? pairs : DEPTH / 2;
        for (int64_t p = 0; p < depth; p++, a += 8, b += 64) {
#pragma GCC unroll 8
            for (int v = 0; v < vectors; v++) {
                const uint8_t *from = b + v / 2 * b_strip + v % 2 * 32;
                if (v % 2 == 0) _mm_prefetch((const char *)from + HWQ_S4_AHEAD, _MM_HINT_T0);
                const __m256i x = load(from), low = _mm256_and_si256(x, mask), high = _mm256_and_si256(_mm256_srli_epi16(x, 4), mask);
#pragma GCC unroll 4
                for (int r = 0; r < rows; r++) {
                    s[r][v] = _mm256_add_epi16(s[r][v], _mm256_maddubs_epi16(low, quad_at(a + r * a_stride)));
                    s[r][v] = _mm256_add_epi16(s[r][v], _mm256_maddubs_epi16(high, quad_at(a + r * a_stride + 4)));
                }
            }
        }
        widen(rows, vectors, s, acc);
    }
}

#include "gemm_s4_blocks.h"

void hwq_gemm_s4__avx2(const hwq_gemm_s4_args *args) { multiply(args); }

HWQ_TARGET_END
#endif
