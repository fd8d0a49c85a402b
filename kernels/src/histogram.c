/* Histogram and squares of float32 values. Scalar on every CPU: the counts are a chain of loads and stores. */
#include "hwq/kernels.h"

void hwq_histogram(int64_t n, const float *x, double inverse, int64_t half, int64_t *counts, double *squares)
{
    const double limit = (double)half;
    double sums[4] = {squares[0], squares[1], squares[2], squares[3]};

    for (int64_t i = 0; i < n; i++) {
        const double value = x[i], scaled = value * inverse;

        sums[i & 3] += value * value;
        if (!(scaled >= -limit && scaled < limit))
            continue;
        int64_t bin = (int64_t)scaled; /* towards zero: one more than the floor where a fraction was below it */
        bin -= scaled < (double)bin;
        counts[(i & 1) * 2 * half + bin + half]++;
    }
    for (int i = 0; i < 4; i++)
        squares[i] = sums[i];
}
