/* The epilogue, the plain reading: accumulators to int32, float32 or clamped small integers, then table, then residual. */
#include "epilogue.h"
#include "fixedpoint.h"
#include "isa.h"

static inline void store(void *out, int32_t type, int64_t i, int32_t v)
{
    switch (type) {
    case HWQ_U8: case HWQ_S8: ((uint8_t *)out)[i] = (uint8_t)v; break;
    case HWQ_U16: case HWQ_S16: ((uint16_t *)out)[i] = (uint16_t)v; break;
    default: ((int32_t *)out)[i] = v;
    }
}

static inline int32_t round_one(const hwq_epilogue *e, int64_t acc, int64_t channel)
{
    const int32_t lo = e->lo, hi = e->hi, zp = e->zero_point, narrow = (int32_t)acc;
    const int64_t c = e->channel_step ? channel : 0;
    int64_t v;
    switch (e->rounding) {
    case HWQ_ROUND_FP32: {
        float wide = (float)narrow;
        if (e->float_bias) wide += e->float_bias[channel];
        return hwq_round_fp32(wide, e->scales_f32[c], zp, lo, hi);
    }
    case HWQ_ROUND_F64: return hwq_round_f64((double)acc, e->scales_f64[c], zp, lo, hi);
    case HWQ_ROUND_GEMMLOWP: v = hwq_round_gemmlowp(narrow, e->multipliers[c], e->shifts[c]); break;
    case HWQ_ROUND_RUY: v = hwq_round_ruy(narrow, e->multipliers[c], e->shifts[c]); break;
    case HWQ_ROUND_MBQM64: v = hwq_round_mbqm64(acc, e->multipliers[c], e->shifts[c]); break;
    case HWQ_ROUND_XNN_FIXED: v = hwq_round_xnn_fixed(narrow, e->multipliers[c], e->shifts[c]); break;
    default: v = hwq_round_single(narrow, e->multipliers[c], e->shifts[c]);
    }
    return hwq_clamp_s64(v + zp, lo, hi); /* |v| < 2^62 */
}

/* The loop of int16 layers, for which no path has its own: sums of 64 bits become doubles one by one. */
static void wide_row(const hwq_epilogue *e, int64_t columns, int64_t first, const int64_t *acc, void *out)
{
    const double *scales = e->scales_f64 + (e->channel_step ? first : 0);
    const int64_t step = e->channel_step;
    const int32_t zp = e->zero_point, lo = e->lo, hi = e->hi;
    if (e->out_type == HWQ_S16 || e->out_type == HWQ_U16)
        for (int64_t i = 0; i < columns; i++) ((uint16_t *)out)[i] = (uint16_t)hwq_round_f64((double)acc[i], scales[i * step], zp, lo, hi);
    else
        for (int64_t i = 0; i < columns; i++) store(out, e->out_type, i, hwq_round_f64((double)acc[i], scales[i * step], zp, lo, hi));
}

void hwq_requantize__ref(const hwq_epilogue *e, int64_t rows, int64_t columns, int64_t first_column, const void *acc,
                         int32_t acc_type, int64_t acc_stride, void *out, int64_t out_stride)
{
    const int64_t out_size = hwq_type_size(e->out_type);
    for (int64_t row = 0; row < rows; row++) {
        char *line = (char *)out + row * out_stride * out_size;
        const int32_t *narrow = (const int32_t *)acc + row * acc_stride;
        const int64_t *wide = (const int64_t *)acc + row * acc_stride;
        if (e->kind == HWQ_KIND_S32) {
            for (int64_t i = 0; i < columns; i++) ((int32_t *)line)[i] = narrow[i];
        } else if (e->kind == HWQ_KIND_F32) {
            for (int64_t i = 0; i < columns; i++) {
                float v = (float)narrow[i] * e->scales_f32[e->channel_step ? first_column + i : 0];
                if (e->float_bias) v += e->float_bias[first_column + i];
                ((float *)line)[i] = v;
            }
        } else if (e->rounding == HWQ_ROUND_F64 && acc_type == HWQ_S64) {
            wide_row(e, columns, first_column, wide, line);
        } else {
            for (int64_t i = 0; i < columns; i++)
                store(line, e->out_type, i, round_one(e, acc_type == HWQ_S64 ? wide[i] : narrow[i], first_column + i));
        }
        hwq_finish_row(e, row, columns, line);
    }
}

void hwq_lut__ref(int64_t n, const uint8_t *x, uint8_t flip, const uint8_t *table, uint8_t *out)
{
    for (int64_t i = 0; i < n; i++) out[i] = table[x[i] ^ flip];
}
