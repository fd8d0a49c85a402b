/* Stands before the compiler's <immintrin.h> in the emulating build (make simde): AVX2 is native, AVX-512 and VNNI are spelled
 * out by SIMDe, so both paths run on any CPU with AVX2. Never part of a wheel. SIMDe itself includes <immintrin.h>: that
 * inclusion finds the compiler's. */
#ifdef HWQ_SIMDE_INSIDE
#include_next <immintrin.h>
#else
#define HWQ_SIMDE_INSIDE
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wpedantic"
#pragma GCC diagnostic ignored "-Wpsabi"
#pragma GCC system_header
#define SIMDE_ENABLE_NATIVE_ALIASES
#include <simde/x86/avx512.h>
#include <simde/x86/f16c.h>
#pragma GCC diagnostic pop
/* SIMDe 0.7.4 has the instruction under its AVX-512 name only. */
#undef _mm256_dpbusd_avx_epi32
#define _mm256_dpbusd_avx_epi32(src, a, b) simde_mm256_dpbusd_epi32(src, a, b)
#undef _mm256_dpwssd_avx_epi32
#define _mm256_dpwssd_avx_epi32(src, a, b) simde_mm256_dpwssd_epi32(src, a, b)
#endif
