/* Ranges and sums of channels, compiled once per path: the compiler vectorizes the loops, and the order of every sum is spelled out. */
#ifndef HWQ_STATISTICS_H
#define HWQ_STATISTICS_H
#include "hwq/kernels.h"

#include <math.h>
#include <string.h>

#define HWQ_INLINE static inline __attribute__((always_inline))
enum { LANES = 8 };

/* All exponent bits set: infinite or NaN. */
HWQ_INLINE uint32_t beyond(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, 4);
    return (bits & 0x7fffffffu) >= 0x7f800000u;
}

/* A run of one channel, joined to what the channel has. */
HWQ_INLINE uint32_t run(int64_t n, const float *x, float *minimum, float *maximum, double *total)
{
    float low[LANES], high[LANES];
    double sums[LANES] = {0};
    uint32_t bad[LANES] = {0};
    int64_t i = 0;
    for (int j = 0; j < LANES; j++) low[j] = *minimum, high[j] = *maximum;
    for (; i + LANES <= n; i += LANES)
        for (int j = 0; j < LANES; j++) {
            const float v = x[i + j];
            low[j] = v < low[j] ? v : low[j];
            high[j] = v > high[j] ? v : high[j];
            sums[j] += (double)v;
            bad[j] |= beyond(v);
        }
    for (int j = 0; i + j < n; j++) {
        const float v = x[i + j];
        low[j] = v < low[j] ? v : low[j];
        high[j] = v > high[j] ? v : high[j];
        sums[j] += (double)v;
        bad[j] |= beyond(v);
    }
    double sum = 0.0;
    for (int j = 0; j < LANES; j++) {
        *minimum = low[j] < *minimum ? low[j] : *minimum;
        *maximum = high[j] > *maximum ? high[j] : *maximum;
        sum += sums[j];
        bad[0] |= bad[j];
    }
    *total += sum;
    return bad[0];
}

/* A row of all channels. */
HWQ_INLINE uint32_t row(int64_t channels, const float *restrict x, float *restrict minima, float *restrict maxima, double *restrict totals)
{
    uint32_t bad = 0;
    for (int64_t c = 0; c < channels; c++) {
        const float v = x[c];
        minima[c] = v < minima[c] ? v : minima[c];
        maxima[c] = v > maxima[c] ? v : maxima[c];
        totals[c] += (double)v;
        bad |= beyond(v);
    }
    return bad;
}

HWQ_INLINE int32_t ranges_all(int64_t outer, int64_t channels, int64_t inner, const float *x, float *minima, float *maxima, double *totals)
{
    uint32_t bad = 0;
    for (int64_t c = 0; c < channels; c++) minima[c] = INFINITY, maxima[c] = -INFINITY, totals[c] = 0.0;
    if (inner == 1 && channels > 1)
        for (int64_t o = 0; o < outer; o++, x += channels) bad |= row(channels, x, minima, maxima, totals);
    else if (inner == 1)
        bad = run(outer, x, minima, maxima, totals);
    else
        for (int64_t o = 0; o < outer; o++)
            for (int64_t c = 0; c < channels; c++, x += inner) bad |= run(inner, x, minima + c, maxima + c, totals + c);
    return !bad;
}

#endif
