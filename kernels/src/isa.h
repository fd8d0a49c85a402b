/* Paths, their rows of the dispatch table, and the regions of code that may use their instructions.
 *
 * A path's row names the ops that it has code for; what is absent comes from the path's parent, and `ref` has everything.
 * Adding a path to an op: write src/<op>_<path>.c, add the op to the path's row below. Nothing else. */
#ifndef HWQ_ISA_H
#define HWQ_ISA_H
#include "hwq/kernels.h"

#if defined(__x86_64__) || defined(_M_X64)
#define HWQ_X86 1
#elif defined(__aarch64__)
#define HWQ_ARM 1
#endif

/* op, type of its function */
#define HWQ_OPS(X)                                                                                                            \
    X(gemm_u8s8, hwq_gemm_fn) X(gemm_s8s8, hwq_gemm_fn) X(gemm_s4, hwq_gemm_s4_fn) X(gemm_f32s4, hwq_gemm_s4_fn) X(gemm_f32s8, hwq_gemm_f32s8_fn) X(gemm_f32, hwq_gemm_f32_fn) X(sum_f32, hwq_sum_f32_fn)               \
    X(gemm_sequential, hwq_gemm_sequential_fn) X(gemm_f64, hwq_gemm_f64_fn) X(gemm_saturating, hwq_gemm_fn)                                                                                \
    X(conv_s32, hwq_conv_fn) X(conv_f32, hwq_conv_fn) X(depthwise_s32, hwq_conv_fn) X(depthwise_f32, hwq_conv_fn)             \
    X(pool_run, hwq_pool_fn) X(requantize, hwq_requantize_fn) X(binary_run, hwq_binary_fn) X(quantize, hwq_quantize_fn)       \
    X(dequantize, hwq_dequantize_fn) X(lut, hwq_lut_fn) X(unpack_int4, hwq_unpack_int4_fn)                                       \
    X(gemm_s16s8, hwq_gemm_s16_fn) X(widen, hwq_widen_fn) X(narrow, hwq_narrow_fn)                                            \
    X(dynamic_quantize, hwq_dynamic_fn) X(lut_s16, hwq_lut_s16_fn) X(softmax_run, hwq_softmax_fn)                             \
    X(layer_norm_s16, hwq_layer_norm_fn) X(gemm_planes, hwq_gemm_planes_fn) X(fake_quantize, hwq_fake_quantize_fn)            \
    X(ranges, hwq_ranges_fn) X(histogram, hwq_histogram_fn) X(conv_chain, hwq_conv_fn) X(depthwise_chain, hwq_conv_fn)         \
    X(scale_sums, hwq_scale_sums_fn)

#define HWQ_ROW_ref(X) HWQ_OPS(X)
#define HWQ_ROW_avx2(X)                                                                                                       \
    X(gemm_u8s8, ) X(gemm_s8s8, ) X(gemm_s4, ) X(gemm_f32s4, ) X(gemm_f32s8, ) X(gemm_f32, ) X(gemm_sequential, ) X(gemm_f64, ) X(gemm_saturating, ) X(sum_f32, ) X(conv_s32, ) X(conv_f32, )                 \
    X(depthwise_s32, )                                                                                                        \
    X(depthwise_f32, ) X(pool_run, ) X(requantize, ) X(binary_run, ) X(quantize, ) X(dequantize, )                            \
    X(lut, ) X(unpack_int4, ) X(gemm_s16s8, ) X(widen, ) X(narrow, ) X(dynamic_quantize, ) X(lut_s16, ) X(softmax_run, )      \
    X(layer_norm_s16, ) X(gemm_planes, ) X(fake_quantize, ) X(ranges, ) X(histogram, ) X(conv_chain, ) X(depthwise_chain, )     \
    X(scale_sums, )
#define HWQ_ROW_avxvnni(X) X(gemm_u8s8, ) X(gemm_s8s8, ) X(gemm_s4, ) X(conv_s32, )
#define HWQ_ROW_avx512vnni(X)                                                                                                 \
    X(gemm_u8s8, ) X(gemm_s8s8, ) X(gemm_s4, ) X(gemm_f32s4, ) X(gemm_f32s8, ) X(gemm_f32, ) X(requantize, ) X(conv_s32, ) X(depthwise_s32, )               \
    X(binary_run, ) X(quantize, ) X(dequantize, ) X(dynamic_quantize, ) X(pool_run, ) X(fake_quantize, )                      \
    X(conv_chain, ) X(depthwise_chain, )
#define HWQ_ROW_neon(X)                                                                                                       \
    X(gemm_u8s8, ) X(gemm_s8s8, ) X(gemm_f32, ) X(gemm_sequential, ) X(sum_f32, ) X(conv_s32, ) X(conv_f32, )                 \
    X(requantize, ) X(binary_run, ) X(quantize, ) X(dequantize, ) X(lut, ) X(unpack_int4, ) X(gemm_s16s8, ) X(widen, )        \
    X(narrow, ) X(dynamic_quantize, ) X(depthwise_s32, ) X(depthwise_f32, ) X(pool_run, ) X(layer_norm_s16, )  \
    X(fake_quantize, ) X(gemm_s4, ) X(gemm_f32s4, ) X(gemm_f32s8, ) X(gemm_saturating, ) X(lut_s16, ) X(softmax_run, )       \
    X(gemm_planes, ) X(ranges, ) X(histogram, ) X(conv_chain, ) X(depthwise_chain, ) X(scale_sums, )
#define HWQ_ROW_neondot(X) X(gemm_u8s8, ) X(gemm_s8s8, ) X(gemm_s4, )
#define HWQ_ROW_i8mm(X) X(gemm_u8s8, ) X(gemm_s8s8, ) X(gemm_s4, )

/* path, parent: parents stand first */
#define HWQ_PATHS(X)                                                                                                          \
    X(ref, ref) X(avx2, ref) X(avxvnni, avx2) X(avx512vnni, avx2) X(neon, ref) X(neondot, neon) X(i8mm, neondot)

/* Vector operations a cycle: 4 on AMD's processors (Zen and later), 3 elsewhere on x86-64. Tiles are shaped by it. */
int hwq_vector_pipes(void);

typedef void hwq_gemm_fn(const hwq_gemm_args *);
typedef void hwq_gemm_s4_fn(const hwq_gemm_s4_args *);
typedef void hwq_gemm_f32s8_fn(const hwq_gemm_f32s8_args *);
typedef void hwq_gemm_f32_fn(const hwq_gemm_f32_args *);
typedef void hwq_gemm_sequential_fn(const hwq_gemm_sequential_args *);
typedef void hwq_gemm_f64_fn(const hwq_gemm_f64_args *);
typedef void hwq_sum_f32_fn(int64_t, int64_t, int64_t, const float *, float *);
typedef void hwq_conv_fn(const hwq_conv *);
typedef void hwq_pool_fn(const hwq_pool *);
typedef void hwq_scale_sums_fn(const hwq_row_scales *, const void *, const float *, const void *, float *);
typedef void hwq_requantize_fn(const hwq_epilogue *, int64_t, int64_t, int64_t, const void *, int32_t, int64_t, void *, int64_t);
typedef void hwq_binary_fn(const hwq_binary *, int64_t, const void *, int64_t, const void *, int64_t, void *);
typedef void hwq_quantize_fn(int32_t, int64_t, int64_t, int64_t, const float *, const float *, const int32_t *, int32_t, int32_t,
                             void *, int32_t);
typedef void hwq_dequantize_fn(int64_t, int64_t, int64_t, const void *, int32_t, const float *, const int32_t *, float *);
typedef void hwq_fake_quantize_fn(int64_t, const float *, float, int32_t, int32_t, int32_t, float *);
typedef int32_t hwq_ranges_fn(int64_t, int64_t, int64_t, const float *, float *, float *, double *);
typedef void hwq_histogram_fn(int64_t, const float *, double, int64_t, int64_t *, double *);
typedef void hwq_lut_fn(int64_t, const uint8_t *, uint8_t, const uint8_t *, uint8_t *);
typedef void hwq_gemm_s16_fn(const hwq_gemm_s16_args *);
typedef void hwq_widen_fn(int32_t, int64_t, const uint16_t *, float *);
typedef void hwq_narrow_fn(int32_t, int64_t, const float *, uint16_t *);
typedef void hwq_dynamic_fn(int32_t, int64_t, int64_t, const float *, void *, float *, int32_t *);
typedef void hwq_lut_s16_fn(int64_t, int32_t, const int16_t *, const int16_t *, int16_t *);
typedef void hwq_softmax_fn(const hwq_softmax *, int64_t, int64_t, const void *, void *);
typedef void hwq_layer_norm_fn(const hwq_layer_norm *, int64_t, const int16_t *, int16_t *);
typedef void hwq_gemm_planes_fn(const hwq_gemm_planes_args *);
typedef void hwq_unpack_int4_fn(int64_t, const uint8_t *, int32_t, int8_t *);

#define HWQ_DECLARE(op, type) type hwq_##op##__ref;
HWQ_OPS(HWQ_DECLARE)
#undef HWQ_DECLARE
hwq_gemm_fn hwq_gemm_u8s8__avx2, hwq_gemm_s8s8__avx2, hwq_gemm_saturating__avx2, hwq_gemm_u8s8__avxvnni, hwq_gemm_s8s8__avxvnni,
    hwq_gemm_u8s8__avx512vnni, hwq_gemm_s8s8__avx512vnni;
hwq_gemm_s4_fn hwq_gemm_s4__avx2, hwq_gemm_s4__avxvnni, hwq_gemm_s4__avx512vnni, hwq_gemm_f32s4__avx2, hwq_gemm_f32s4__avx512vnni;
hwq_gemm_f32s8_fn hwq_gemm_f32s8__avx2, hwq_gemm_f32s8__avx512vnni;
hwq_gemm_f32_fn hwq_gemm_f32__avx2, hwq_gemm_f32__avx512vnni;
hwq_gemm_sequential_fn hwq_gemm_sequential__avx2;
hwq_gemm_f64_fn hwq_gemm_f64__avx2;
hwq_requantize_fn hwq_requantize__avx2, hwq_requantize__avx512vnni;
hwq_sum_f32_fn hwq_sum_f32__avx2;
hwq_pool_fn hwq_pool_run__avx2, hwq_pool_nines; /* the latter without intrinsics */
hwq_binary_fn hwq_binary_run__avx2;
hwq_quantize_fn hwq_quantize__avx2;
hwq_dequantize_fn hwq_dequantize__avx2;
hwq_fake_quantize_fn hwq_fake_quantize__avx2, hwq_fake_quantize__avx512vnni, hwq_fake_quantize__neon;
hwq_ranges_fn hwq_ranges__avx2;
hwq_histogram_fn hwq_histogram__avx2;
hwq_conv_fn hwq_conv_chain__avx2, hwq_depthwise_chain__avx2, hwq_conv_chain__avx512vnni, hwq_depthwise_chain__avx512vnni;
hwq_scale_sums_fn hwq_scale_sums__avx2;
hwq_conv_fn hwq_conv_s32__avx2, hwq_depthwise_s32__avx2, hwq_depthwise_f32__avx2, hwq_depthwise_s32__avx512vnni;
hwq_conv_fn hwq_conv_winograd__avx2, hwq_conv_s32__avxvnni, hwq_conv_s32__avx512vnni;
hwq_binary_fn hwq_binary_run__avx512vnni;
hwq_conv_fn hwq_conv_s32__blocked, hwq_conv_f32__blocked; /* drivers without intrinsics: every path but ref */
#define hwq_conv_f32__avx2 hwq_conv_f32__blocked
#define hwq_conv_s32__neon hwq_conv_s32__blocked
#define hwq_conv_f32__neon hwq_conv_f32__blocked
hwq_gemm_s16_fn hwq_gemm_s16s8__avx2, hwq_gemm_s16s8__neon;
hwq_widen_fn hwq_widen__avx2, hwq_widen__neon;
hwq_narrow_fn hwq_narrow__avx2, hwq_narrow__neon;
hwq_dynamic_fn hwq_dynamic_quantize__avx2, hwq_dynamic_quantize__neon;
hwq_lut_s16_fn hwq_lut_s16__avx2;
hwq_gemm_planes_fn hwq_gemm_planes__avx2;
hwq_softmax_fn hwq_softmax_run__avx2;
hwq_layer_norm_fn hwq_layer_norm_s16__avx2;
hwq_quantize_fn hwq_quantize__avx512vnni;
hwq_dequantize_fn hwq_dequantize__avx512vnni;
hwq_dynamic_fn hwq_dynamic_quantize__avx512vnni;
hwq_pool_fn hwq_pool_run__avx512vnni, hwq_pool_run__neon;
hwq_conv_fn hwq_depthwise_s32__neon, hwq_depthwise_f32__neon;
hwq_layer_norm_fn hwq_layer_norm_s16__neon;
hwq_lut_fn hwq_lut__avx2, hwq_lut__neon;
hwq_unpack_int4_fn hwq_unpack_int4__avx2, hwq_unpack_int4__neon;
hwq_gemm_fn hwq_gemm_u8s8__neon, hwq_gemm_s8s8__neon, hwq_gemm_u8s8__neondot, hwq_gemm_s8s8__neondot, hwq_gemm_u8s8__i8mm,
    hwq_gemm_s8s8__i8mm;
hwq_gemm_f32_fn hwq_gemm_f32__neon;
hwq_gemm_sequential_fn hwq_gemm_sequential__neon;
hwq_sum_f32_fn hwq_sum_f32__neon;
hwq_requantize_fn hwq_requantize__neon;
hwq_binary_fn hwq_binary_run__neon;
hwq_quantize_fn hwq_quantize__neon;
hwq_dequantize_fn hwq_dequantize__neon;
hwq_gemm_s4_fn hwq_gemm_s4__neon, hwq_gemm_s4__neondot, hwq_gemm_s4__i8mm, hwq_gemm_f32s4__neon;
hwq_gemm_f32s8_fn hwq_gemm_f32s8__neon;
hwq_gemm_fn hwq_gemm_saturating__neon;
hwq_gemm_planes_fn hwq_gemm_planes__neon;
hwq_lut_s16_fn hwq_lut_s16__neon;
hwq_softmax_fn hwq_softmax_run__neon;
hwq_ranges_fn hwq_ranges__neon;
hwq_histogram_fn hwq_histogram__neon;
hwq_conv_fn hwq_conv_chain__neon, hwq_depthwise_chain__neon;
hwq_scale_sums_fn hwq_scale_sums__neon;

/* A region whose functions may use a path's instructions; headers with intrinsics come first. In the emulating builds of the
 * C tests (HWQ_EMULATE, never in a wheel) the whole build is AVX2 and what is beyond it is spelled out by SIMDe: no region. */
#define HWQ_PRAGMA(text) _Pragma(#text)
#if HWQ_EMULATE
#define HWQ_TARGET(isa)
#define HWQ_TARGET_END
#elif defined(__clang__)
#define HWQ_TARGET(isa) HWQ_PRAGMA(clang attribute push(__attribute__((target(isa))), apply_to = function))
#define HWQ_TARGET_END _Pragma("clang attribute pop")
#else
#define HWQ_TARGET(isa) _Pragma("GCC push_options") HWQ_PRAGMA(GCC target(isa))
#define HWQ_TARGET_END _Pragma("GCC pop_options")
#endif

/* Has a vector computed here, alone: gcc 12 sorts the instructions of an unrolled loop by kind, products before sums, and spills them. */
#if defined(__GNUC__) && HWQ_X86 && !defined(HWQ_NO_ASM)
#define HWQ_IN_REGISTER(v) __asm__("" : "+x"(v))
#else
#define HWQ_IN_REGISTER(v) (void)(v)
#endif

#endif
