/* Integer and float GEMM, the plain reading. */
#include "epilogue.h"
#include "gemm.h"
#include "isa.h"

#include <math.h>

/* Rows of the int32 block that one call of the epilogue takes, and its columns: 16 KB of workspace. */
enum { COLUMNS = 256 };

static inline void multiply(const hwq_gemm_args *args, uint8_t flip, int32_t zero_point)
{
    const hwq_packed *w = args->weights;
    const int64_t k = w->k, n = w->n, k4 = (k + 3) / 4 * 4;
    const int8_t *quads = w->quads + args->group * hwq_packed_bytes(k, n);
    const int32_t *zero_points = w->zero_points ? w->zero_points + args->group * n : NULL;
    const int64_t begin = args->first_strip * HWQ_STRIP, wanted = begin + args->strips * HWQ_STRIP, end = wanted < n ? wanted : n;
    const int64_t out_size = hwq_type_size(args->epilogue->out_type);
    int32_t *block = args->workspace;
    for (int64_t row = 0; row < args->m; row++) {
        const uint8_t *a = (const uint8_t *)args->a + row * args->a_stride;
        for (int64_t first = begin; first < end; first += COLUMNS) {
            const int64_t last = first + COLUMNS < end ? first + COLUMNS : end;
            for (int64_t column = first; column < last; column += HWQ_STRIP) {
                const int8_t *strip = quads + column / HWQ_STRIP * k4 * HWQ_STRIP;
                uint32_t acc[HWQ_STRIP] = {0}, row_sum = 0;
                for (int64_t i = 0; i < k; i++, strip++) {
                    /* s8 is read as u8 - 128 with its zero point moved likewise: one loop for both. |a - za| <= 255. */
                    int32_t centered = (a[i] ^ flip) - zero_point;
                    row_sum += (uint32_t)centered;
                    for (int j = 0; j < HWQ_STRIP; j++) acc[j] += (uint32_t)(centered * strip[j * HWQ_QUAD]);
                    if (i % HWQ_QUAD == HWQ_QUAD - 1) strip += HWQ_STRIP * HWQ_QUAD - HWQ_QUAD;
                }
                for (int64_t j = 0; j < HWQ_STRIP && column + j < last; j++) {
                    uint32_t bias = args->bias ? (uint32_t)args->bias[args->group * n + column + j] : 0;
                    uint32_t shift = zero_points ? (uint32_t)zero_points[column + j] * row_sum : 0;
                    block[column + j - first] = (int32_t)(acc[j] + bias - shift);
                }
            }
            const hwq_epilogue tile = hwq_epilogue_at(args->epilogue, row, first);
            hwq_requantize(&tile, 1, last - first, args->group * n + first, block, HWQ_S32, COLUMNS,
                           (char *)args->out + (row * args->out_stride + first) * out_size, args->out_stride);
        }
    }
}

/* The largest demand of any path: panels of 2 or 3 rows of int16 (avx2), of 14 or 6 lines of u8 (VNNI), 64 rows of int8 (Arm). */
int64_t hwq_gemm_workspace(int64_t k)
{
    const int64_t k4 = (k + 3) / 4 * 4, line = hwq_gemm_line(k);
    const int64_t pairs = hwq_gemm_block_rows(2 * k4, 2), threes = hwq_gemm_block_rows(2 * k4, 3);
    const int64_t words = (pairs > threes ? pairs : threes) * 2 * k4, bytes = hwq_gemm_block_rows(line, 14) * line, arm = 64 * k4;
    const int64_t most = words > bytes ? words : bytes;
    return HWQ_GEMM_FIXED + (most > arm ? most : arm);
}

void hwq_gemm_u8s8__ref(const hwq_gemm_args *args) { multiply(args, 0, args->a_zero_point); }
void hwq_gemm_s8s8__ref(const hwq_gemm_args *args) { multiply(args, 0x80, args->a_zero_point + 128); }

void hwq_gemm_f32__ref(const hwq_gemm_f32_args *args)
{
    const int64_t k = args->k, k8 = (k + HWQ_LANES - 1) / HWQ_LANES * HWQ_LANES;
    for (int64_t row = 0; row < args->m; row++) {
        const float *a = args->a + row * args->a_stride;
        for (int64_t column = 0; column < args->n; column++) {
            const float *w = args->weights + column / HWQ_FLOAT_STRIP * HWQ_FLOAT_STRIP * k8 + column % HWQ_FLOAT_STRIP * HWQ_LANES;
            float lane[HWQ_LANES] = {0};
            for (int64_t i = 0; i < k8; i += HWQ_LANES, w += HWQ_FLOAT_STRIP * HWQ_LANES)
                for (int j = 0; j < HWQ_LANES; j++) lane[j] = fmaf(i + j < k ? a[i + j] : 0.0f, w[j], lane[j]);
            float y = ((lane[0] + lane[1]) + (lane[2] + lane[3])) + ((lane[4] + lane[5]) + (lane[6] + lane[7]));
            args->out[row * args->out_stride + column] = args->bias ? y + args->bias[column] : y;
        }
    }
}

void hwq_sum_f32__ref(int64_t outer, int64_t k, int64_t inner, const float *x, float *out)
{
    for (int64_t o = 0; o < outer; o++)
        for (int64_t i = 0; i < inner; i++) {
            float lane[HWQ_LANES] = {0};
            for (int64_t j = 0; j < k; j++) lane[j % HWQ_LANES] += x[(o * k + j) * inner + i];
            out[o * inner + i] = ((lane[0] + lane[1]) + (lane[2] + lane[3])) + ((lane[4] + lane[5]) + (lane[6] + lane[7]));
        }
}
