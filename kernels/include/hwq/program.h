/* A program: a flat list of steps over places in memory, run without allocating anything.
 *
 * Whoever lowers a graph fills the steps once; they are never written again, so any number of callers may run them at once,
 * each with bases, workspace and crew of its own. A step's record holds everything but the addresses that change from call to
 * call: those are places, a base by number and bytes from it. Every thread of a call runs the same list and takes its part of
 * each step; a barrier stands where one step's parts must be whole before the next begins. No split runs over k, and float
 * reductions are not split, so the bits do not depend on the number of threads. */
#ifndef HWQ_PROGRAM_H
#define HWQ_PROGRAM_H
#include "hwq/kernels.h"

typedef enum {
    HWQ_STEP_GEMM_U8S8,  /* as.gemm; a: activations, b: residual */
    HWQ_STEP_GEMM_S8S8,  /* these two stand first */
    HWQ_STEP_CONV,       /* as.conv; a: image, b: residual; integer or float, depthwise or not, by its fields */
    HWQ_STEP_GEMM_F32,   /* as.gemm_f32 */
    HWQ_STEP_POOL,       /* as.pool */
    HWQ_STEP_BINARY,     /* as.binary */
    HWQ_STEP_QUANTIZE,   /* as.scale: float32 to out_type */
    HWQ_STEP_DEQUANTIZE, /* as.scale: type to float32 */
    HWQ_STEP_LUT,        /* as.lut */
    HWQ_STEP_TRANSPOSE,  /* as.move: outer matrices of rows x columns elements, each turned */
    HWQ_STEP_COPY,       /* as.move: outer runs of `columns` bytes, strides in bytes */
    HWQ_STEP_MEAN,       /* as.mean: exact integer sum over the middle dimension, then the epilogue */
    HWQ_STEP_SOFTMAX,    /* as.softmax: rows alone */
    HWQ_STEP_MAP,        /* as.map: float32, element by element; b: the second operand */
    HWQ_STEP_DYNAMIC,    /* as.dynamic: hwq_dynamic_quantize of rows alone; out: bytes, scale and zero_point beside them */
    HWQ_STEP_SUMS,       /* as.sums: hwq_scale_sums; a: accumulators; scale, zero_point: those of the rows */
    HWQ_STEP_CAST,       /* as.cast: hwq_widen to float32, or hwq_narrow from it */
    HWQ_STEP_PRODUCTS,   /* as.products; a, b: matrices of activations, one after another; each b is packed as it comes */
    HWQ_STEP_GEMM_S4,    /* as.scaled: hwq_gemm_s4 of bytes, hwq_gemm_f32s4 of floats; zero_point: where as.scaled.rows says so */
    HWQ_STEP_GEMM_F32S8, /* as.scaled: hwq_gemm_f32s8 */
    HWQ_STEP_SPLIT,      /* as.split: 16 bits as a signed byte (out) and an unsigned one (b) */
    HWQ_STEP_JOIN,       /* as.join: a: sums of the high bytes, b: of the low ones, both int32 */
    HWQ_STEP_LAYER_NORM, /* as.norm */
    HWQ_STEP_PHASES,     /* as.phases: what a transposed convolution's filters made, one phase beside the other, to where it lies */
    HWQ_STEP_COUNT
} hwq_step_op;

/* `offset` bytes from the base of that number. Base 0 is fixed memory: the offset is the address. */
typedef struct {
    int64_t base;
    intptr_t offset;
} hwq_place;

/* x, out: outer x count x inner. acc = sum over count of (x - zero_point), modulo 2^32; |acc| <= 255 * count. */
typedef struct {
    int64_t outer, count, inner;
    int32_t type, zero_point;
} hwq_mean;

/* Arguments of ops that have no record of their own: see hwq_binary_run, hwq_softmax_run, hwq_quantize, hwq_dequantize, hwq_lut. */
typedef struct {
    const hwq_binary *op;
    int64_t n, a_step, b_step;
} hwq_step_binary;
typedef struct {
    const hwq_softmax *op;
    int64_t rows, columns;
} hwq_step_softmax;
typedef struct {
    int32_t formula, type, lo, hi; /* type: of the integers */
    int64_t outer, channels, inner;
    const float *scales;
    const int32_t *zero_points;
} hwq_step_scale;
typedef struct {
    int64_t n;
    const uint8_t *table;
    int32_t flip;
} hwq_step_lut;
typedef enum { HWQ_MAP_RELU, HWQ_MAP_ADD, HWQ_MAP_SUB, HWQ_MAP_MUL } hwq_map_formula;
typedef struct {
    int32_t formula; /* RELU: x > 0 or NaN ? x : +0; the others one IEEE operation */
    int64_t n;
} hwq_step_map;
typedef struct {
    int32_t formula; /* hwq_dynamic_formula; zero points in a byte */
    int64_t rows, columns;
} hwq_step_dynamic;
typedef struct {
    int32_t type, to_float; /* HWQ_F16 or HWQ_BF16 on the other side */
    int64_t n;
} hwq_step_cast;
/* acc = bias + sum over k of (a - za) * (b - zb) of `batch` products, as hwq_gemm_u8s8 or s8s8, modulo 2^32. */
typedef struct {
    int64_t batch, m, k, n;
    int64_t a_step, b_step;                 /* bytes between matrices; 0: the same one for all */
    int64_t b_k_stride, b_n_stride;
    int32_t a_signed, b_type, a_zero_point;
    const int32_t *b_zero_points;           /* NULL or n, in the domain of b */
    const int32_t *bias;                    /* NULL or n */
} hwq_step_products;
/* Rows of a product with groups of scales, gathered from a channel-last image: k over (tap, block of channels), every block filled
 * up to `width` with activations that stand for 0. A matrix is an image of one pixel a row. */
typedef struct {
    hwq_window window;
    int64_t images, channels, first, depth; /* channels [first, first + depth) of the image's */
    int64_t block, width;
    int32_t type;                           /* HWQ_U8, HWQ_S8, HWQ_F32: of the image */
    int32_t zero_point;                     /* also what stands in the padding; of bytes */
    int32_t centered;                       /* bytes become floats, less the zero point */
    int64_t each;                           /* 0, or centered rows that share one of the step's zero points, a byte each */
} hwq_step_rows;
typedef struct {
    hwq_gemm_s4_args s4;     /* of HWQ_STEP_GEMM_S4 */
    hwq_gemm_f32s8_args s8;  /* of HWQ_STEP_GEMM_F32S8 */
    int32_t gathers;         /* 0: rows as they lie */
    hwq_step_rows rows;
} hwq_step_scaled;
typedef struct {
    int64_t n;
    int32_t type; /* HWQ_S16; HWQ_U16: read 2^15 lower */
} hwq_step_split;
/* sum = bias + 256 high + low, below 2^63; then the epilogue (R2), or float32(float64(sum) * factor) + offset. */
typedef struct {
    int64_t rows, columns;
    const int64_t *bias;    /* NULL or columns */
    const double *factors;  /* NULL: the epilogue; else columns */
    const float *offsets;   /* NULL or columns, of floats */
} hwq_step_join;
/* hwq_layer_norm_s16 of stored values: bytes times 256, unsigned ones read half their range lower; the result of U16 half its range
 * higher, any other clamped to [lo, hi]. */
typedef struct {
    hwq_layer_norm norm;
    int64_t rows;
    int32_t type, out_type, lo, hi;
} hwq_step_norm;
/* From images [in][groups][stride][bytes] to [out][groups][bytes], three dimensions of space: out position o holds phase o % stride of
 * in position o / stride. */
typedef struct {
    int64_t images, in[3], out[3], stride[3], groups, bytes;
} hwq_step_phases;
typedef struct {
    int64_t element, outer, rows, columns; /* element: 1, 2 or 4 bytes */
    int64_t from_stride, to_stride;        /* bytes between outer ones */
} hwq_step_move;

typedef struct {
    int32_t op; /* hwq_step_op */
    int32_t run_time; /* GEMM and integer CONV: 1: the activations' zero point and, with HWQ_KIND_F32, their float32 scale, a factor of the
                         epilogue's, are read from the places below; CONV: 2: one of each for every image */
    hwq_place a, b, out, scale, zero_point;
    hwq_epilogue epilogue; /* of products, integer CONV, JOIN and MEAN */
    union {
        hwq_gemm_args gemm;
        hwq_gemm_f32_args gemm_f32;
        hwq_conv conv;
        hwq_pool pool;
        hwq_mean mean;
        hwq_step_softmax softmax;
        hwq_step_binary binary;
        hwq_step_scale scale;
        hwq_step_lut lut;
        hwq_step_move move;
        hwq_step_map map;
        hwq_step_dynamic dynamic;
        hwq_row_scales sums;
        hwq_step_products products;
        hwq_step_cast cast;
        hwq_step_scaled scaled;
        hwq_step_split split;
        hwq_step_join join;
        hwq_step_norm norm;
        hwq_step_phases phases;
    } as;
} hwq_step;

/* Bytes of workspace, 64-byte aligned, that every thread of a call needs for itself. */
int64_t hwq_program_workspace(const hwq_step *steps, int64_t count);

/* Threads that run one call together. Zero-initialize it; all of them pass the same one. */
typedef struct {
    _Atomic int32_t arrived, turn;
} hwq_barrier;

/* Run steps [0, count) as thread `thread` of `threads` (1: no barrier is touched). */
void hwq_program_run(const hwq_step *steps, int64_t count, void *const *bases, void *workspace, int32_t thread, int32_t threads,
                     hwq_barrier *barrier);

int64_t hwq_mean_workspace(const hwq_mean *mean);
void hwq_mean_run(const hwq_mean *mean, const hwq_epilogue *epilogue, const void *x, void *out, void *workspace);

#endif
