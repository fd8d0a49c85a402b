/* Inner products on int16 lanes, one row against 16 columns, by Winograd's form or plainly: what the convolutions of AVX2 share. Include inside an AVX2
 * region, after <immintrin.h> and <string.h>.
 *
 * A quad of k of 16 columns is four registers: y0, y1 hold the pairs (w0, w1) of columns 0..7 and 8..15, y2, y3 the pairs (w2, w3).
 *     (x0 + w2)(x2 + w0) + (x1 + w3)(x3 + w1) = sum x w + (x0 x2 + x1 x3) + (w0 w2 + w1 w3) */
#ifndef HWQ_INNER_AVX2_H
#define HWQ_INNER_AVX2_H

/* One row of x (two pairs of channels at `at`) into its two accumulators. The asm body fixes the 16 registers that a tile of four
 * rows needs; the other one, tested equal, is for compilers and builds without it. */
#if defined(__GNUC__) && !defined(HWQ_NO_ASM)
typedef int32_t __attribute__((may_alias, aligned(2))) pair;
#define MULTIPLY_ROW(x, at, acc)                                                                                              \
    do {                                                                                                                      \
        __m256i t0, t1, t2, t3;                                                                                               \
        __asm__("vpbroadcastd %[p], %[a]\n\tvpbroadcastd %[q], %[b]\n\tvpaddw %[h0], %[a], %[c]\n\tvpaddw %[l0], %[b], %[d]\n\t" \
                "vpmaddwd %[c], %[d], %[c]\n\tvpaddw %[h1], %[a], %[a]\n\tvpaddw %[l1], %[b], %[b]\n\t"                     \
                "vpmaddwd %[a], %[b], %[a]\n\tvpaddd %[c], %[s0], %[s0]\n\tvpaddd %[a], %[s1], %[s1]"                        \
                : [s0] "+x"(acc[0]), [s1] "+x"(acc[1]), [a] "=&x"(t0), [b] "=&x"(t1), [c] "=&x"(t2), [d] "=&x"(t3)            \
                : [p] "m"(*(const pair *)((x) + (at))), [q] "m"(*(const pair *)((x) + (at) + 2)), [h0] "x"(y2), [h1] "x"(y3), \
                  [l0] "x"(y0), [l1] "x"(y1));                                                                                \
    } while (0)
#define MULTIPLY_ROW_PLAINLY(x, at, acc)                                                                                      \
    do {                                                                                                                      \
        __m256i t0, t1, t2, t3;                                                                                               \
        __asm__("vpbroadcastd %[p], %[a]\n\tvpbroadcastd %[q], %[b]\n\tvpmaddwd %[l0], %[a], %[c]\n\tvpmaddwd %[l1], %[a], %[a]\n\t" \
                "vpmaddwd %[h0], %[b], %[d]\n\tvpmaddwd %[h1], %[b], %[b]\n\tvpaddd %[c], %[s0], %[s0]\n\tvpaddd %[a], %[s1], %[s1]\n\t" \
                "vpaddd %[d], %[s0], %[s0]\n\tvpaddd %[b], %[s1], %[s1]"                                                      \
                : [s0] "+x"(acc[0]), [s1] "+x"(acc[1]), [a] "=&x"(t0), [b] "=&x"(t1), [c] "=&x"(t2), [d] "=&x"(t3)            \
                : [p] "m"(*(const pair *)((x) + (at))), [q] "m"(*(const pair *)((x) + (at) + 2)), [h0] "x"(y2), [h1] "x"(y3), \
                  [l0] "x"(y0), [l1] "x"(y1));                                                                                \
    } while (0)
#else
#define MULTIPLY_ROW(x, at, acc)                                                                                              \
    do {                                                                                                                      \
        int32_t first, second;                                                                                                \
        memcpy(&first, (x) + (at), 4), memcpy(&second, (x) + (at) + 2, 4);                                                    \
        const __m256i a = _mm256_set1_epi32(first), b = _mm256_set1_epi32(second);                                            \
        acc[0] = _mm256_add_epi32(acc[0], _mm256_madd_epi16(_mm256_add_epi16(a, y2), _mm256_add_epi16(b, y0)));               \
        acc[1] = _mm256_add_epi32(acc[1], _mm256_madd_epi16(_mm256_add_epi16(a, y3), _mm256_add_epi16(b, y1)));               \
    } while (0)
#define MULTIPLY_ROW_PLAINLY(x, at, acc)                                                                                      \
    do {                                                                                                                      \
        int32_t first, second;                                                                                                \
        memcpy(&first, (x) + (at), 4), memcpy(&second, (x) + (at) + 2, 4);                                                    \
        const __m256i a = _mm256_set1_epi32(first), b = _mm256_set1_epi32(second);                                            \
        acc[0] = _mm256_add_epi32(_mm256_add_epi32(acc[0], _mm256_madd_epi16(a, y0)), _mm256_madd_epi16(b, y2));              \
        acc[1] = _mm256_add_epi32(_mm256_add_epi32(acc[1], _mm256_madd_epi16(a, y1)), _mm256_madd_epi16(b, y3));              \
    } while (0)
#endif

static inline int32_t hwq_add_lanes_s32x8(__m256i v)
{
    __m128i s = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0x4E));
    return _mm_cvtsi128_si32(_mm_add_epi32(s, _mm_shuffle_epi32(s, 0xB1)));
}

#endif
