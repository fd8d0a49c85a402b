/* What calibration gathers of float32 values: ranges, sums, histogram and squares; the plain reading. */
#include "isa.h"
#include "statistics.h"

int32_t hwq_ranges__ref(int64_t outer, int64_t channels, int64_t inner, const float *x, float *minima, float *maxima, double *totals)
{
    return ranges_all(outer, channels, inner, x, minima, maxima, totals);
}

static inline void count(double scaled, double limit, int64_t half, int64_t *counts)
{
    if (!(scaled >= -limit && scaled < limit)) return;
    const int64_t bin = (int64_t)scaled; /* towards zero: one more than the floor where a fraction was below it */
    counts[bin - (scaled < (double)bin) + half]++;
}

/* Squares in four sums by turns, and counts in two tables, so that neighbors do not wait for each other. */
void hwq_histogram__ref(int64_t n, const float *x, double inverse, int64_t half, int64_t *counts, double *squares)
{
    const double limit = (double)half;
    double sums[4] = {squares[0], squares[1], squares[2], squares[3]};
    int64_t i = 0;

    for (; i + 4 <= n; i += 4) {
        const double a = x[i], b = x[i + 1], c = x[i + 2], d = x[i + 3];
        sums[0] += a * a;
        sums[1] += b * b;
        sums[2] += c * c;
        sums[3] += d * d;
        count(a * inverse, limit, half, counts);
        count(b * inverse, limit, half, counts + 2 * half);
        count(c * inverse, limit, half, counts);
        count(d * inverse, limit, half, counts + 2 * half);
    }
    for (; i < n; i++) {
        const double value = x[i];
        sums[i & 3] += value * value;
        count(value * inverse, limit, half, counts + (i & 1) * 2 * half);
    }
    for (i = 0; i < 4; i++) squares[i] = sums[i];
}
