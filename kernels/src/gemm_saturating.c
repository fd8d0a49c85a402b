/* u8 x s8 as MLAS multiplies it on x86-64 without VNNI: neighboring products, k = 2i and 2i + 1, are added with int16
 * saturation (VPMADDUBSW), then widened. Zero points are corrected afterwards, exactly:
 *
 *   acc = bias + sum over pairs of sat16(a0 w0 + a1 w1) - za sum(w) - zw (sum(a) - k za)      modulo 2^32
 *
 * Bounds: a pair lies in [-65280, 64770] before saturation, so int32 holds it; a sum of two saturated pairs fits int32. */
#include "epilogue.h"
#include "isa.h"

enum { COLUMNS = 256 };

static inline int32_t saturated(int32_t pair) { return pair > 32767 ? 32767 : pair < -32768 ? -32768 : pair; }

void hwq_gemm_saturating__ref(const hwq_gemm_args *args)
{
    const hwq_packed *w = args->weights;
    const int64_t k = w->k, n = w->n, k4 = (k + 3) / 4 * 4, base = args->group * n;
    const int8_t *quads = w->quads + args->group * hwq_packed_bytes(k, n);
    const int64_t begin = args->first_strip * HWQ_STRIP, wanted = begin + args->strips * HWQ_STRIP, end = wanted < n ? wanted : n;
    const int64_t out_size = hwq_type_size(args->epilogue->out_type);
    int32_t *block = args->workspace;
    for (int64_t row = 0; row < args->m; row++) {
        const uint8_t *a = (const uint8_t *)args->a + row * args->a_stride;
        uint32_t row_sum = 0;
        for (int64_t i = 0; i < k; i++) row_sum += (uint32_t)(a[i] - args->a_zero_point);
        for (int64_t first = begin; first < end; first += COLUMNS) {
            const int64_t last = first + COLUMNS < end ? first + COLUMNS : end;
            for (int64_t column = first; column < last; column++) {
                const int8_t *strip = quads + column / HWQ_STRIP * k4 * HWQ_STRIP + column % HWQ_STRIP * HWQ_QUAD;
                uint32_t acc = args->bias ? (uint32_t)args->bias[base + column] : 0;
                for (int64_t i = 0; i < k; i += 2) {
                    const int8_t *pair = strip + i / HWQ_QUAD * HWQ_STRIP * HWQ_QUAD + i % HWQ_QUAD;
                    acc += (uint32_t)saturated(a[i] * pair[0] + (i + 1 < k ? a[i + 1] * pair[1] : 0));
                }
                acc -= (uint32_t)args->a_zero_point * (uint32_t)w->column_sums[base + column];
                if (w->zero_points) acc -= (uint32_t)w->zero_points[base + column] * row_sum;
                block[column - first] = (int32_t)acc;
            }
            const hwq_epilogue tile = hwq_epilogue_at(args->epilogue, row, first);
            hwq_requantize(&tile, 1, last - first, base + first, block, HWQ_S32, COLUMNS,
                           (char *)args->out + (row * args->out_stride + first) * out_size, args->out_stride);
        }
    }
}
