/* What happens to an accumulator on its way out, and operators on quantized bytes. kernels.h holds the contract. */
#ifndef HWQ_REQUANTIZATION_H
#define HWQ_REQUANTIZATION_H
#include <stddef.h>
#include <stdint.h>

typedef enum { HWQ_U8, HWQ_S8, HWQ_U16, HWQ_S16, HWQ_S32, HWQ_S64, HWQ_F32, HWQ_F16, HWQ_BF16 } hwq_type;

/* ---- Requantization: R1..R7 of kernels/README.md ------------------------------------------------------------------ */
typedef enum {
    HWQ_ROUND_GEMMLOWP,  /* R1: saturating rounding doubling high multiply, then rounding divide by a power of two */
    HWQ_ROUND_F64,       /* R2: float64 product, ties away from zero */
    HWQ_ROUND_RUY,       /* R3: both stages round ties up */
    HWQ_ROUND_FP32,      /* R4: float32 product, clamp, ties to even */
    HWQ_ROUND_MBQM64,    /* R5: 64-bit accumulator times a 16-bit multiplier, ties up */
    HWQ_ROUND_XNN_FIXED, /* R6: (acc * m + half) >> shift */
    HWQ_ROUND_SINGLE     /* R7: one 64-bit product, one rounding, ties up */
} hwq_rounding;

typedef enum { HWQ_KIND_S32, HWQ_KIND_REQUANT, HWQ_KIND_F32 } hwq_kind;

/* Real multiplier -> (31-bit multiplier, left shift), as TFLite's QuantizeMultiplier. 0 -> (0, 0). */
void hwq_quantize_multiplier(double real, int32_t *multiplier, int32_t *shift);

/* ---- Elementwise binary operators on quantized bytes ---------------------------------------------------------------- */
typedef enum {
    HWQ_BINARY_ORT_ADD, HWQ_BINARY_ORT_MUL, HWQ_BINARY_TFLITE_ADD, HWQ_BINARY_TFLITE_SUB, HWQ_BINARY_TFLITE_MUL,
    HWQ_BINARY_XNN_ADD, HWQ_BINARY_XNN_SUB, HWQ_BINARY_XNN_MUL, HWQ_BINARY_TORCH_ADD, HWQ_BINARY_TORCH_MUL
} hwq_binary_formula;

typedef struct {
    int32_t formula;                                   /* hwq_binary_formula */
    int32_t a_type, b_type, out_type;                  /* HWQ_U8, HWQ_S8, HWQ_S16 */
    int32_t a_zero_point, b_zero_point, zero_point;
    int32_t lo, hi;                                    /* clamp of the result, inside the output type */
    float a_scale, b_scale, scale;                     /* as stored in the model */
    /* Filled by hwq_binary_prepare: */
    float a_factor, b_factor, factor, a_offset, b_offset;
    int32_t a_multiplier, a_shift, b_multiplier, b_shift, multiplier, shift, left;
} hwq_binary;

/* Derive the second half of the struct from the first. Returns 0, or -1 where the formula cannot represent the scales. */
int hwq_binary_prepare(hwq_binary *binary);

/* out[i] = formula(a[i * a_step], b[i * b_step]); steps are 0 (broadcast) or 1. May be in place (out == a or out == b). */
void hwq_binary_run(const hwq_binary *binary, int64_t n, const void *a, int64_t a_step, const void *b, int64_t b_step,
                    void *out);

/* ---- Epilogue: what happens to an int32 accumulator on its way out ---------------------------------------------------- */
typedef struct {
    int32_t kind;                /* hwq_kind */
    int32_t rounding;            /* hwq_rounding, for HWQ_KIND_REQUANT */
    int32_t out_type;            /* HWQ_S32 | HWQ_F32 | HWQ_U8, HWQ_S8, HWQ_U16, HWQ_S16 */
    int32_t channel_step;        /* 0: one multiplier for all columns, 1: one per column */
    const float *scales_f32;     /* R4 and HWQ_KIND_F32 */
    const double *scales_f64;    /* R2 */
    const int32_t *multipliers;  /* R1 R3 R5 R6 R7 */
    const int32_t *shifts;       /* left positive; for R6 the right shift itself, 1..31 */
    const float *float_bias;     /* NULL, or one per column. R4: added to f32(acc) before the product (fbgemm).
                                    HWQ_KIND_F32: added after it (MatMulIntegerToFloat), never fused */
    int32_t zero_point, lo, hi;  /* REQUANT: result = clamp(rounded + zero_point, lo, hi), inside the output type */
    const uint8_t *lut;          /* NULL, or 256 bytes that replace a byte output; indexed by value - lowest value */
    const hwq_binary *residual_op; /* NULL, or the operator applied last: out = op(out, residual) */
    const void *residual;        /* laid out as the output, of type residual_op->b_type */
    int64_t residual_stride;     /* elements between rows (unused by convolutions: the residual has the output's layout) */
} hwq_epilogue;

/* acc: rows x columns, HWQ_S32, or HWQ_S64 for R2 and R5. first_column: index into the per-column arrays. */
void hwq_requantize(const hwq_epilogue *epilogue, int64_t rows, int64_t columns, int64_t first_column, const void *acc,
                    int32_t acc_type, int64_t acc_stride, void *out, int64_t out_stride);

#endif
