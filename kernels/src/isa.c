/* What this CPU can do, and which path runs: the one mutable state of this folder, beside cpuid.c. */
#include "isa.h"
#include "conv.h"
#include "winograd.h"
#include "winograd_4x4.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#define HWQ_ENUM_PATH(path, parent) PATH_##path,
enum { HWQ_PATHS(HWQ_ENUM_PATH) PATH_COUNT };
#define HWQ_ENUM_OP(op, type) OP_##op,
enum { HWQ_OPS(HWQ_ENUM_OP) OP_COUNT };

typedef struct {
#define HWQ_SLOT(op, type) type *op;
    HWQ_OPS(HWQ_SLOT)
    unsigned char end; /* so that a row without ops has an initializer */
} row;

#define HWQ_FILL_ref(op, type) .op = hwq_##op##__ref,
#define HWQ_FILL_avx2(op, type) .op = hwq_##op##__avx2,
#define HWQ_FILL_avxvnni(op, type) .op = hwq_##op##__avxvnni,
#define HWQ_FILL_avx512vnni(op, type) .op = hwq_##op##__avx512vnni,
#define HWQ_FILL_neon(op, type) .op = hwq_##op##__neon,
#define HWQ_FILL_neondot(op, type) .op = hwq_##op##__neondot,
#define HWQ_FILL_i8mm(op, type) .op = hwq_##op##__i8mm,
static const row ROWS[PATH_COUNT] = {
    [PATH_ref] = {HWQ_ROW_ref(HWQ_FILL_ref)},
#if HWQ_X86
    [PATH_avx2] = {HWQ_ROW_avx2(HWQ_FILL_avx2)},
    [PATH_avxvnni] = {.end = 0, HWQ_ROW_avxvnni(HWQ_FILL_avxvnni)},
    [PATH_avx512vnni] = {.end = 0, HWQ_ROW_avx512vnni(HWQ_FILL_avx512vnni)},
#elif HWQ_ARM
    [PATH_neon] = {.end = 0, HWQ_ROW_neon(HWQ_FILL_neon)},
    [PATH_neondot] = {.end = 0, HWQ_ROW_neondot(HWQ_FILL_neondot)},
    [PATH_i8mm] = {.end = 0, HWQ_ROW_i8mm(HWQ_FILL_i8mm)},
#endif
};

#define HWQ_PARENT(path, parent) [PATH_##path] = PATH_##parent,
static const unsigned char PARENTS[PATH_COUNT] = {HWQ_PATHS(HWQ_PARENT)};
#define HWQ_PATH_NAME(path, parent) [PATH_##path] = #path,
static const char *const PATH_NAMES[PATH_COUNT] = {HWQ_PATHS(HWQ_PATH_NAME)};
#define HWQ_OP_NAME(op, type) [OP_##op] = #op,
static const char *const OP_NAMES[OP_COUNT] = {HWQ_OPS(HWQ_OP_NAME)};

/* Presence is known on every architecture, so that the README's matrix can be made on any. */
#define HWQ_PRESENT(op, type) [OP_##op] = 1,
#define HWQ_PRESENT_ROW(path, parent) [PATH_##path] = {[OP_COUNT] = 0, HWQ_ROW_##path(HWQ_PRESENT)},
static const unsigned char PRESENT[PATH_COUNT][OP_COUNT + 1] = {HWQ_PATHS(HWQ_PRESENT_ROW)};

/* ---- What the CPU and the operating system allow ---- */
#if HWQ_X86 && (defined(__GNUC__) || defined(__clang__))
#include <cpuid.h>

static unsigned long long enabled_state(void) /* XCR0: registers that the operating system saves */
{
    unsigned low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return ((unsigned long long)high << 32) | low;
}

static unsigned probe(void)
{
    unsigned a, b, c, d, found = 1u << PATH_ref;
    if (!__get_cpuid(1, &a, &b, &c, &d)) return found;
    const unsigned fma = 1u << 12, osxsave = 1u << 27, avx = 1u << 28, f16c = 1u << 29;
    if ((c & (fma | osxsave | avx | f16c)) != (fma | osxsave | avx | f16c)) return found;
    unsigned long long state = enabled_state();
    if ((state & 0x6) != 0x6) return found; /* xmm, ymm */
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return found;
    unsigned leaves = a;
    const unsigned avx2 = 1u << 5, avx512 = 1u << 16 | 1u << 30 | 1u << 31 /* F BW VL */, avx512dq = 1u << 17, vnni = 1u << 11;
    if (!(b & avx2)) return found;
    found |= 1u << PATH_avx2;
    if ((b & (avx512 | avx512dq)) == (avx512 | avx512dq) && (c & vnni) && (state & 0xE6) == 0xE6) found |= 1u << PATH_avx512vnni;
    if (leaves >= 1 && __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a & 1u << 4)) found |= 1u << PATH_avxvnni;
#if HWQ_EMULATE
    found |= 1u << PATH_avxvnni | 1u << PATH_avx512vnni;
#endif
    return found;
}

static int count_pipes(void)
{
    unsigned most, b, c, d;
    if (!__get_cpuid(0, &most, &b, &c, &d)) return 3;
    return (b == signature_AMD_ebx && c == signature_AMD_ecx && d == signature_AMD_edx) || b == 0x6F677948 /* "Hygo", whose cores are Zen's */ ? 4 : 3;
}
#elif HWQ_ARM
#if defined(__linux__)
#include <sys/auxv.h>
static unsigned probe(void)
{
    unsigned found = 1u << PATH_ref | 1u << PATH_neon;
    if (getauxval(16) & 1ul << 20) found |= 1u << PATH_neondot;                                    /* AT_HWCAP: ASIMDDP */
    if ((found & 1u << PATH_neondot) && (getauxval(26) & 1ul << 13)) found |= 1u << PATH_i8mm;     /* AT_HWCAP2: I8MM */
    return found;
}
#else
static unsigned probe(void) { return 1u << PATH_ref | 1u << PATH_neon; }
#endif
#else
static unsigned probe(void) { return 1u << PATH_ref; }
#endif

#if HWQ_X86 && (defined(__GNUC__) || defined(__clang__))
int hwq_vector_pipes(void)
{
    static _Atomic int pipes; /* CPUID takes microseconds under a hypervisor */
    int found = atomic_load_explicit(&pipes, memory_order_relaxed);
    if (!found) atomic_store_explicit(&pipes, found = count_pipes(), memory_order_relaxed);
    return found;
}
#else
int hwq_vector_pipes(void) { return 3; }
#endif

int hwq_path_count(void) { return PATH_COUNT; }
const char *hwq_path_name(int path) { return path >= 0 && path < PATH_COUNT ? PATH_NAMES[path] : NULL; }
int hwq_path_available(int path) { return path >= 0 && path < PATH_COUNT && (probe() >> path & 1); }
int hwq_op_count(void) { return OP_COUNT; }
const char *hwq_op_name(int op) { return op >= 0 && op < OP_COUNT ? OP_NAMES[op] : NULL; }
int hwq_op_present(int op, int path)
{
    return op >= 0 && op < OP_COUNT && path >= 0 && path < PATH_COUNT ? PRESENT[path][op] : -1;
}

int hwq_path_find(const char *name)
{
    for (int path = 0; name && path < PATH_COUNT; path++)
        if (strcmp(name, PATH_NAMES[path]) == 0) return path;
    return -1;
}

static _Atomic int chosen = -1;

/* A path without code of its own would only be another name of its parent. */
static int has_code(int path)
{
    for (int op = 0; op < OP_COUNT; op++)
        if (PRESENT[path][op]) return 1;
    return 0;
}

static int best(void)
{
    const char *wish = getenv("HWQ_ISA");
    int path = hwq_path_find(wish);
    if (wish && *wish) return hwq_path_available(path) ? path : PATH_ref; /* the Python door refuses a wish it cannot grant */
    for (path = PATH_COUNT - 1; !hwq_path_available(path) || !has_code(path); path--) {}
    return path;
}

int hwq_path_chosen(void)
{
    int path = atomic_load_explicit(&chosen, memory_order_relaxed);
    if (path < 0) {
        path = best(); /* threads that race here find the same answer */
        atomic_store_explicit(&chosen, path, memory_order_relaxed);
    }
    return path;
}

int hwq_path_choose(int path)
{
    if (!hwq_path_available(path)) return -1;
    atomic_store_explicit(&chosen, path, memory_order_relaxed);
    return 0;
}

/* ---- The ops: the first row up the cascade that has code ---- */
#define HWQ_FIND(op)                                                                                                \
    int path = hwq_path_chosen();                                                                                             \
    while (!ROWS[path].op) path = PARENTS[path];                                                                              \
    ROWS[path].op

void hwq_gemm_u8s8(const hwq_gemm_args *args) { HWQ_FIND(gemm_u8s8)(args); }
void hwq_gemm_s8s8(const hwq_gemm_args *args) { HWQ_FIND(gemm_s8s8)(args); }
void hwq_gemm_saturating(const hwq_gemm_args *args) { HWQ_FIND(gemm_saturating)(args); }
void hwq_gemm_s4(const hwq_gemm_s4_args *args) { HWQ_FIND(gemm_s4)(args); }
void hwq_gemm_f32s4(const hwq_gemm_s4_args *args) { HWQ_FIND(gemm_f32s4)(args); }
void hwq_gemm_f32s8(const hwq_gemm_f32s8_args *args) { HWQ_FIND(gemm_f32s8)(args); }
void hwq_gemm_planes(const hwq_gemm_planes_args *args) { HWQ_FIND(gemm_planes)(args); }
void hwq_gemm_f32(const hwq_gemm_f32_args *args) { HWQ_FIND(gemm_f32)(args); }
void hwq_gemm_sequential(const hwq_gemm_sequential_args *args) { HWQ_FIND(gemm_sequential)(args); }
void hwq_gemm_f64(const hwq_gemm_f64_args *args) { HWQ_FIND(gemm_f64)(args); }
void hwq_sum_f32(int64_t outer, int64_t k, int64_t inner, const float *x, float *out) { HWQ_FIND(sum_f32)(outer, k, inner, x, out); }
/* Only ref knows channel-first images. */
#define HWQ_CONVOLVE(op) \
    HWQ_FIND(op) != hwq_##op##__ref && conv->layout == HWQ_NCHW ? hwq_conv_turned(conv, ROWS[path].op) : ROWS[path].op(conv)
void hwq_conv_s32(const hwq_conv *conv) { HWQ_CONVOLVE(conv_s32); }
void hwq_conv_f32(const hwq_conv *conv) { HWQ_CONVOLVE(conv_f32); }
int hwq_conv_takes_winograd(const hwq_conv *conv)
{
#if HWQ_X86
    int path = hwq_path_chosen();
    while (!ROWS[path].conv_s32) path = PARENTS[path];
    const hwq_conv one = conv->layout == HWQ_NCHW ? hwq_conv_channels_last(conv) : *conv;
    return (ROWS[path].conv_s32 == hwq_conv_s32__avx2 || ROWS[path].conv_s32 == hwq_conv_s32__avxvnni) && hwq_winograd_fits(&one) && !hwq_winograd_4x4_pays_whole(&one, 0);
#else
    (void)conv;
    return 0;
#endif
}
void hwq_depthwise_s32(const hwq_conv *conv)
{
    if (conv->out_channels != conv->channels) {
        hwq_depthwise_repeat(conv);
        return;
    }
    HWQ_FIND(depthwise_s32)(conv);
}
void hwq_depthwise_f32(const hwq_conv *conv) { HWQ_FIND(depthwise_f32)(conv); }
void hwq_conv_chain(const hwq_conv *conv) { HWQ_FIND(conv_chain)(conv); }
void hwq_depthwise_chain(const hwq_conv *conv) { HWQ_FIND(depthwise_chain)(conv); }
void hwq_scale_sums(const hwq_row_scales *scale, const void *acc, const float *scales, const void *points, float *out)
{
    HWQ_FIND(scale_sums)(scale, acc, scales, points, out);
}
void hwq_pool_run(const hwq_pool *pool)
{
    if (pool->kind == HWQ_POOL_AVERAGE_NINES) {
        hwq_pool_nines(pool);
        return;
    }
    HWQ_FIND(pool_run)(pool);
}
void hwq_requantize(const hwq_epilogue *epilogue, int64_t rows, int64_t columns, int64_t first_column, const void *acc,
                    int32_t acc_type, int64_t acc_stride, void *out, int64_t out_stride)
{
    HWQ_FIND(requantize)(epilogue, rows, columns, first_column, acc, acc_type, acc_stride, out, out_stride);
}
void hwq_binary_run(const hwq_binary *binary, int64_t n, const void *a, int64_t a_step, const void *b, int64_t b_step, void *out)
{
    HWQ_FIND(binary_run)(binary, n, a, a_step, b, b_step, out);
}
void hwq_quantize(int32_t formula, int64_t outer, int64_t channels, int64_t inner, const float *x, const float *scales,
                  const int32_t *zero_points, int32_t lo, int32_t hi, void *out, int32_t out_type)
{
    HWQ_FIND(quantize)(formula, outer, channels, inner, x, scales, zero_points, lo, hi, out, out_type);
}
void hwq_dequantize(int64_t outer, int64_t channels, int64_t inner, const void *q, int32_t type, const float *scales,
                    const int32_t *zero_points, float *out)
{
    HWQ_FIND(dequantize)(outer, channels, inner, q, type, scales, zero_points, out);
}
void hwq_fake_quantize(int64_t n, const float *x, float scale, int32_t zero_point, int32_t lo, int32_t hi, float *out)
{
    HWQ_FIND(fake_quantize)(n, x, scale, zero_point, lo, hi, out);
}
int32_t hwq_ranges(int64_t outer, int64_t channels, int64_t inner, const float *x, float *minima, float *maxima, double *totals)
{
    int path = hwq_path_chosen();
    while (!ROWS[path].ranges) path = PARENTS[path];
    return ROWS[path].ranges(outer, channels, inner, x, minima, maxima, totals);
}
void hwq_histogram(int64_t n, const float *x, double inverse, int64_t half, int64_t *counts, double *squares)
{
    HWQ_FIND(histogram)(n, x, inverse, half, counts, squares);
}
void hwq_lut(int64_t n, const uint8_t *x, uint8_t flip, const uint8_t *table, uint8_t *out) { HWQ_FIND(lut)(n, x, flip, table, out); }
void hwq_unpack_int4(int64_t n, const uint8_t *packed, int32_t is_signed, int8_t *x) { HWQ_FIND(unpack_int4)(n, packed, is_signed, x); }
void hwq_gemm_s16s8(const hwq_gemm_s16_args *args) { HWQ_FIND(gemm_s16s8)(args); }
void hwq_widen(int32_t type, int64_t n, const uint16_t *x, float *out) { HWQ_FIND(widen)(type, n, x, out); }
void hwq_narrow(int32_t type, int64_t n, const float *x, uint16_t *out) { HWQ_FIND(narrow)(type, n, x, out); }
void hwq_dynamic_quantize(int32_t formula, int64_t rows, int64_t columns, const float *x, void *out, float *scales, int32_t *zero_points)
{
    HWQ_FIND(dynamic_quantize)(formula, rows, columns, x, out, scales, zero_points);
}
void hwq_lut_s16(int64_t n, int32_t shift, const int16_t *x, const int16_t *table, int16_t *out) { HWQ_FIND(lut_s16)(n, shift, x, table, out); }
void hwq_softmax_run(const hwq_softmax *softmax, int64_t rows, int64_t columns, const void *x, void *out)
{
    HWQ_FIND(softmax_run)(softmax, rows, columns, x, out);
}
void hwq_layer_norm_s16(const hwq_layer_norm *norm, int64_t rows, const int16_t *x, int16_t *out) { HWQ_FIND(layer_norm_s16)(norm, rows, x, out); }
