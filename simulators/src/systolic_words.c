/* Words of operands: pairs of 16-bit values along k, from matrices of 8- or 16-bit elements with any strides. */
#include "systolic.h"

#define COPY(NAME, TYPE)                                                                                             \
    static void NAME(const TYPE *x, int64_t step, int64_t partner, int64_t n, hwq_word *to, int64_t to_step) {       \
        if (partner == 0 && step == 1 && to_step == -1) { /* a row's port, in order of k: the loop is a vector's */  \
            for (int64_t i = 0; i < n; i++) to[-i] = (uint16_t)x[i];                                                 \
            return;                                                                                                  \
        }                                                                                                            \
        if (partner == 0) {                                                                                          \
            for (; n >= 4; n -= 4, x += 4 * step, to += 4 * to_step) {                                               \
                const uint16_t w0 = (uint16_t)x[0], w1 = (uint16_t)x[step];                                          \
                const uint16_t w2 = (uint16_t)x[2 * step], w3 = (uint16_t)x[3 * step];                               \
                to[0] = w0, to[to_step] = w1, to[2 * to_step] = w2, to[3 * to_step] = w3;                            \
            }                                                                                                        \
            for (; n > 0; n--, x += step, to += to_step) *to = (uint16_t)*x;                                         \
            return;                                                                                                  \
        }                                                                                                            \
        for (int64_t i = 0; i < n; i++)                                                                              \
            to[i * to_step] = (uint16_t)x[i * step] | (hwq_word)(uint16_t)x[i * step + partner] << 16;               \
    }
COPY(copy_u8, uint8_t)
COPY(copy_s8, int8_t)
COPY(copy_s16, int16_t)

static void copy(const hwq_operand *x, int64_t at, int64_t step, int paired, int64_t n, hwq_word *to, int64_t to_step) {
    const int64_t partner = paired ? x->k_step : 0;
    if (x->type == HWQ_SIM_U8) copy_u8((const uint8_t *)x->data + at, step, partner, n, to, to_step);
    else if (x->type == HWQ_SIM_S8) copy_s8((const int8_t *)x->data + at, step, partner, n, to, to_step);
    else copy_s16((const int16_t *)x->data + at, step, partner, n, to, to_step);
}

static int has_pair(const hwq_operand *x, int64_t q) { return x->pack == 2 && 2 * q + 1 < x->k; }

void hwq_copy_lines(const hwq_operand *x, int64_t line, int64_t q, int64_t n, hwq_word *to, int64_t to_step) {
    copy(x, line * x->line_step + q * x->pack * x->k_step, x->line_step, has_pair(x, q), n, to, to_step);
}

void hwq_copy_depth(const hwq_operand *x, int64_t line, int64_t q, int64_t n, hwq_word *to, int64_t to_step) {
    const int64_t at = line * x->line_step + q * x->pack * x->k_step, step = x->pack * x->k_step;
    if (n <= 0) return;
    const int ragged = x->pack == 2 && !has_pair(x, q + n - 1); /* the last word of an odd k stands alone */
    if (n > ragged) copy(x, at, step, x->pack == 2, n - ragged, to, to_step);
    if (ragged) copy(x, at + (n - 1) * step, step, 0, 1, to + (n - 1) * to_step, to_step);
}

hwq_word hwq_word_at(const hwq_operand *x, int64_t line, int64_t q) {
    hwq_word word;
    hwq_copy_lines(x, line, q, 1, &word, 1);
    return word;
}
