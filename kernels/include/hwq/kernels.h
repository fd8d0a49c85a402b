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
#include "requantization.h"
#include "rows.h"

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
