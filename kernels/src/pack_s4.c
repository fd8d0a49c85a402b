/* Packing of weights of at most 4 bits. Same code on every path. */
#include "isa.h"

#include <string.h>

int64_t hwq_packed_s4_bytes(int64_t k, int64_t n) { return (k + 7) / 8 * 4 * ((n + HWQ_STRIP - 1) / HWQ_STRIP * HWQ_STRIP); }

void hwq_pack_s4(const uint8_t *weights, int64_t k, int64_t n, int64_t k_stride, int64_t n_stride, int64_t block, const int32_t *zero_points,
                 uint8_t *nibbles, int32_t *sums)
{
    const int64_t blocks = (k + block - 1) / block, line = (k + 7) / 8 * 4 * HWQ_STRIP;
    memset(nibbles, 0, (size_t)hwq_packed_s4_bytes(k, n));
    memset(sums, 0, (size_t)((n + HWQ_STRIP - 1) / HWQ_STRIP * HWQ_STRIP * blocks) * sizeof *sums);
    for (int64_t column = 0; column < n; column++) {
        const int64_t strip = column / HWQ_STRIP, lane = column % HWQ_STRIP;
        for (int64_t i = 0; i < k; i++) {
            const int64_t at = (strip * blocks + i / block) * HWQ_STRIP + lane;
            const uint8_t w = weights[i * k_stride + column * n_stride] & 15;
            nibbles[strip * line + i / 8 * 64 + lane * 4 + i % 4] |= (uint8_t)(w << (i & 4));
            sums[at] += w - zero_points[at]; /* at most 15 * block */
        }
    }
}

int32_t hwq_symmetric(int64_t n, int64_t blocks, const int32_t *zero_points, int32_t middle)
{
    for (int64_t i = 0; i < (n + HWQ_STRIP - 1) / HWQ_STRIP * HWQ_STRIP * blocks; i++)
        if (zero_points[i] != middle && i / HWQ_STRIP / blocks * HWQ_STRIP + i % HWQ_STRIP < n) return 0; /* padding apart */
    return 1;
}
