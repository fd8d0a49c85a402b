/* Some cycles of the array, sum by sum. Exact: a word's two products fit 32 bits (|a|, |w| <= 256: 2^17), sums wrap.
 *
 * A sum that is above row u at the start of the block meets row u in the first cycle, row u + 1 in the second, and so on:
 * here it is followed down through the rows of the block's cycles, which visits every PE once for each cycle, with the
 * words that stand before it in that cycle. A negative u is a sum that starts -u cycles later. The lowest sums go first,
 * so that each lands where the one before it has left. os: sums rest, and each takes the block's products at once. */
#include <string.h>

#include "systolic.h"

static int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }

/* The mark of a new tile runs along the diagonal: rows met by sum u take over column front - u. */
static void take_weights(hwq_word *weights, const hwq_wave *wave, int64_t u, int64_t row, int64_t n, int64_t pitch,
                         int64_t cols) {
    const int64_t c = wave->front - u;
    if (c < 0 || c >= cols) return;
    for (int64_t r = row; r < row + n; r++) weights[r * pitch + c] = wave->tile[r * pitch + c];
}

/* FOLLOW(sum, words, step, weights, pitch, n, to): every lane of `to` is its sum plus n words . weights. */
#define STEP_WS(NAME, TARGET, FOLLOW)                                                                                \
    TARGET static void NAME(int32_t *sums, hwq_word *weights, const hwq_word *edge, int64_t edge_pitch, int64_t rows, \
                            int64_t cols, int64_t pitch, int64_t cycles, int32_t *bottom, const hwq_wave *waves,     \
                            int64_t n_waves) {                                                                       \
        for (int64_t u = rows - 1; u > -cycles; u--) {                                                               \
            const int64_t row = u > 0 ? u : 0, late = u < 0 ? -u : 0, n = min64(cycles - late, rows - row);          \
            for (int64_t i = 0; i < n_waves; i++) take_weights(weights, &waves[i], u, row, n, pitch, cols);          \
            const int64_t end = row + n - 1;                                                                         \
            FOLLOW(u > 0 ? sums + (u - 1) * pitch : NULL, edge + row * edge_pitch - late, edge_pitch - 1,            \
                   weights + row * pitch, pitch, n,                                                                  \
                   end == rows - 1 ? bottom + (late + n - 1) * pitch : sums + end * pitch);                          \
        }                                                                                                            \
    }
#define STEP_OS(NAME, TARGET, FOLLOW)                                                                                \
    TARGET static void NAME(int32_t *sums, const hwq_word *top, const hwq_word *edge, int64_t edge_pitch,            \
                            int64_t rows, int64_t pitch, int64_t cycles) {                                           \
        for (int64_t r = 0; r < rows; r++)                                                                           \
            FOLLOW(sums + r * pitch, edge + r * edge_pitch, -1, top - r * pitch, pitch, cycles, sums + r * pitch);   \
    }

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>

/* pmaddwd is the PE. Two vectors side by side keep both multipliers busy while each waits for its own additions. */
#define FOLLOW(NAME, TARGET, VECTOR, LANES, LOAD, STORE, ADD, MADD, ZERO)                                            \
    TARGET static inline void NAME(const int32_t *from, const hwq_word *words, int64_t step, const hwq_word *weights, \
                                   int64_t pitch, int64_t n, int32_t *to) {                                          \
        int64_t c = 0;                                                                                               \
        for (; c + SIDE * LANES <= pitch; c += SIDE * LANES) {                                                       \
            VECTOR sum[SIDE];                                                                                        \
            for (int v = 0; v < SIDE; v++) sum[v] = from ? LOAD((const VECTOR *)(from + c + v * LANES)) : ZERO();    \
            const hwq_word *a = words + c, *w = weights + c;                                                         \
            for (int64_t i = 0; i < n; i++, a += step, w += pitch)                                                   \
                for (int v = 0; v < SIDE; v++)                                                                       \
                    sum[v] = ADD(sum[v], MADD(LOAD((const VECTOR *)(a + v * LANES)), LOAD((const VECTOR *)(w + v * LANES)))); \
            for (int v = 0; v < SIDE; v++) STORE((VECTOR *)(to + c + v * LANES), sum[v]);                            \
        }                                                                                                            \
        for (; c < pitch; c += LANES) {                                                                              \
            VECTOR sum = from ? LOAD((const VECTOR *)(from + c)) : ZERO();                                           \
            const hwq_word *a = words + c, *w = weights + c;                                                         \
            for (int64_t i = 0; i < n; i++, a += step, w += pitch)                                                   \
                sum = ADD(sum, MADD(LOAD((const VECTOR *)a), LOAD((const VECTOR *)w)));                              \
            STORE((VECTOR *)(to + c), sum);                                                                          \
        }                                                                                                            \
    }
#define SIDE 2

#define BASE
#define AVX2 __attribute__((target("avx2")))
#define AVX512 __attribute__((target("avx512f,avx512bw,prefer-vector-width=512")))
FOLLOW(follow, BASE, __m128i, 4, _mm_loadu_si128, _mm_storeu_si128, _mm_add_epi32, _mm_madd_epi16, _mm_setzero_si128)
FOLLOW(follow_avx2, AVX2, __m256i, 8, _mm256_loadu_si256, _mm256_storeu_si256, _mm256_add_epi32, _mm256_madd_epi16,
       _mm256_setzero_si256)
FOLLOW(follow_avx512, AVX512, __m512i, 16, _mm512_loadu_si512, _mm512_storeu_si512, _mm512_add_epi32, _mm512_madd_epi16,
       _mm512_setzero_si512)
STEP_WS(step_ws, BASE, follow)
STEP_OS(step_os, BASE, follow)
STEP_WS(step_ws_avx2, AVX2, follow_avx2)
STEP_OS(step_os_avx2, AVX2, follow_avx2)
STEP_WS(step_ws_avx512, AVX512, follow_avx512)
STEP_OS(step_os_avx512, AVX512, follow_avx512)

void hwq_step_choose(hwq_step_ws *ws, hwq_step_os *os) {
    if (__builtin_cpu_supports("avx512bw")) {
        *ws = step_ws_avx512;
        *os = step_os_avx512;
    } else if (__builtin_cpu_supports("avx2")) {
        *ws = step_ws_avx2;
        *os = step_os_avx2;
    } else {
        *ws = step_ws;
        *os = step_os;
    }
}

#else

static void follow(const int32_t *from, const hwq_word *words, int64_t step, const hwq_word *weights, int64_t pitch,
                   int64_t n, int32_t *to) {
    for (int64_t c = 0; c < pitch; c++) {
        uint32_t sum = from ? (uint32_t)from[c] : 0;
        for (int64_t i = 0; i < n; i++) {
            const hwq_word a = words[i * step + c], w = weights[i * pitch + c];
            sum += (uint32_t)((int32_t)(int16_t)a * (int16_t)w) +
                   (uint32_t)((int32_t)(int16_t)(a >> 16) * (int16_t)(w >> 16));
        }
        to[c] = (int32_t)sum;
    }
}
STEP_WS(step_ws, , follow)
STEP_OS(step_os, , follow)

void hwq_step_choose(hwq_step_ws *ws, hwq_step_os *os) {
    *ws = step_ws;
    *os = step_os;
}

#endif
