/* Float activations times scaled int8 weights, the plain reading. */
#include "gemm_s4.h"
#include "isa.h"

#include <math.h>

void hwq_gemm_f32s8__ref(const hwq_gemm_f32s8_args *args)
{
    const hwq_packed_s8 *w = args->weights;
    const int64_t k = w->k, n = w->n, blocks = k > 0 ? (k + w->block - 1) / w->block : 0, out_size = hwq_type_size(args->epilogue->out_type);
    const int64_t line = (k + HWQ_QUAD - 1) / HWQ_QUAD * HWQ_QUAD * HWQ_STRIP;
    const int64_t begin = args->first_strip * HWQ_STRIP, wanted = begin + args->strips * HWQ_STRIP, end = wanted < n ? wanted : n;
    for (int64_t row = 0; row < args->m; row++) {
        const float *a = args->a + row * args->a_stride;
        for (int64_t column = begin; column < end; column++) {
            const int64_t strip = column / HWQ_STRIP, lane = column % HWQ_STRIP;
            float y = 0.0f;
            for (int64_t g = 0; g < blocks; g++) {
                const int64_t at = (strip * blocks + g) * HWQ_STRIP + lane, last = (g + 1) * w->block < k ? (g + 1) * w->block : k;
                float chain = 0.0f;
                for (int64_t i = g * w->block; i < last; i++) {
                    const int32_t stored = w->quads[strip * line + i / HWQ_QUAD * HWQ_QUAD * HWQ_STRIP + lane * HWQ_QUAD + i % HWQ_QUAD];
                    chain = fmaf(a[i], (float)(stored - w->zero_points[at]), chain);
                }
                y = fmaf(chain, w->scales[at], y);
            }
            hwq_finish_floats(args->epilogue, 1, 1, column, &y, 1, (char *)args->out + (row * args->out_stride + column) * out_size,
                              args->out_stride);
        }
    }
}
