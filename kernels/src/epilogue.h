/* The end of every epilogue, whatever the path: table, then residual, in place on one finished row. */
#ifndef HWQ_EPILOGUE_H
#define HWQ_EPILOGUE_H
#include "hwq/kernels.h"

static inline int64_t hwq_type_size(int32_t type)
{
    return type <= HWQ_S8 ? 1 : type <= HWQ_S16 || type >= HWQ_F16 ? 2 : type == HWQ_S64 ? 8 : 4;
}

static inline void hwq_finish_row(const hwq_epilogue *e, int64_t row, int64_t columns, void *line)
{
    if (e->lut) hwq_lut(columns, line, e->out_type == HWQ_S8 ? 0x80 : 0, e->lut, line);
    if (e->residual_op) {
        const int64_t offset = row * e->residual_stride * hwq_type_size(e->residual_op->b_type);
        hwq_binary_run(e->residual_op, columns, line, 1, (const char *)e->residual + offset, 1, line);
    }
}

/* The epilogue of a block that starts at (row, column) of the whole output. */
static inline hwq_epilogue hwq_epilogue_at(const hwq_epilogue *e, int64_t row, int64_t column)
{
    hwq_epilogue block = *e;
    if (e->residual_op)
        block.residual = (const char *)e->residual + (row * e->residual_stride + column) * hwq_type_size(e->residual_op->b_type);
    return block;
}

#endif
