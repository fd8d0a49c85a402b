/* Operators on rows of values: quantize and dequantize, tables, softmax, layer normalization. kernels.h holds the contract. */
#ifndef HWQ_ROWS_H
#define HWQ_ROWS_H
#include "requantization.h"

/* ---- Quantize and friends -------------------------------------------------------------------------------------------- */
typedef enum {
    HWQ_QUANTIZE_ONNX,          /* rint(clip(x / s)) + zp; NaN -> lo */
    HWQ_QUANTIZE_RECIPROCAL,    /* rint(clip(x * (1 / s))) + zp (XNNPACK); NaN -> lo */
    HWQ_QUANTIZE_TFLITE,        /* ties away of x / s, to int32 (what does not fit becomes INT32_MIN), + zp, clip */
    HWQ_QUANTIZE_TORCH_TENSOR,  /* clip(rint(fma(x, 1 / s, zp))); NaN -> hi */
    HWQ_QUANTIZE_TORCH_CHANNEL, /* clip(rint(zp + x * (1 / s))); NaN -> hi */
    HWQ_QUANTIZE_TORCH_FAKE,    /* clip(rint(x * (1 / s)) + zp); NaN -> hi */
    HWQ_QUANTIZE_ORT_POOL       /* clip(rint(x / s + zp)); NaN -> lo */
} hwq_quantize_formula;
/* x, out: outer x channels x inner; scales and zero_points one per channel (channels 1: per tensor). lo, hi inside out_type: u8 s8 u16 s16. */
void hwq_quantize(int32_t formula, int64_t outer, int64_t channels, int64_t inner, const float *x, const float *scales,
                  const int32_t *zero_points, int32_t lo, int32_t hi, void *out, int32_t out_type);
/* out = f32(q - zp) * s; zero points within the type of q */
void hwq_dequantize(int64_t outer, int64_t channels, int64_t inner, const void *q, int32_t type, const float *scales,
                    const int32_t *zero_points, float *out);
/* hwq_quantize by formula onnx and hwq_dequantize in one pass over n values of one scale. May be in place. */
void hwq_fake_quantize(int64_t n, const float *x, float scale, int32_t zero_point, int32_t lo, int32_t hi, float *out);
/* out[i] = table[x[i] ^ flip]; flip = 0x80 for s8, 0 for u8: the table is indexed by value - lowest value. May be in place. */
void hwq_lut(int64_t n, const uint8_t *x, uint8_t flip, const uint8_t *table, uint8_t *out);
/* Two per byte, first element in the low nibble; an odd last high nibble is 0. */
void hwq_pack_int4(int64_t n, const int8_t *x, uint8_t *packed);
void hwq_unpack_int4(int64_t n, const uint8_t *packed, int32_t is_signed, int8_t *x);

/* Scale, zero point and quantized values of each row over its own range; 0 belongs to every range. */
typedef enum {
    HWQ_DYNAMIC_ONNX,              /* DynamicQuantizeLinear, u8; NaN is ignored in the range and becomes 0 */
    HWQ_DYNAMIC_TFLITE_SYMMETRIC,  /* s8 in [-127, 127], zero point 0 */
    HWQ_DYNAMIC_TFLITE_ASYMMETRIC, /* s8 */
    HWQ_DYNAMIC_XNNPACK,           /* s8 */
    HWQ_DYNAMIC_TORCH,             /* u8, choose_qparams and quantize_per_tensor */
    HWQ_DYNAMIC_TORCH_REDUCED,     /* the same over 7 bits */
    HWQ_DYNAMIC_SYMMETRIC          /* s8 in [-127, 127], zero point 0, rint(x / s); NaN becomes -127 */
} hwq_dynamic_formula;
void hwq_dynamic_quantize(int32_t formula, int64_t rows, int64_t columns, const float *x, void *out, float *scales,
                          int32_t *zero_points);
/* Sums of rows that were quantized over their own range to floats: row r of `columns` takes scale and zero point r / each.
 * sum = acc - point * sums[column], modulo 2^32. */
typedef enum {
    HWQ_SCALE_XNNPACK, /* fma(f32(sum) * scale, factors[column], bias[column]) */
    HWQ_SCALE_ONNX,    /* f32(sum) * (scale * factors[column]), then + bias[column] */
    HWQ_SCALE_FLOATS   /* acc: floats, no points. acc * scale, then + bias[column] */
} hwq_scale_formula;
typedef struct {
    int32_t formula;
    int32_t point_type;          /* HWQ_U8, HWQ_S8: of the points */
    int64_t rows, columns, each;
    const int32_t *sums;         /* where there are points */
    const float *factors, *bias; /* bias: NULL, or one per column */
    float lo, hi;                /* the result's clamp; NaN stays */
} hwq_row_scales;
/* points: NULL, or one a byte */
void hwq_scale_sums(const hwq_row_scales *scale, const void *acc, const float *scales, const void *points, float *out);
/* out[i] = interpolation between samples of a function of int16, 2^shift apart, (65536 >> shift) + 1 of them; shift in [0, 7]:
 * 7 is TFLite's table of 513, 0 has a sample for every input. May be in place. */
void hwq_lut_s16(int64_t n, int32_t shift, const int16_t *x, const int16_t *table, int16_t *out);

/* Range and sum of each channel of x, outer x channels x inner values of float32, each greater than 0; what the arrays hold is
 * written over. Sums are in double: rows of channels (inner 1) are added in their order; else each run of `inner` values has eight
 * partial sums, value i in sum i % 8, which are added up in order, and the runs' sums in theirs. Of zeros of either sign the first
 * is the range's. Returns 1, or 0 if a value is NaN or infinite (then ranges and sums mean nothing). */
int32_t hwq_ranges(int64_t outer, int64_t channels, int64_t inner, const float *x, float *minima, float *maxima, double *totals);
/* Counts and squares of float32 values, for calibration. Value x falls into bin floor(x * inverse) + half, where `inverse` is a
 * power of two: a float32 has 24 bits, so the double product is exact and no value changes its bin. What is not in
 * [-half, half) bins, NaN among it, is not counted. `counts` holds two histograms of 2 * half bins, to be added by the caller:
 * even and odd elements count apart, so that equal neighbors do not wait for each other. `squares` are four partial sums,
 * element i in sum i % 4, in double. Both are added to. */
void hwq_histogram(int64_t n, const float *x, double inverse, int64_t half, int64_t *counts, double *squares);

/* ---- Softmax and layer normalization on integers -------------------------------------------------------------------------- */
typedef enum {
    HWQ_SOFTMAX_GEMMLOWP, /* LiteRT's 8-bit fixed point: u8, s8 in; u8, s8, s16 out */
    HWQ_SOFTMAX_INT16,    /* LiteRT's two interpolated tables: s16 in and out */
    HWQ_SOFTMAX_TABLE,    /* onnxruntime's QLinearSoftmax: a table of 256 floats, u8, s8 in and out */
    HWQ_SOFTMAX_RECIPROCAL/* LiteRT's default for 8 bits: the same table, one reciprocal a row; u8, s8 in and out */
} hwq_softmax_formula;
typedef struct {
    int32_t formula, type, out_type;
    float scale, beta;           /* GEMMLOWP, INT16; RECIPROCAL: scale of the result, at least 2^-20 */
    const float *table;          /* TABLE, RECIPROCAL: entry 255 - d for distance d to the largest; RECIPROCAL: in [0, 1], the last 1 */
    float inverse;               /* TABLE: floor(1 / scale of the result) */
    int32_t zero_point;          /* TABLE, RECIPROCAL: of the result, within its type */
    /* Filled by hwq_softmax_prepare: */
    int32_t multiplier, shift;
    int32_t exponentials[256];   /* GEMMLOWP: by distance, Q0.31 */
    int16_t powers[514], reciprocals[514];
} hwq_softmax;
void hwq_softmax_prepare(hwq_softmax *softmax);
/* Each of `rows` rows of `columns` alone. Rows beyond 4095 columns may wrap the fixed-point sum, as the runtime's do. */
void hwq_softmax_run(const hwq_softmax *softmax, int64_t rows, int64_t columns, const void *x, void *out);

/* Integer layer normalization: int16, weights int16, bias in units of weight / 1024. The row's statistics are those of TFLite's
 * LSTM, or exact: n * sum(x^2) - sum(x)^2 + epsilon in 64 bits is the n^2-fold variance. */
typedef enum { HWQ_LAYER_NORM_LSTM, HWQ_LAYER_NORM_EXACT } hwq_layer_norm_formula;
typedef struct {
    int32_t formula;
    int64_t epsilon;             /* EXACT: in [0, 2^62] */
    int64_t columns;             /* LSTM: at most 2^20; EXACT: at most 2^16 */
    const int16_t *weights;
    const int32_t *bias;         /* NULL or columns */
    int32_t multiplier, shift;   /* of the weights' scale, from hwq_quantize_multiplier; shift in [-43, 19] */
    int32_t variance_limit;      /* LSTM: at least 1, stands for a variance below 1 */
} hwq_layer_norm;
void hwq_layer_norm_s16(const hwq_layer_norm *norm, int64_t rows, const int16_t *x, int16_t *out);

#endif
