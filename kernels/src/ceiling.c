/* Register-only loops: the inner instructions of each GEMM scheme without a single load. What they reach on a CPU is the
 * scheme's ceiling there; benchmarks print the share of it that the whole operator reaches. */
#include "isa.h"

#include <string.h>

#if HWQ_X86
#include <immintrin.h>

HWQ_TARGET("avx2,fma")
/* Scheme W, 8 accumulators: 2 vpaddw, vpmaddwd, vpaddd for 32 MACs. */
static int64_t winograd_avx2(int64_t rounds)
{
    __m256i acc[8], a = _mm256_set1_epi16(3), b = _mm256_set1_epi16(5);
#pragma GCC unroll 32
    for (int i = 0; i < 8; i++) acc[i] = _mm256_setzero_si256();
    for (int64_t r = 0; r < rounds; r++) {
        __asm__ volatile("" : "+x"(a), "+x"(b)); /* the loop must not be folded */
#pragma GCC unroll 32
        for (int i = 0; i < 8; i++) {
            __m256i s, t;
            __asm__("vpaddw %[a], %[b], %[s]\n\tvpaddw %[b], %[a], %[t]\n\tvpmaddwd %[t], %[s], %[s]\n\tvpaddd %[s], %[c], %[c]"
                    : [c] "+x"(acc[i]), [s] "=&x"(s), [t] "=&x"(t) : [a] "x"(a), [b] "x"(b));
        }
    }
#pragma GCC unroll 32
    for (int i = 0; i < 8; i++) __asm__ volatile("" : : "x"(acc[i]));
    return rounds * 8 * 32;
}
/* INT4: vpmaddubsw and vpaddw for 32 MACs; 8 of them, then vpmaddwd and vpaddd. */
static int64_t deep_avx2(int64_t rounds)
{
    __m256i acc[6], wide[6], a = _mm256_set1_epi8(3), b = _mm256_set1_epi8(5);
    const __m256i ones = _mm256_set1_epi16(1);
#pragma GCC unroll 32
    for (int i = 0; i < 6; i++) acc[i] = wide[i] = _mm256_setzero_si256();
    for (int64_t r = 0; r < rounds; r++) {
#pragma GCC unroll 8
        for (int depth = 0; depth < 8; depth++) {
            __asm__ volatile("" : "+x"(a), "+x"(b));
#pragma GCC unroll 32
            for (int i = 0; i < 6; i++) {
                __m256i s;
                __asm__("vpmaddubsw %[a], %[b], %[s]\n\tvpaddw %[s], %[c], %[c]" : [c] "+x"(acc[i]), [s] "=&x"(s) : [a] "x"(a), [b] "x"(b));
            }
        }
#pragma GCC unroll 32
        for (int i = 0; i < 6; i++) {
            __asm__("vpmaddwd %[ones], %[c], %[c]\n\tvpaddd %[c], %[w], %[w]" : [c] "+x"(acc[i]), [w] "+x"(wide[i]) : [ones] "x"(ones));
        }
    }
#pragma GCC unroll 32
    for (int i = 0; i < 6; i++) __asm__ volatile("" : : "x"(wide[i]));
    return rounds * 8 * 6 * 32;
}
/* vfmadd231ps: 8 MACs. */
static int64_t float_avx2(int64_t rounds)
{
    __m256 acc[12], a = _mm256_set1_ps(0.5f), b = _mm256_set1_ps(0.25f);
#pragma GCC unroll 32
    for (int i = 0; i < 12; i++) acc[i] = _mm256_setzero_ps();
    for (int64_t r = 0; r < rounds; r++)
#pragma GCC unroll 32
        for (int i = 0; i < 12; i++) __asm__ volatile("vfmadd231ps %[a], %[b], %[c]" : [c] "+x"(acc[i]) : [a] "x"(a), [b] "x"(b));
#pragma GCC unroll 32
    for (int i = 0; i < 12; i++) __asm__ volatile("" : : "x"(acc[i]));
    return rounds * 12 * 8;
}
HWQ_TARGET_END

#if !HWQ_EMULATE
HWQ_TARGET("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")
/* vpdpbusd of 512 bits: 64 MACs. */
static int64_t dot_avx512vnni(int64_t rounds)
{
    __m512i acc[24], a = _mm512_set1_epi8(3), b = _mm512_set1_epi8(5);
#pragma GCC unroll 32
    for (int i = 0; i < 24; i++) acc[i] = _mm512_setzero_si512();
    for (int64_t r = 0; r < rounds; r++)
#pragma GCC unroll 32
        for (int i = 0; i < 24; i++) __asm__ volatile("vpdpbusd %[a], %[b], %[c]" : [c] "+v"(acc[i]) : [a] "v"(a), [b] "v"(b));
#pragma GCC unroll 32
    for (int i = 0; i < 24; i++) __asm__ volatile("" : : "v"(acc[i]));
    return rounds * 24 * 64;
}
/* vfmadd231ps of 512 bits: 16 MACs. */
static int64_t float_avx512vnni(int64_t rounds)
{
    __m512 acc[24], a = _mm512_set1_ps(0.5f), b = _mm512_set1_ps(0.25f);
#pragma GCC unroll 32
    for (int i = 0; i < 24; i++) acc[i] = _mm512_setzero_ps();
    for (int64_t r = 0; r < rounds; r++)
#pragma GCC unroll 32
        for (int i = 0; i < 24; i++) __asm__ volatile("vfmadd231ps %[a], %[b], %[c]" : [c] "+v"(acc[i]) : [a] "v"(a), [b] "v"(b));
#pragma GCC unroll 32
    for (int i = 0; i < 24; i++) __asm__ volatile("" : : "v"(acc[i]));
    return rounds * 24 * 16;
}
HWQ_TARGET_END
#endif
#endif

int64_t hwq_ceiling(const char *scheme, int64_t rounds)
{
#if HWQ_X86
    static const struct { const char *scheme, *path; int64_t (*run)(int64_t); } LOOPS[] = {
        {"int8-avx2", "avx2", winograd_avx2}, {"int4-avx2", "avx2", deep_avx2}, {"float32-avx2", "avx2", float_avx2},
#if !HWQ_EMULATE
        {"int8-avx512vnni", "avx512vnni", dot_avx512vnni}, {"float32-avx512vnni", "avx512vnni", float_avx512vnni},
#endif
    };
    for (size_t i = 0; i < sizeof LOOPS / sizeof *LOOPS; i++)
        if (strcmp(scheme, LOOPS[i].scheme) == 0 && hwq_path_available(hwq_path_find(LOOPS[i].path))) return LOOPS[i].run(rounds);
#endif
    (void)scheme, (void)rounds;
    return 0;
}
