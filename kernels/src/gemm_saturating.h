/* Driver of the saturating product; included once by each path after its `tile` of 4 rows or 1 x 16 columns and its ROWS, PANEL and COLUMNS. */
#ifndef HWQ_GEMM_SATURATING_H
#define HWQ_GEMM_SATURATING_H

static void multiply(const hwq_gemm_args *args)
{
    const hwq_packed *w = args->weights;
    const int64_t k = w->k, n = w->n, k4 = (k + 3) / 4 * 4, base = args->group * n;
    const int8_t *packed = w->quads + args->group * hwq_packed_bytes(k, n);
    const int64_t begin = args->first_strip * HWQ_STRIP, wanted = begin + args->strips * HWQ_STRIP, end = wanted < n ? wanted : n;
    const int64_t out_size = hwq_type_size(args->epilogue->out_type);
    int32_t *block = args->workspace;
    for (int64_t top = 0; top < args->m; top += ROWS) {
        const int64_t rows = args->m - top < ROWS ? args->m - top : ROWS;
        const uint8_t *a = (const uint8_t *)args->a + top * args->a_stride;
        for (int64_t first = begin; first < end; first += COLUMNS) {
            const int64_t last = first + COLUMNS < end ? first + COLUMNS : end;
            for (int64_t column = first; column < last; column += HWQ_STRIP) {
                const int64_t width = last - column < HWQ_STRIP ? last - column : HWQ_STRIP;
                const int8_t *strip = packed + column / HWQ_STRIP * k4 * HWQ_STRIP;
                int32_t terms[HWQ_STRIP] = {0}, *c = block + column - first;
                for (int64_t j = 0; j < width; j++) {
                    const uint32_t bias = args->bias ? (uint32_t)args->bias[base + column + j] : 0;
                    terms[j] = (int32_t)(bias - (uint32_t)args->a_zero_point * (uint32_t)w->column_sums[base + column + j]);
                }
                int64_t r = 0;
                for (; r + PANEL <= rows; r += PANEL) tile(4, k, a + r * args->a_stride, args->a_stride, strip, terms, c + r * COLUMNS);
                for (; r < rows; r++) tile(1, k, a + r * args->a_stride, args->a_stride, strip, terms, c + r * COLUMNS);
            }
            for (int64_t r = 0; w->zero_points && r < rows; r++) {
                uint32_t row_sum = 0;
                for (int64_t i = 0; i < k; i++) row_sum += (uint32_t)(a[r * args->a_stride + i] - args->a_zero_point);
                for (int64_t j = 0; j < last - first; j++)
                    block[r * COLUMNS + j] = (int32_t)((uint32_t)block[r * COLUMNS + j] - (uint32_t)w->zero_points[base + first + j] * row_sum);
            }
            const hwq_epilogue epilogue = hwq_epilogue_at(args->epilogue, top, first);
            hwq_requantize(&epilogue, rows, last - first, base + first, block, HWQ_S32, COLUMNS,
                           (char *)args->out + (top * args->out_stride + first) * out_size, args->out_stride);
        }
    }
}

#endif
