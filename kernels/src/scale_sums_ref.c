/* Sums of rows quantized over their own range to floats, the plain reading. */
#include "isa.h"
#include "scale_sums.h"

void hwq_scale_sums__ref(const hwq_row_scales *scale, const int32_t *acc, const float *scales, const int8_t *points, float *out)
{
    scale_rows(scale, acc, scales, points, out);
}
