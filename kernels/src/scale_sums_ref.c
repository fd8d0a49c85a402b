/* Sums of rows quantized over their own range to floats, the plain reading. */
#include "isa.h"
#include "scale_sums.h"

void hwq_scale_sums__ref(const hwq_row_scales *scale, const void *acc, const float *scales, const void *points, float *out)
{
    scale_rows(scale, acc, scales, points, out);
}
