/* Products with weights of at most 4 bits, the plain reading. */
#include "gemm_s4.h"
#include "isa.h"

#include <math.h>

static inline int32_t weight(const hwq_packed_s4 *w, int64_t i, int64_t column)
{
    const int64_t line = (w->k + 7) / 8 * 4 * HWQ_STRIP;
    return w->nibbles[column / HWQ_STRIP * line + i / 8 * 64 + column % HWQ_STRIP * 4 + i % 4] >> (i & 4) & 15;
}

static void multiply(const hwq_gemm_s4_args *args, int is_float)
{
    const hwq_packed_s4 *w = args->weights;
    const int64_t k = w->k, n = w->n, blocks = hwq_s4_blocks(w), out_size = hwq_type_size(args->epilogue->out_type);
    const int64_t begin = args->first_strip * HWQ_STRIP, wanted = begin + args->strips * HWQ_STRIP, end = wanted < n ? wanted : n;
    for (int64_t row = 0; row < args->m; row++) {
        const void *a = (const char *)args->a + row * args->a_stride * hwq_type_size(args->a_type);
        for (int64_t column = begin; column < end; column++) {
            uint32_t acc = 0;
            float y = 0.0f;
            for (int64_t g = 0; g < blocks; g++) {
                const int64_t at = (column / HWQ_STRIP * blocks + g) * HWQ_STRIP + column % HWQ_STRIP;
                const int64_t last = (g + 1) * w->block < k ? (g + 1) * w->block : k;
                float chain = 0.0f;
                acc = 0;
                for (int64_t i = g * w->block; i < last; i++) {
                    const int32_t centered = weight(w, i, column) - w->zero_points[at];
                    if (is_float) chain = fmaf(((const float *)a)[i], (float)centered, chain);
                    else acc += (uint32_t)(((args->a_type == HWQ_U8 ? ((const uint8_t *)a)[i] : ((const int8_t *)a)[i]) - args->a_zero_point) * centered);
                }
                if (w->scales) y = fmaf(is_float ? chain : (float)(int32_t)acc, w->scales[at], y);
            }
            char *out = (char *)args->out + (row * args->out_stride + column) * out_size;
            if (w->scales) {
                hwq_finish_floats(args->epilogue, 1, 1, column, &y, 1, out, args->out_stride);
            } else {
                const int32_t value = (int32_t)(acc + (args->bias ? (uint32_t)args->bias[column] : 0));
                const hwq_epilogue e = hwq_epilogue_at(args->epilogue, row, column);
                hwq_requantize(&e, 1, 1, column, &value, HWQ_S32, 1, out, args->out_stride);
            }
        }
    }
}

void hwq_gemm_s4__ref(const hwq_gemm_s4_args *args) { multiply(args, 0); }
void hwq_gemm_f32s4__ref(const hwq_gemm_s4_args *args) { multiply(args, 1); }

/* Rows of u8, or of float, and their sums per block; some strips unpacked, and their terms per block. */
int64_t hwq_gemm_s4_workspace(int64_t k, int64_t block)
{
    const int64_t row = hwq_s4_row(k, block), blocks = (k + block - 1) / block;
    return HWQ_GEMM_FIXED + hwq_gemm_block_rows(row, 12) * row + HWQ_S4_STRIPS * HWQ_STRIP * ((k + 7) / 8 * 8 + blocks * 4);
}
