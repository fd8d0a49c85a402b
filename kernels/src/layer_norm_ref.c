/* Integer layer normalization of int16 rows, as TFLite's quantized LSTM computes it (kernels/internal/kernel_utils: the mean in
 * 1/1024 steps, the variance by integers, its inverse root by Newton's iteration); and with a variance that loses nothing, also
 * where the number of columns is no power of two or the variance is below 1. */
#include "layer_norm.h"

static int32_t times(int32_t a, int32_t b) { return hwq_srdhm(a, b); }

/* 1 / sqrt(v) = root * 2^(shift - 31), v >= 1. v is scaled by powers of 4 into [2^27, 2^29), read as Q3.28 after a shift, and five
 * steps x = x (3/2 - v/2 x^2) follow; a product of Q3.28 numbers is Q6.25, of three Q9.22. */
static void inverse_root(int32_t v, int32_t *root, int32_t *shift)
{
    const int32_t three_halves = (1 << 28) + (1 << 27);
    if (v <= 1) {
        *root = INT32_MAX, *shift = 0;
        return;
    }
    *shift = 11;
    while (v >= 1 << 29) v /= 4, ++*shift;
    const int pairs = (hwq_leading_zeros((uint32_t)v) - 1) / 2 - 1;
    *shift -= pairs;
    v <<= 2 * pairs;
    const int32_t half = hwq_rdbpot(v >> 1, 1);
    int32_t x = 1 << 28;
    for (int i = 0; i < 5; i++) {
        const int32_t cube = hwq_shl_saturated(times(times(x, x), x), 6);
        x = hwq_shl_saturated(hwq_wrap_add(times(three_halves, x), -times(half, cube)), 3);
    }
    x = times(x, 1518500250 /* sqrt(1/2) */);
    if (*shift < 0) {
        x = hwq_wrap_shl(x, -*shift);
        *shift = 0;
    }
    *root = x, *shift = -*shift;
}

/* 1 / sqrt(total) times n, total < 2^63, n <= 2^16: total is scaled by powers of 4 into [2^27, 2^29), the product by n has 47 bits
 * and is rounded to 31. */
static void exact_root(uint64_t total, int64_t n, int32_t *root, int32_t *shift)
{
    int quarters = 0, down = 0;
    *root = *shift = 0; /* a row of equal values, without epsilon: nothing but the bias */
    if (!total) return;
    for (; total >= 1u << 29; total >>= 2) quarters++;
    for (; total < 1u << 27; total <<= 2) quarters--;
    inverse_root((int32_t)total, root, shift);
    int64_t m = *root * n;
    while (m >= INT64_C(1) << 32) m >>= 1, down++;
    if (m >= INT64_C(1) << 31) m = (m + 1) >> 1, down++;
    if (m == INT64_C(1) << 31) m >>= 1, down++;
    for (; m < INT64_C(1) << 30; m <<= 1) down--;
    *root = (int32_t)m, *shift += down - quarters;
}

/* Bounds: |sum| <= 2^15 n, |sum of squares| <= 2^30 n, times 2^20 / n: below 2^51. n <= 2^20, so that 2^20 / n is not 0. EXACT:
 * n <= 2^16, so n times the squares and the sum's square are at most 2^62, and so is epsilon. */
hwq_layer_norm_row hwq_layer_norm_measure(const hwq_layer_norm *p, const int16_t *x)
{
    int64_t sum = 0, squares = 0;
    hwq_layer_norm_row row;
    for (int64_t i = 0; i < p->columns; i++) sum += x[i], squares += (int32_t)x[i] * x[i];
    row.mean = (int32_t)(sum * 1024 / p->columns);
    if (p->formula == HWQ_LAYER_NORM_EXACT) {
        exact_root((uint64_t)(squares * p->columns - sum * sum) + (uint64_t)p->epsilon, p->columns, &row.root, &row.shift);
        return row;
    }
    int32_t variance = (int32_t)((squares * ((1 << 20) / p->columns) - (int64_t)row.mean * row.mean) / (1 << 20));
    if (variance < 1) variance = p->variance_limit;
    inverse_root(variance, &row.root, &row.shift);
    return row;
}

void hwq_layer_norm_s16__ref(const hwq_layer_norm *p, int64_t rows, const int16_t *x, int16_t *out)
{
    for (int64_t r = 0; p->columns && r < rows; r++, x += p->columns, out += p->columns) {
        const hwq_layer_norm_row row = hwq_layer_norm_measure(p, x);
        for (int64_t i = 0; i < p->columns; i++) out[i] = hwq_layer_norm_one(p, &row, i, x[i]);
    }
}
