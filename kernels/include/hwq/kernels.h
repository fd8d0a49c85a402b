/* Integer and fixed-order float kernels, bit for bit the same on every path.
 *
 * Common contract, unless an op says otherwise:
 *   - sizes are element counts >= 0; strides are element counts; a size of 0 touches no memory and K = 0 gives zeros;
 *   - pointers need only the alignment of their element type; inputs and outputs must not overlap unless the op says
 *     "may be in place"; no op writes outside its output, its workspace, or allocates;
 *   - integer accumulators are 32 bits and wrap modulo 2^32 (ONNX and TFLite define that). Whoever packs weights can prove
 *     that no wrap happens: |sum (a - za)(w - zw)| <= max|a - za| * sum |w - zw|;
 *     K <= 65793 (u8 x s8), 131071 (s8 x s8), 33025 (u8 x u8) never wraps without zero points;
 *   - the floating-point state is the default one (nearest even, no flush to zero): see state.h for who sets it;
 *   - NaN results are NaN; their payloads are not promised.
 * Every op `hwq_<op>` runs the best `hwq_<op>__<path>` that the chosen path has (isa.h). */
#ifndef HWQ_KERNELS_H
#define HWQ_KERNELS_H
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

/* ---- Packed weights ------------------------------------------------------------------------------------------------- */
enum { HWQ_STRIP = 16, HWQ_QUAD = 4, HWQ_FLOAT_STRIP = 4, HWQ_LANES = 8 };

/* Strips of 16 columns; in a strip, quads of k: 16 columns x 4 consecutive k, 64 bytes. Columns and k are padded with 0.
 * Weights are stored as int8: unsigned ones minus 128, their zero point likewise. One layout serves every path. */
typedef struct {
    int64_t k, n, groups;          /* n columns per group */
    const int8_t *quads;           /* groups * hwq_packed_bytes(k, n) */
    const int32_t *zero_points;    /* NULL when all are 0, else groups * n, in the stored (int8) domain */
    const int32_t *column_sums;    /* groups * n: sum of stored weights, modulo 2^32 */
    const int32_t *column_products;/* groups * n: sum of w[2j] * w[2j + 1], modulo 2^32 (Winograd's inner product) */
    int64_t weight_sum;            /* greatest sum of |w - zw| of a column; 0: nobody has summed them */
    const int16_t *winograd;       /* NULL, or a 3 x 3 convolution's weights transformed by hwq_winograd_pack, group after group */
    const int32_t *winograd_terms; /* beside them */
} hwq_packed;

int64_t hwq_packed_bytes(int64_t k, int64_t n);
/* weights: element (k, n) at weights[k * k_stride + n * n_stride], u8 or s8. zero_points: NULL or n, in the weights' domain.
 * Writes one group; positive[n] = sum of max(w - zw, 0), negative[n] = sum of max(zw - w, 0): the overflow proof. */
void hwq_pack(const void *weights, int32_t type, int64_t k, int64_t n, int64_t k_stride, int64_t n_stride,
              const int32_t *zero_points, int8_t *quads, int32_t *stored_zero_points, int32_t *column_sums,
              int32_t *column_products, int64_t *positive, int64_t *negative);

/* Strips of 4 columns; in a strip, blocks of 8 consecutive k per column. Padded with +0. */
int64_t hwq_packed_f32_floats(int64_t k, int64_t n);
void hwq_pack_f32(const float *weights, int64_t k, int64_t n, int64_t k_stride, int64_t n_stride, float *packed);

/* ---- GEMM ------------------------------------------------------------------------------------------------------------ */
typedef struct {
    int64_t m;
    const void *a;               /* m rows of k bytes, u8 or s8 by op */
    int64_t a_stride;
    int32_t a_zero_point;        /* within the type of a */
    const hwq_packed *weights;   /* one group is used: */
    int64_t group;
    int64_t first_strip, strips; /* columns [16 * first_strip, min(n, 16 * (first_strip + strips))) */
    const int32_t *bias;         /* NULL, or n per group (indexed group * n + column) */
    const hwq_epilogue *epilogue;/* per-column arrays indexed group * n + column */
    void *out;                   /* element (row, column) at out[row * out_stride + column], column within the group */
    int64_t out_stride;
    void *workspace;             /* hwq_gemm_workspace(k) bytes, 64-byte aligned */
} hwq_gemm_args;

int64_t hwq_gemm_workspace(int64_t k);
/* acc = bias + sum over k of (a - za) * (w - zw), then the epilogue. */
void hwq_gemm_u8s8(const hwq_gemm_args *args);
void hwq_gemm_s8s8(const hwq_gemm_args *args);
/* u8 x s8 with the products of k = 2i and 2i + 1 added in int16 with saturation: what runtimes compute on x86-64 without VNNI. */
void hwq_gemm_saturating(const hwq_gemm_args *args);

/* Weights of at most 4 bits, with a scale and a zero point for every column and block of k.
 * Strips of 16 columns; in a strip, pairs of quads: 16 columns x 4 bytes, the low nibbles are 4 consecutive k, the high ones the
 * next 4. Stored unsigned: signed weights plus 8, their zero points likewise. Columns and k are padded with 0.
 * scales, zero_points and sums hold strips x blocks x 16. */
typedef struct {
    int64_t k, n, block;         /* block: k per scale, a multiple of 32; the last may be short. Blocks: (k + block - 1) / block */
    const uint8_t *nibbles;
    const float *scales;         /* NULL: one block, int32 accumulators */
    const int32_t *zero_points;  /* stored domain, 0..15 */
    const int32_t *sums;         /* sum of w - zw over the block's k */
    int32_t symmetric;           /* every column's zero points are 8, that is 0 of signed weights: hwq_symmetric's answer, or 0 */
} hwq_packed_s4;

int64_t hwq_packed_s4_bytes(int64_t k, int64_t n);
/* weights: one in a byte, element (k, n) at weights[k * k_stride + n * n_stride], already stored (0..15); zero_points: as packed. */
void hwq_pack_s4(const uint8_t *weights, int64_t k, int64_t n, int64_t k_stride, int64_t n_stride, int64_t block, const int32_t *zero_points,
                 uint8_t *nibbles, int32_t *sums);
/* Is every zero point, padding apart, `middle` (8 of 4 bits, 0 of 8)? Products with such weights are faster. */
int32_t hwq_symmetric(int64_t n, int64_t blocks, const int32_t *zero_points, int32_t middle);

typedef struct {
    int64_t m;
    const void *a;               /* m rows of k: u8, s8 or float by a_type */
    int64_t a_stride;
    int32_t a_type, a_zero_point;
    const hwq_packed_s4 *weights;
    int64_t first_strip, strips;
    const int32_t *bias;         /* NULL, or n; only without scales */
    const hwq_epilogue *epilogue;/* with scales: HWQ_KIND_F32, or HWQ_KIND_REQUANT by R4 */
    void *out;
    int64_t out_stride;
    void *workspace;             /* hwq_gemm_s4_workspace(k, block) bytes, 64-byte aligned */
} hwq_gemm_s4_args;

int64_t hwq_gemm_s4_workspace(int64_t k, int64_t block);
/* Per block, in increasing k: acc = sum of (a - za)(w - zw), exact in int32 (|acc| <= 2^31 needs block <= 561000: 255 * 15 a
 * product). Without scales: the epilogue of acc + bias. With scales: y = fma(f32(acc), scale, y) from +0, and y takes the place
 * of f32(acc) in the epilogue. */
void hwq_gemm_s4(const hwq_gemm_s4_args *args);
/* Float a (HWQ_F32), scaled weights. Per block: chain = fma(a[k], f32(w - zw), chain) in increasing k from +0; then
 * y = fma(chain, scale, y) from +0. */
void hwq_gemm_f32s4(const hwq_gemm_s4_args *args);

/* Weights of 5 to 8 bits with a scale and a zero point for every column and block of k: hwq_packed's quads of one group (unsigned
 * weights minus 128, their zero points likewise); scales and zero_points hold strips x blocks x 16. */
typedef struct {
    int64_t k, n, block;         /* block: k per scale, a multiple of 4; the last may be short */
    const int8_t *quads;         /* hwq_packed_bytes(k, n) */
    const float *scales;
    const int32_t *zero_points;  /* stored domain, -128..127 */
    int32_t symmetric;           /* every column's zero points are 0: hwq_symmetric's answer, or 0 */
} hwq_packed_s8;

typedef struct {
    int64_t m;
    const float *a;              /* m rows of k */
    int64_t a_stride;
    const hwq_packed_s8 *weights;
    int64_t first_strip, strips;
    const hwq_epilogue *epilogue;/* HWQ_KIND_F32, or HWQ_KIND_REQUANT by R4 */
    void *out;
    int64_t out_stride;
    void *workspace;             /* HWQ_F32S8_WORKSPACE bytes, 64-byte aligned */
} hwq_gemm_f32s8_args;
enum { HWQ_F32S8_WORKSPACE = 1 << 16 };
/* As hwq_gemm_f32s4. Where a holds integers a - za of a byte and block <= 256, every chain is the exact integer sum
 * (255 * 255 * 256 < 2^24), so this is the product of bytes with blocks of scales too. */
void hwq_gemm_f32s8(const hwq_gemm_f32s8_args *args);

/* Float32 in the one fixed order: lane j of 8 takes k = j (mod 8) in increasing k by fused multiply-add, starting from +0, K
 * padded with +0 x +0 to a multiple of 8; the value is ((l0+l1)+(l2+l3)) + ((l4+l5)+(l6+l7)), then + bias. */
typedef struct {
    int64_t m, k, n;
    const float *a;
    int64_t a_stride;
    const float *weights;        /* packed by hwq_pack_f32 */
    const float *bias;           /* NULL or n */
    float *out;
    int64_t out_stride;
} hwq_gemm_f32_args;
void hwq_gemm_f32(const hwq_gemm_f32_args *args);
/* out[i][j] = sum over k of a[i][k] * p[k][j], modulo 2^32, with p of `bits` bits in planes (zero points are the caller's):
 * |sum| <= 255 * 7 * k stays in int32 up to k = 1,203,000. Packed: for each plane, block of 32
 * columns and 8 values of k, 32 bytes; byte c holds column c's bits of k..k+3 low and of k+4..k+7 high. What hangs over n or k is
 * 0. scratch: 64 bytes for each 8 of k, rounded up. */
typedef struct {
    int64_t m, n, k;
    int32_t bits;                /* 1..3 */
    const uint8_t *a;            /* m rows of k */
    int64_t a_stride;
    const uint8_t *planes;
    int32_t *out;
    int64_t out_stride;
    uint8_t *scratch;
} hwq_gemm_planes_args;
void hwq_gemm_planes(const hwq_gemm_planes_args *args);
/* Float32 in sequential order: chain = +0, then chain = fma(a[k], b[k], chain) for `block` consecutive k; the chains of the
 * blocks are added in order (to what `out` holds, if accumulate). With block = 128, 256, ... this is the order of MLAS's SGEMM
 * on x86-64 with FMA, and so onnxruntime's. k = 0 gives +0, or leaves out as it is. */
typedef struct {
    int64_t m, k, n, block;      /* block >= 1 */
    const float *a;              /* m rows of k */
    int64_t a_stride;
    const float *b;              /* k rows of n, as they are */
    int64_t b_stride;
    int32_t accumulate;
    float *out;
    int64_t out_stride;
} hwq_gemm_sequential_args;
void hwq_gemm_sequential(const hwq_gemm_sequential_args *args);
/* Float64: out[i][j] = y, from +0 (what `out` holds, if accumulate) by y = fma(a[i][k], b[k][j], y) in increasing k, so any tile and
 * any cut of k give the same bits. a[i][k] stands at a[i * a_row + k * a_step]: rows, or columns of a matrix as it is. */
typedef struct {
    int64_t m, k, n;
    const double *a;
    int64_t a_row, a_step;
    const double *b;             /* k rows of n */
    int64_t b_stride;
    int32_t accumulate;
    double *out;                 /* m rows of n */
    int64_t out_stride;
} hwq_gemm_f64_args;
void hwq_gemm_f64(const hwq_gemm_f64_args *args);
/* out[o][i] = sum over k of x[o][k][i] in hwq_gemm_f32's lanes and tree, by plain additions. */
void hwq_sum_f32(int64_t outer, int64_t k, int64_t inner, const float *x, float *out);

/* ---- Windows: convolution and pooling -------------------------------------------------------------------------------- */
typedef enum { HWQ_NCHW, HWQ_NHWC } hwq_layout;
typedef enum {
    HWQ_ORDER_LANES,        /* hwq_gemm_f32's */
    HWQ_ORDER_CHAIN,        /* hwq_conv_chain, hwq_depthwise_chain */
    HWQ_ORDER_CHAIN_COLUMNS /* depthwise: taps column by column */
} hwq_float_order;
enum { HWQ_CHAIN_STRIP = 16 };

/* Three spatial dimensions, outermost first; absent ones are 1 (kernel, stride, dilation 1, pad 0). Output position o reads
 * input o * stride - pad + tap * dilation. */
typedef struct {
    int64_t in[3], kernel[3], stride[3], dilation[3], pad[3], out[3];
} hwq_window;

typedef struct {
    hwq_window window;
    int64_t batch, channels, out_channels, groups;
    int32_t layout;              /* of input and output */
    int32_t a_type;              /* HWQ_U8, HWQ_S8, HWQ_F32 */
    int32_t a_zero_point;        /* also the value of padding, so that padding adds nothing */
    int32_t depthwise;           /* one channel per group and, float, one output: taps_s16, weights_f32 hold taps x outputs */
    const void *x;
    const hwq_packed *weights;   /* k ordered (tap, input channel of the group); groups of out_channels / groups columns */
    const int16_t *taps_s16;     /* w - zw */
    const float *weights_f32;    /* hwq_pack_f32 of every group, unless depthwise */
    const int32_t *bias;
    const float *bias_f32;
    int32_t order;               /* float32: hwq_float_order */
    float lo_f32, hi_f32;        /* of a chain: clamp of the result; NaN stays */
    const hwq_epilogue *epilogue;/* NULL for HWQ_F32 */
    void *out;
    int64_t first, last;         /* output positions [first, last) of batch * out[0] * out[1] * out[2], batch major */
    void *workspace;             /* hwq_conv_workspace(conv) bytes, 64-byte aligned */
} hwq_conv;

int64_t hwq_conv_workspace(const hwq_conv *conv);
void hwq_conv_s32(const hwq_conv *conv);       /* u8 or s8 input, any groups, packed weights */
void hwq_depthwise_s32(const hwq_conv *conv);  /* u8 or s8 input */
/* Would hwq_conv_s32 run this convolution by Winograd's F(2x2, 3x3) on the chosen path, if its weights were transformed? */
int hwq_conv_takes_winograd(const hwq_conv *conv);
/* Transform one group of packed 3 x 3 weights, `depth` input channels per group: into hwq_winograd_words(depth, n) words and
 * hwq_winograd_terms(n) terms. Returns 0, or -1 where sum |w - zw| of a column is so great that 4 times a sum may leave int32. */
int64_t hwq_winograd_words(int64_t depth, int64_t n);
int64_t hwq_winograd_terms(int64_t n);
int hwq_winograd_pack(const hwq_packed *packed, int64_t depth, int64_t group, int16_t *words, int32_t *terms);
void hwq_conv_f32(const hwq_conv *conv);       /* fixed order over (tap, channel); padding is +0 and takes part */
void hwq_depthwise_f32(const hwq_conv *conv);
/* float32 as one chain (XNNPACK's order on x86-64 with FMA): y = bias or +0, then y = fma(x, w, y) over (tap, channel of the group)
 * in order; padding is +0 and takes part; then the clamp. weights_f32: of each group strips of 16 columns, k x 16, padded with
 * +0; depthwise taps x channels, the taps in the order of the chain. */
void hwq_conv_chain(const hwq_conv *conv);
void hwq_depthwise_chain(const hwq_conv *conv);

typedef enum { HWQ_POOL_MAX, HWQ_POOL_AVERAGE_TFLITE, HWQ_POOL_AVERAGE, HWQ_POOL_AVERAGE_NINES } hwq_pool_kind;
typedef struct {
    hwq_window window;
    int64_t batch, channels;
    int32_t layout, type;        /* type: u8 s8 f32 (MAX), u8 s8 s16 (AVERAGE_TFLITE), f32 (AVERAGE, AVERAGE_NINES) */
    int32_t kind;                /* hwq_pool_kind */
    int32_t count_padding;       /* averages divide by the kernel size (1), or by the taps inside the input (0) */
    int64_t pad_end[3];          /* for count_padding: taps beyond in + pad_end never count */
    int32_t lo, hi;              /* clamp of integer results */
    const void *x;
    void *out;
} hwq_pool;
/* A window without taps inside the input gives the lowest value (MAX) or 0. AVERAGE sums in window order, then divides.
 * AVERAGE_NINES (channels last, two dimensions): taps column by column in groups of nine, padding +0, each group
 * ((2+3)+(4+5)) + (((0+1)+8)+(6+7)) added to +0, then one product with 1 / taps inside the input (XNNPACK). */
void hwq_pool_run(const hwq_pool *pool);

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

/* ---- int16 activations ------------------------------------------------------------------------------------------------ */
typedef struct {
    int64_t m;
    const int16_t *a;            /* m rows of k */
    int64_t a_stride;
    int32_t a_zero_point;
    const hwq_packed *weights;   /* as for hwq_gemm_u8s8; k < 2^24, so that the column sums did not wrap */
    int64_t group, first_strip, strips;
    const int64_t *bias;         /* NULL, or n per group */
    int32_t acc_type;            /* HWQ_S64, or HWQ_S32: the accumulator modulo 2^32 */
    const hwq_epilogue *epilogue;/* with HWQ_S64 a requantization of R2 or R5 */
    void *out;
    int64_t out_stride;
} hwq_gemm_s16_args;
/* acc = bias + sum over k of (a - za) * (w - zw) in 64 bits, then the epilogue. */
void hwq_gemm_s16s8(const hwq_gemm_s16_args *args);

/* ---- FP16 and BF16 (as their bits): operands and results, float32 between ------------------------------------------------ */
void hwq_widen(int32_t type, int64_t n, const uint16_t *x, float *out);  /* exact */
void hwq_narrow(int32_t type, int64_t n, const float *x, uint16_t *out); /* nearest even */
typedef struct {
    int32_t type;                /* HWQ_F16, HWQ_BF16 */
    int64_t m, k, n;
    const uint16_t *a;
    int64_t a_stride;
    const float *weights;        /* widened, packed by hwq_pack_f32 */
    const float *bias;           /* NULL or n */
    uint16_t *out;
    int64_t out_stride;
    float *workspace;            /* hwq_gemm_half_workspace(k, n) bytes */
} hwq_gemm_half_args;
int64_t hwq_gemm_half_workspace(int64_t k, int64_t n);
void hwq_gemm_half(const hwq_gemm_half_args *args); /* hwq_gemm_f32 of widened rows, its result narrowed once */

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

/* ---- Paths ------------------------------------------------------------------------------------------------------------ */
/* Paths and ops are counted from 0; names are static strings; all return NULL or -1 outside their range. */
int hwq_path_count(void);
const char *hwq_path_name(int path);
int hwq_path_available(int path);     /* does this CPU (and this build) have it */
int hwq_path_chosen(void);            /* on first use: HWQ_ISA, else the best available */
int hwq_path_choose(int path);        /* 0, or -1 where the path is not available */
int hwq_path_find(const char *name);
int hwq_op_count(void);
const char *hwq_op_name(int op);
int hwq_op_present(int op, int path); /* does the path have its own code for the op (on its own architecture) */

/* From now on CPUID shows this thread, and all that it starts, no AVX-512, VNNI, AVX-VNNI and AMX: call it before the
 * libraries that shall believe it are loaded. Takes SIGSEGV for that and hands on every other fault. x86-64 Linux
 * with glibc, or on processors with CPUID faulting; 0, or -1 elsewhere. */
int hwq_cpuid_mask(void);
int hwq_cpuid_masked(void); /* 1, 0 where it could be, -1 where it cannot */

/* For benchmarks: `rounds` of a scheme's instructions without loads ("int8-avx2", "int4-avx2", "float32-avx2",
 * "int8-avx512vnni", "float32-avx512vnni"); returns the MACs they stand for, 0 where the CPU lacks them. */
int64_t hwq_ceiling(const char *scheme, int64_t rounds);

#endif
