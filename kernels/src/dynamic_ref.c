/* Dynamic quantization, the plain reading. */
#include "dynamic.h"
#include "isa.h"

void hwq_dynamic_quantize__ref(int32_t formula, int64_t rows, int64_t columns, const float *x, void *out, float *scales, int32_t *zero_points)
{
    for (int64_t row = 0; row < rows; row++)
        dynamic_row(formula, columns, x + row * columns, (uint8_t *)out + row * columns, scales + row, zero_points + row);
}
