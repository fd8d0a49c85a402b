/* One cycle of the array, row by row. Exact: a word's two products fit 32 bits (|a|, |w| <= 256: 2^17), sums wrap. */
#include <string.h>

#include "systolic.h"

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>

/* The body is the same for both widths; pmaddwd is the PE. */
#define STEP_WS(NAME, TARGET, VECTOR, LANES, LOAD, STORE, ADD, MADD, ZERO)                                           \
    TARGET static void NAME(int32_t *sums, const hwq_word *weights, const hwq_word *edge, int64_t edge_pitch,        \
                            int64_t rows, int64_t pitch, int32_t *bottom) {                                          \
        for (int64_t r = rows - 1; r >= 0; r--) {                                                                    \
            const hwq_word *a = edge + r * edge_pitch, *w = weights + r * pitch;                                     \
            const int32_t *above = r ? sums + (r - 1) * pitch : sums;                                                \
            int32_t *to = r == rows - 1 ? bottom : sums + r * pitch;                                                 \
            for (int64_t c = 0; c < pitch; c += LANES) {                                                             \
                const VECTOR old = r ? LOAD((const VECTOR *)(above + c)) : ZERO();                                   \
                STORE((VECTOR *)(to + c), ADD(old, MADD(LOAD((const VECTOR *)(a + c)), LOAD((const VECTOR *)(w + c))))); \
            }                                                                                                        \
        }                                                                                                            \
    }
#define STEP_OS(NAME, TARGET, VECTOR, LANES, LOAD, STORE, ADD, MADD)                                                 \
    TARGET static void NAME(int32_t *sums, const hwq_word *top, const hwq_word *edge, int64_t edge_pitch,            \
                            int64_t rows, int64_t pitch) {                                                           \
        for (int64_t r = 0; r < rows; r++) {                                                                         \
            const hwq_word *a = edge + r * edge_pitch, *b = top - r * pitch;                                         \
            int32_t *own = sums + r * pitch;                                                                         \
            for (int64_t c = 0; c < pitch; c += LANES) {                                                             \
                const VECTOR product = MADD(LOAD((const VECTOR *)(a + c)), LOAD((const VECTOR *)(b + c)));           \
                STORE((VECTOR *)(own + c), ADD(LOAD((const VECTOR *)(own + c)), product));                           \
            }                                                                                                        \
        }                                                                                                            \
    }

#define BASE
#define AVX2 __attribute__((target("avx2")))
STEP_WS(step_ws, BASE, __m128i, 4, _mm_loadu_si128, _mm_storeu_si128, _mm_add_epi32, _mm_madd_epi16, _mm_setzero_si128)
STEP_OS(step_os, BASE, __m128i, 4, _mm_loadu_si128, _mm_storeu_si128, _mm_add_epi32, _mm_madd_epi16)
STEP_WS(step_ws_avx2, AVX2, __m256i, 8, _mm256_loadu_si256, _mm256_storeu_si256, _mm256_add_epi32, _mm256_madd_epi16,
        _mm256_setzero_si256)
STEP_OS(step_os_avx2, AVX2, __m256i, 8, _mm256_loadu_si256, _mm256_storeu_si256, _mm256_add_epi32, _mm256_madd_epi16)

void hwq_step_choose(hwq_step_ws *ws, hwq_step_os *os) {
    const int wide = __builtin_cpu_supports("avx2");
    *ws = wide ? step_ws_avx2 : step_ws;
    *os = wide ? step_os_avx2 : step_os;
}

#else

static uint32_t dot(hwq_word a, hwq_word b) {
    const int32_t low = (int32_t)(int16_t)a * (int16_t)b, high = (int32_t)(int16_t)(a >> 16) * (int16_t)(b >> 16);
    return (uint32_t)low + (uint32_t)high;
}

static void step_ws(int32_t *sums, const hwq_word *weights, const hwq_word *edge, int64_t edge_pitch, int64_t rows,
                    int64_t pitch, int32_t *bottom) {
    for (int64_t r = rows - 1; r >= 0; r--) {
        const hwq_word *a = edge + r * edge_pitch, *w = weights + r * pitch;
        int32_t *to = r == rows - 1 ? bottom : sums + r * pitch;
        for (int64_t c = 0; c < pitch; c++) {
            const uint32_t old = r ? (uint32_t)sums[(r - 1) * pitch + c] : 0;
            to[c] = (int32_t)(old + dot(a[c], w[c]));
        }
    }
}

static void step_os(int32_t *sums, const hwq_word *top, const hwq_word *edge, int64_t edge_pitch, int64_t rows,
                    int64_t pitch) {
    for (int64_t r = 0; r < rows; r++) {
        const hwq_word *a = edge + r * edge_pitch, *b = top - r * pitch;
        int32_t *own = sums + r * pitch;
        for (int64_t c = 0; c < pitch; c++) own[c] = (int32_t)((uint32_t)own[c] + dot(a[c], b[c]));
    }
}

void hwq_step_choose(hwq_step_ws *ws, hwq_step_os *os) {
    *ws = step_ws;
    *os = step_os;
}

#endif
