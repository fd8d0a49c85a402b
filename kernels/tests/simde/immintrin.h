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
/* Of depthwise convolution: absent from SIMDe 0.7.4, here in AVX2 halves. */
#include <stdint.h>
#include <string.h>
static inline simde__m512 emulated_floats(simde__m512i v)
{
    __m256i halves[2];
    memcpy(halves, &v, sizeof v);
    const __m256 floats[2] = {_mm256_cvtepi32_ps(halves[0]), _mm256_cvtepi32_ps(halves[1])};
    simde__m512 r;
    return *(simde__m512 *)memcpy(&r, floats, sizeof r);
}
static inline simde__m512i emulated_integers(simde__m512 v)
{
    __m256 halves[2];
    memcpy(halves, &v, sizeof v);
    const __m256i integers[2] = {_mm256_cvtps_epi32(halves[0]), _mm256_cvtps_epi32(halves[1])};
    simde__m512i r;
    return *(simde__m512i *)memcpy(&r, integers, sizeof r);
}
static inline __m256i emulated_bytes(simde__m512i v)
{
    uint16_t words[32];
    uint8_t bytes[32];
    memcpy(words, &v, sizeof v);
    for (int i = 0; i < 32; i++) bytes[i] = (uint8_t)(words[i] < 255 ? words[i] : 255);
    return _mm256_loadu_si256((const __m256i *)bytes);
}
static inline simde__m512i emulated_shift(simde__m512i v, unsigned count)
{
    __m256i halves[2];
    memcpy(halves, &v, sizeof v);
    for (int i = 0; i < 2; i++) halves[i] = _mm256_sra_epi32(halves[i], _mm_cvtsi32_si128((int)count));
    memcpy(&v, halves, sizeof v);
    return v;
}
static inline simde__m512i emulated_shift_by(simde__m512i v, __m128i count) { return emulated_shift(v, (unsigned)_mm_cvtsi128_si32(count)); }
/* SIMDe 0.7.4 gives this name the masked instruction's arguments. */
static inline simde__m512i emulated_pairs(simde__m512i a, simde__m512i b)
{
    __m256i left[2], right[2];
    memcpy(left, &a, sizeof a);
    memcpy(right, &b, sizeof b);
    for (int i = 0; i < 2; i++) left[i] = _mm256_madd_epi16(left[i], right[i]);
    memcpy(&a, left, sizeof a);
    return a;
}
#undef _mm512_srai_epi32
#undef _mm512_sra_epi32
#define _mm512_sra_epi32 emulated_shift_by
#undef _mm512_madd_epi16
#define _mm512_srai_epi32 emulated_shift
#define _mm512_madd_epi16 emulated_pairs
#undef _mm512_cvtepu8_epi16
#undef _mm512_cvtusepi16_epi8
#undef _mm512_cvtepi32_ps
#undef _mm512_cvtps_epi32
#define _mm512_cvtepu8_epi16(a) simde_mm512_and_si512(simde_mm512_cvtepi8_epi16(a), simde_mm512_set1_epi16(0xFF))
#define _mm512_cvtusepi16_epi8 emulated_bytes
#define _mm512_cvtepi32_ps emulated_floats
#define _mm512_cvtps_epi32 emulated_integers
/* Of GEMM and its epilogue: loads and stores under a mask, lane by lane. */
#undef _mm512_maskz_loadu_epi32
#undef _mm512_maskz_loadu_ps
#undef _mm512_mask_storeu_ps
#undef _mm512_mask_cvtepi32_storeu_epi8
#define _mm512_maskz_loadu_epi32 hwq_emulated_load
#define _mm512_maskz_loadu_ps(mask, p) simde_mm512_castsi512_ps(hwq_emulated_load(mask, p))
#define _mm512_mask_storeu_ps(p, mask, v) hwq_emulated_store(p, mask, simde_mm512_castps_si512(v), 4)
#define _mm512_mask_cvtepi32_storeu_epi8(p, mask, v) hwq_emulated_store(p, mask, v, 1)
static inline simde__m512i hwq_emulated_load(unsigned mask, const void *p)
{
    int lanes[16] = {0};
    simde__m512i v;
    for (int i = 0; i < 16; i++)
        if (mask >> i & 1) memcpy(&lanes[i], (const char *)p + 4 * i, 4);
    memcpy(&v, lanes, sizeof v);
    return v;
}
static inline void hwq_emulated_store(void *p, unsigned mask, simde__m512i v, size_t bytes) /* the lanes' low bytes */
{
    char lanes[64];
    memcpy(lanes, &v, sizeof v);
    for (int i = 0; i < 16; i++)
        if (mask >> i & 1) memcpy((char *)p + bytes * (size_t)i, lanes + 4 * i, bytes);
}
/* Of elementwise operators: bytes to 32-bit lanes and back. */
#undef _mm512_cvtepu8_epi32
#undef _mm512_cvtepi8_epi32
#undef _mm512_cvtepi32_epi8
#undef _mm_mask_storeu_epi8
#define _mm512_cvtepu8_epi32(bytes) hwq_emulated_lanes(bytes, 0)
#define _mm512_cvtepi8_epi32(bytes) hwq_emulated_lanes(bytes, 1)
#define _mm512_cvtepi32_epi8 hwq_emulated_low_bytes
#define _mm_mask_storeu_epi8 hwq_emulated_byte_store
static inline simde__m512i hwq_emulated_lanes(__m128i bytes, int with_sign)
{
    uint8_t given[16];
    int32_t lanes[16];
    simde__m512i v;
    memcpy(given, &bytes, sizeof given);
    for (int i = 0; i < 16; i++) lanes[i] = with_sign ? (int8_t)given[i] : given[i];
    memcpy(&v, lanes, sizeof v);
    return v;
}
static inline __m128i hwq_emulated_low_bytes(simde__m512i v)
{
    int32_t lanes[16];
    uint8_t bytes[16];
    memcpy(lanes, &v, sizeof v);
    for (int i = 0; i < 16; i++) bytes[i] = (uint8_t)lanes[i];
    return _mm_loadu_si128((const __m128i *)bytes);
}
static inline void hwq_emulated_byte_store(void *p, unsigned mask, __m128i v)
{
    uint8_t bytes[16];
    memcpy(bytes, &v, sizeof v);
    for (int i = 0; i < 16; i++)
        if (mask >> i & 1) ((uint8_t *)p)[i] = bytes[i];
}
#undef _mm_maskz_loadu_epi8
#undef _mm512_mask_storeu_epi8
#define _mm_maskz_loadu_epi8 hwq_emulated_byte_load
#define _mm512_mask_storeu_epi8 hwq_emulated_wide_byte_store
static inline __m128i hwq_emulated_byte_load(unsigned mask, const void *p)
{
    uint8_t bytes[16] = {0};
    for (int i = 0; i < 16; i++)
        if (mask >> i & 1) bytes[i] = ((const uint8_t *)p)[i];
    return _mm_loadu_si128((const __m128i *)bytes);
}
static inline void hwq_emulated_wide_byte_store(void *p, uint64_t mask, simde__m512i v)
{
    uint8_t bytes[64];
    memcpy(bytes, &v, sizeof v);
    for (int i = 0; i < 64; i++)
        if (mask >> i & 1) ((uint8_t *)p)[i] = bytes[i];
}
#undef _mm512_maskz_loadu_epi8
#define _mm512_maskz_loadu_epi8 hwq_emulated_wide_byte_load
static inline simde__m512i hwq_emulated_wide_byte_load(uint64_t mask, const void *p)
{
    uint8_t bytes[64] = {0};
    simde__m512i v;
    for (int i = 0; i < 64; i++)
        if (mask >> i & 1) bytes[i] = ((const uint8_t *)p)[i];
    memcpy(&v, bytes, sizeof v);
    return v;
}
/* Of sums of bytes and of 8-bit weights beside floats: absent from SIMDe 0.7.4. */
#undef _mm512_sra_epi32
#undef _mm512_srai_epi32
#define _mm512_sra_epi32 hwq_emulated_shift
#define _mm512_srai_epi32(v, by) hwq_emulated_shift(v, _mm_cvtsi32_si128((int)(by)))
static inline simde__m512i hwq_emulated_shift(simde__m512i v, __m128i by)
{
    __m256i halves[2];
    memcpy(halves, &v, sizeof v);
    for (int i = 0; i < 2; i++) halves[i] = _mm256_sra_epi32(halves[i], by);
    return *(simde__m512i *)memcpy(&v, halves, sizeof v);
}
#endif
