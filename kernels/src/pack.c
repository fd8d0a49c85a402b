/* Packing: weights into strips and quads, float weights into strips and lanes, nibbles into bytes. Same code on every path. */
#include "isa.h"

#include <string.h>

static int64_t round_up(int64_t v, int64_t step) { return (v + step - 1) / step * step; }

int64_t hwq_packed_bytes(int64_t k, int64_t n) { return round_up(k, HWQ_QUAD) * round_up(n, HWQ_STRIP); }

void hwq_pack(const void *weights, int32_t type, int64_t k, int64_t n, int64_t k_stride, int64_t n_stride,
              const int32_t *zero_points, int8_t *quads, int32_t *stored_zero_points, int32_t *column_sums,
              int32_t *column_products, int64_t *positive, int64_t *negative)
{
    const uint8_t *bytes = weights;
    const uint8_t flip = type == HWQ_U8 ? 0x80 : 0; /* u8 - 128 as s8: flip the top bit */
    const int64_t k4 = round_up(k, HWQ_QUAD);
    memset(quads, 0, (size_t)hwq_packed_bytes(k, n));
    for (int64_t column = 0; column < n; column++) {
        const int32_t zero_point = (zero_points ? zero_points[column] : 0) - (flip ? 128 : 0);
        int8_t *strip = quads + column / HWQ_STRIP * k4 * HWQ_STRIP + column % HWQ_STRIP * HWQ_QUAD;
        uint32_t sum = 0, products = 0;
        int64_t above = 0, below = 0; /* each at most 2^63 / 255 terms */
        int32_t even = 0;
        for (int64_t i = 0; i < k; i++) {
            int8_t w = (int8_t)(bytes[i * k_stride + column * n_stride] ^ flip);
            strip[i / HWQ_QUAD * HWQ_STRIP * HWQ_QUAD + i % HWQ_QUAD] = w;
            sum += (uint32_t)w;
            if (i & 1) products += (uint32_t)(even * w);
            else even = w;
            int32_t centered = w - zero_point;
            if (centered > 0) above += centered;
            else below -= centered;
        }
        stored_zero_points[column] = zero_point;
        column_sums[column] = (int32_t)sum;
        column_products[column] = (int32_t)products;
        positive[column] = above;
        negative[column] = below;
    }
}

int64_t hwq_packed_f32_floats(int64_t k, int64_t n) { return round_up(k, HWQ_LANES) * round_up(n, HWQ_FLOAT_STRIP); }

void hwq_pack_f32(const float *weights, int64_t k, int64_t n, int64_t k_stride, int64_t n_stride, float *packed)
{
    const int64_t k8 = round_up(k, HWQ_LANES);
    for (int64_t first = 0; first < n; first += HWQ_FLOAT_STRIP)
        for (int64_t block = 0; block < k8; block += HWQ_LANES)
            for (int64_t column = first; column < first + HWQ_FLOAT_STRIP; column++)
                for (int64_t i = block; i < block + HWQ_LANES; i++)
                    *packed++ = i < k && column < n ? weights[i * k_stride + column * n_stride] : 0.0f;
}

void hwq_pack_int4(int64_t n, const int8_t *x, uint8_t *packed)
{
    for (int64_t i = 0; i < n; i += 2) packed[i / 2] = (uint8_t)((x[i] & 15) | (i + 1 < n ? (x[i + 1] & 15) << 4 : 0));
}

void hwq_unpack_int4__ref(int64_t n, const uint8_t *packed, int32_t is_signed, int8_t *x)
{
    for (int64_t i = 0; i < n; i++) {
        int nibble = packed[i / 2] >> (i & 1 ? 4 : 0) & 15;
        x[i] = (int8_t)(is_signed ? (nibble ^ 8) - 8 : nibble);
    }
}
