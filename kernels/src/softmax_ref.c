/* Integer softmax and interpolated tables, the plain reading. */
#include "softmax.h"

#include "isa.h"

/* exp of a <= 0 in Q5.26, as Q0.31: a polynomial on the last quarter, then one factor exp(-2^i) for every set bit. */
static int32_t exponential(int32_t a)
{
    static const int32_t powers[] = {1672461947, 1302514674, 790015084, 290630308, 39332535, 720401, 242}; /* exp(-2^i), i = -2.. */
    const int32_t start = (a & ((1 << 24) - 1)) - (1 << 24), rest = start - a, middle = 1895147668 /* exp(-1/8) */;
    const int32_t x = hwq_shl_saturated(start, 5) + (1 << 28), square = hwq_srdhm(x, x);
    const int32_t cube = hwq_srdhm(square, x), fourth = hwq_srdhm(square, square);
    const int32_t tail = hwq_rdbpot(hwq_srdhm(hwq_rdbpot(fourth, 2) + cube, 715827883 /* 1/3 */) + square, 1);
    int32_t result = middle + hwq_srdhm(middle, x + tail);
    for (int i = 0; i < 7; i++)
        if (rest & (1 << (24 + i))) result = hwq_srdhm(result, powers[i]);
    return a == 0 ? INT32_MAX : result;
}

static int16_t sample(double v) { return (int16_t)(v < -32768 ? -32768 : v > 32767 ? 32767 : v); }
static double reciprocal(double x) { return 1.0 / (1.0 + x); }

/* Each sample gives up half of the interpolation's error in the middle of its interval. */
static void fill(int16_t *table, double (*function)(double), double low, double high, double inverse)
{
    const double step = (high - low) / 512;
    for (int i = 0; i < 512; i++) {
        const double here = round(function(low + i * step) * inverse), next = function(low + (i + 1) * step) * inverse;
        const double middle = round(function(low + i * step + step / 2) * inverse);
        table[i] = sample(here - round((round((next + here) / 2) - middle) / 2));
    }
    table[512] = sample(round(function(high) * inverse));
}

void hwq_softmax_prepare(hwq_softmax *s)
{
    if (s->formula == HWQ_SOFTMAX_GEMMLOWP) {
        double real = (double)s->beta * s->scale * 67108864.0; /* 2^26 */
        int32_t left = 0;
        if (real > 2147483647.0) real = 2147483647.0;
        hwq_quantize_multiplier(real, &s->multiplier, &s->shift);
        left = s->shift;
        const double least = -floor(31 * 67108864.0 / ldexp(1.0, left)); /* beyond it the exponential counts as 0 */
        for (int d = 0; d < 256; d++) s->exponentials[d] = -d < least ? 0 : exponential(hwq_round_gemmlowp(-d, s->multiplier, left));
    } else if (s->formula == HWQ_SOFTMAX_INT16) {
        const double grid = 10.0 / 65535, unit = 1.0 / 65535, inverse = 65536 / (2.0 / 65535 * 32767 - 2.0 / 65535 * -32768);
        const double real = (double)(float)(s->scale * s->beta) / grid;
        hwq_quantize_multiplier(real < 2147483647.0 ? real : 2147483647.0, &s->multiplier, &s->shift); /* further left no int32 can go */
        fill(s->powers, exp, grid * (-32768 - 32767), grid * (32767 - 32767), inverse);
        fill(s->reciprocals, reciprocal, unit * (-32768 + 32768), unit * (32767 + 32768), inverse);
    }
}

static void row_bytes(const hwq_softmax *s, int64_t n, const uint8_t *x, void *out)
{
    const uint8_t flip = s->type == HWQ_S8 ? 0x80 : 0;
    int32_t top = 0;
    for (int64_t i = 0; i < n; i++) top = (x[i] ^ flip) > top ? x[i] ^ flip : top;
    if (s->formula == HWQ_SOFTMAX_TABLE) {
        float sum = 0;
        for (int64_t i = 0; i < n; i++) sum += s->table[255 - top + (x[i] ^ flip)];
        for (int64_t i = 0; i < n; i++) {
            const float v = rintf(s->table[255 - top + (x[i] ^ flip)] * s->inverse / sum);
            const int32_t steps = hwq_wrap_add(v < 2147483648.0f ? (int32_t)v : INT32_MIN, s->zero_point);
            ((uint8_t *)out)[i] = (uint8_t)(steps > 255 ? 255 : steps); /* int8 wraps from 128 on, as the runtime's cast does */
        }
        return;
    }
    const int32_t least = hwq_type_least(s->out_type), most = hwq_type_most(s->out_type);
    if (s->formula == HWQ_SOFTMAX_RECIPROCAL) {
        float sum = 0;
        for (int64_t i = 0; i < n; i++) sum += s->table[255 - top + (x[i] ^ flip)];
        const float inverse = 1.0f / (sum * s->scale);
        for (int64_t i = 0; i < n; i++) {
            const int32_t v = hwq_softmax_away(s->table[255 - top + (x[i] ^ flip)] * inverse) + s->zero_point;
            ((uint8_t *)out)[i] = (uint8_t)(v > most ? most : v);
        }
        return;
    }
    uint32_t sum = 0;
    int shift;
    for (int64_t i = 0; i < n; i++) sum += (uint32_t)hwq_rdbpot(s->exponentials[top - (x[i] ^ flip)], 12);
    const int32_t r = hwq_softmax_reciprocal(sum, s->out_type == HWQ_S16 ? 16 : 8, &shift);
    for (int64_t i = 0; i < n; i++) {
        const int64_t v = hwq_up(hwq_srdhm(r, s->exponentials[top - (x[i] ^ flip)]), shift) + least; /* nothing is negative: up is away */
        hwq_store_small(out, s->out_type, i, hwq_clamp_s64(v, least, most));
    }
}

static void row_s16(const hwq_softmax *s, int64_t n, const int16_t *x, int16_t *out)
{
    int32_t top = -32768;
    uint32_t sum = 0; /* each power is at most 2^15: exact for 2^17 columns */
    int shift;
    for (int64_t i = 0; i < n; i++) top = x[i] > top ? x[i] : top;
    for (int64_t i = 0; i < n; i++) {
        const int64_t scaled = (int64_t)hwq_round_gemmlowp(x[i] - top, s->multiplier, s->shift) + 32767;
        out[i] = (int16_t)hwq_interpolate(s->powers, hwq_clamp_s64(scaled, INT16_MIN, INT16_MAX));
        sum += (uint32_t)out[i];
    }
    const int32_t r = hwq_interpolate(s->reciprocals, hwq_softmax_position(sum, &shift));
    for (int64_t i = 0; i < n; i++) out[i] = (int16_t)hwq_clamp_s64(hwq_up((int64_t)out[i] * r, shift), 0, 32767);
}

void hwq_softmax_run__ref(const hwq_softmax *s, int64_t rows, int64_t columns, const void *x, void *out)
{
    const int64_t in_row = columns * (s->type == HWQ_S16 ? 2 : 1), out_row = columns * (s->out_type == HWQ_S16 ? 2 : 1);
    for (int64_t row = 0; columns && row < rows; row++) {
        const char *from = (const char *)x + row * in_row;
        char *to = (char *)out + row * out_row;
        if (s->formula == HWQ_SOFTMAX_INT16) row_s16(s, columns, (const int16_t *)from, (int16_t *)to);
        else row_bytes(s, columns, (const uint8_t *)from, to);
    }
}

/* |slope| < 2^16, its factor below 2^7. */
void hwq_lut_s16__ref(int64_t n, int32_t shift, const int16_t *x, const int16_t *table, int16_t *out)
{
    const int32_t half = (1 << shift) >> 1, mask = (1 << shift) - 1;
    for (int64_t i = 0; i < n; i++) {
        const int16_t *at = table + ((x[i] + 32768) >> shift);
        out[i] = (int16_t)(at[0] + (((at[1] - at[0]) * (x[i] & mask) + half) >> shift));
    }
}
