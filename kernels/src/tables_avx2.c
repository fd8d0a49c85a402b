/* Tables and nibbles on AVX2.
 * Table: 16 rows of 16 entries. pshufb looks up the low nibble and gives 0 where bit 7 is set; with v = index - row * 16 modulo
 * 256, v + 0x70 saturated keeps the low nibble and leaves bit 7 clear exactly where the index's high nibble is the row. 4
 * operations per row and 32 bytes. Nibbles: masked and interleaved, low first; the sign by (v ^ 8) - 8. */
#include "isa.h"

#if HWQ_X86
#include <immintrin.h>

HWQ_TARGET("avx2,fma")

void hwq_lut__avx2(int64_t n, const uint8_t *x, uint8_t flip, const uint8_t *table, uint8_t *out)
{
    int64_t i = 0;
    for (; i + 64 <= n; i += 64) {
        const __m256i turn = _mm256_set1_epi8((char)flip), limit = _mm256_set1_epi8(0x70), next = _mm256_set1_epi8(0x10);
        __m256i a = _mm256_xor_si256(_mm256_loadu_si256((const __m256i *)(x + i)), turn);
        __m256i b = _mm256_xor_si256(_mm256_loadu_si256((const __m256i *)(x + i + 32)), turn);
        __m256i y = _mm256_setzero_si256(), z = y;
        for (int row = 0; row < 16; row++) {
            const __m256i entries = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)(table + 16 * row)));
            y = _mm256_or_si256(y, _mm256_shuffle_epi8(entries, _mm256_adds_epu8(a, limit)));
            z = _mm256_or_si256(z, _mm256_shuffle_epi8(entries, _mm256_adds_epu8(b, limit)));
            a = _mm256_sub_epi8(a, next);
            b = _mm256_sub_epi8(b, next);
        }
        _mm256_storeu_si256((__m256i *)(out + i), y);
        _mm256_storeu_si256((__m256i *)(out + i + 32), z);
    }
    for (; i < n; i++) out[i] = table[x[i] ^ flip];
}

void hwq_unpack_int4__avx2(int64_t n, const uint8_t *packed, int32_t is_signed, int8_t *x)
{
    const __m256i mask = _mm256_set1_epi8(15), sign = _mm256_set1_epi8(is_signed ? 8 : 0);
    int64_t i = 0;
    for (; i + 64 <= n; i += 64) {
        const __m256i bytes = _mm256_loadu_si256((const __m256i *)(packed + i / 2));
        const __m256i low = _mm256_sub_epi8(_mm256_xor_si256(_mm256_and_si256(bytes, mask), sign), sign);
        const __m256i high = _mm256_sub_epi8(_mm256_xor_si256(_mm256_and_si256(_mm256_srli_epi16(bytes, 4), mask), sign), sign);
        const __m256i first = _mm256_unpacklo_epi8(low, high), second = _mm256_unpackhi_epi8(low, high); /* in halves of 16 bytes */
        _mm256_storeu_si256((__m256i *)(x + i), _mm256_permute2x128_si256(first, second, 0x20));
        _mm256_storeu_si256((__m256i *)(x + i + 32), _mm256_permute2x128_si256(first, second, 0x31));
    }
    hwq_unpack_int4__ref(n - i, packed + i / 2, is_signed, x + i);
}

HWQ_TARGET_END
#endif
