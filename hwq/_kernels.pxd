# cython: language_level=3
"""kernels/ as Cython sees it: the contracts are in kernels/include/hwq/kernels.h and kernels/src/state.h."""

from libc.stdint cimport int8_t, int16_t, int32_t, int64_t, intptr_t, uint8_t, uint16_t, uint64_t

cdef extern from "state.h" nogil:
    uint64_t hwq_state_read()
    void hwq_state_write(uint64_t state)
    uint64_t hwq_state_enter()
    void hwq_state_leave(uint64_t state)

cdef extern from "hwq/kernels.h" nogil:
    ctypedef struct hwq_binary:
        int32_t formula, a_type, b_type, out_type, a_zero_point, b_zero_point, zero_point, lo, hi
        float a_scale, b_scale, scale
    ctypedef struct hwq_epilogue:
        int32_t kind, rounding, out_type, channel_step
        const float *scales_f32
        const double *scales_f64
        const int32_t *multipliers
        const int32_t *shifts
        const float *float_bias
        int32_t zero_point, lo, hi
        const uint8_t *lut
        const hwq_binary *residual_op
        const void *residual
        int64_t residual_stride
    ctypedef struct hwq_packed:
        int64_t k, n, groups
        const int8_t *quads
        const int32_t *zero_points
        const int32_t *column_sums
        const int32_t *column_products
        int64_t weight_sum
        const int16_t *winograd
        const int32_t *winograd_terms
    ctypedef struct hwq_gemm_args:
        int64_t m
        const void *a
        int64_t a_stride
        int32_t a_zero_point
        const hwq_packed *weights
        int64_t group, first_strip, strips
        const int32_t *bias
        const hwq_epilogue *epilogue
        void *out
        int64_t out_stride
        void *workspace
    ctypedef struct hwq_packed_s4:
        int64_t k, n, block
        const uint8_t *nibbles
        const float *scales
        const int32_t *zero_points
        const int32_t *sums
        int32_t symmetric
    ctypedef struct hwq_gemm_s4_args:
        int64_t m
        const void *a
        int64_t a_stride
        int32_t a_type, a_zero_point
        const hwq_packed_s4 *weights
        int64_t first_strip, strips
        const int32_t *bias
        const hwq_epilogue *epilogue
        void *out
        int64_t out_stride
        void *workspace
    ctypedef struct hwq_packed_s8:
        int64_t k, n, block
        const int8_t *quads
        const float *scales
        const int32_t *zero_points
        int32_t symmetric
    enum: HWQ_F32S8_WORKSPACE
    ctypedef struct hwq_gemm_f32s8_args:
        int64_t m
        const float *a
        int64_t a_stride
        const hwq_packed_s8 *weights
        int64_t first_strip, strips
        const hwq_epilogue *epilogue
        void *out
        int64_t out_stride
        void *workspace
    ctypedef struct hwq_gemm_f32_args:
        int64_t m, k, n
        const float *a
        int64_t a_stride
        const float *weights
        const float *bias
        float *out
        int64_t out_stride
    ctypedef struct hwq_gemm_sequential_args:
        int64_t m, k, n, block
        const float *a
        int64_t a_stride
        const float *b
        int64_t b_stride
        int32_t accumulate
        float *out
        int64_t out_stride
    ctypedef struct hwq_gemm_f64_args:
        int64_t m, k, n
        const double *a
        int64_t a_row, a_step
        const double *b
        int64_t b_stride
        int32_t accumulate
        double *out
        int64_t out_stride
    ctypedef struct hwq_gemm_planes_args:
        int64_t m, n, k
        int32_t bits
        const uint8_t *a
        int64_t a_stride
        const uint8_t *planes
        int32_t *out
        int64_t out_stride
        uint8_t *scratch
    ctypedef struct hwq_window:
        int64_t in_ "in"[3]
        int64_t kernel[3]
        int64_t stride[3]
        int64_t dilation[3]
        int64_t pad[3]
        int64_t out[3]
    ctypedef struct hwq_conv:
        hwq_window window
        int64_t batch, channels, out_channels, groups
        int32_t layout, a_type, a_zero_point, depthwise
        const void *x
        const hwq_packed *weights
        const int16_t *taps_s16
        const float *weights_f32
        const int32_t *bias
        const float *bias_f32
        int32_t order
        float lo_f32, hi_f32
        const hwq_epilogue *epilogue
        void *out
        int64_t first, last
        void *workspace
    ctypedef struct hwq_pool:
        hwq_window window
        int64_t batch, channels
        int32_t layout, type, kind, count_padding
        int64_t pad_end[3]
        int32_t lo, hi
        const void *x
        void *out

    int HWQ_U8, HWQ_S8, HWQ_U16, HWQ_S16, HWQ_S32, HWQ_S64, HWQ_F32, HWQ_F16, HWQ_BF16, HWQ_STRIP
    void hwq_quantize_multiplier(double real, int32_t *multiplier, int32_t *shift)
    int hwq_binary_prepare(hwq_binary *)
    void hwq_binary_run(const hwq_binary *, int64_t, const void *, int64_t, const void *, int64_t, void *)
    void hwq_requantize(const hwq_epilogue *, int64_t, int64_t, int64_t, const void *, int32_t, int64_t, void *, int64_t)
    int64_t hwq_packed_bytes(int64_t, int64_t)
    void hwq_pack(const void *, int32_t, int64_t, int64_t, int64_t, int64_t, const int32_t *, int8_t *, int32_t *, int32_t *, int32_t *,
                  int64_t *, int64_t *)
    int64_t hwq_packed_f32_floats(int64_t, int64_t)
    void hwq_pack_f32(const float *, int64_t, int64_t, int64_t, int64_t, float *)
    int64_t hwq_gemm_workspace(int64_t)
    void hwq_gemm_u8s8(const hwq_gemm_args *)
    void hwq_gemm_s8s8(const hwq_gemm_args *)
    void hwq_gemm_saturating(const hwq_gemm_args *)
    int64_t hwq_packed_s4_bytes(int64_t, int64_t)
    int32_t hwq_symmetric(int64_t, int64_t, const int32_t *, int32_t)
    void hwq_pack_s4(const uint8_t *, int64_t, int64_t, int64_t, int64_t, int64_t, const int32_t *, uint8_t *, int32_t *)
    int64_t hwq_gemm_s4_workspace(int64_t, int64_t)
    void hwq_gemm_s4(const hwq_gemm_s4_args *)
    void hwq_gemm_f32s4(const hwq_gemm_s4_args *)
    void hwq_gemm_f32s8(const hwq_gemm_f32s8_args *)
    int64_t hwq_ceiling(const char *, int64_t)
    void hwq_gemm_f32(const hwq_gemm_f32_args *)
    void hwq_gemm_sequential(const hwq_gemm_sequential_args *)
    void hwq_gemm_f64(const hwq_gemm_f64_args *)
    void hwq_gemm_planes(const hwq_gemm_planes_args *)
    void hwq_sum_f32(int64_t, int64_t, int64_t, const float *, float *)
    int64_t hwq_conv_workspace(const hwq_conv *)
    int hwq_conv_takes_winograd(const hwq_conv *)
    int64_t hwq_winograd_words(int64_t, int64_t)
    int64_t hwq_winograd_terms(int64_t)
    int hwq_winograd_pack(const hwq_packed *, int64_t, int64_t, int16_t *, int32_t *)
    void hwq_conv_s32(const hwq_conv *)
    void hwq_depthwise_s32(const hwq_conv *)
    void hwq_conv_f32(const hwq_conv *)
    void hwq_depthwise_f32(const hwq_conv *)
    void hwq_conv_chain(const hwq_conv *)
    void hwq_depthwise_chain(const hwq_conv *)
    int HWQ_CHAIN_STRIP, HWQ_NHWC, HWQ_KIND_S32, HWQ_KIND_F32
    ctypedef struct hwq_row_scales:
        int32_t formula, point_type
        int64_t rows, columns, each
        const int32_t *sums
        const float *factors
        const float *bias
        float lo, hi
    void hwq_scale_sums(const hwq_row_scales *, const void *, const float *, const void *, float *)
    void hwq_pool_run(const hwq_pool *)
    void hwq_quantize(int32_t, int64_t, int64_t, int64_t, const float *, const float *, const int32_t *, int32_t, int32_t, void *, int32_t)
    void hwq_dequantize(int64_t, int64_t, int64_t, const void *, int32_t, const float *, const int32_t *, float *)
    void hwq_lut(int64_t, const uint8_t *, uint8_t, const uint8_t *, uint8_t *)
    void hwq_pack_int4(int64_t, const int8_t *, uint8_t *)
    void hwq_unpack_int4(int64_t, const uint8_t *, int32_t, int8_t *)
    ctypedef struct hwq_gemm_s16_args:
        int64_t m
        const int16_t *a
        int64_t a_stride
        int32_t a_zero_point
        const hwq_packed *weights
        int64_t group, first_strip, strips
        const int64_t *bias
        int32_t acc_type
        const hwq_epilogue *epilogue
        void *out
        int64_t out_stride
    ctypedef struct hwq_gemm_half_args:
        int32_t type
        int64_t m, k, n
        const uint16_t *a
        int64_t a_stride
        const float *weights
        const float *bias
        uint16_t *out
        int64_t out_stride
        float *workspace
    ctypedef struct hwq_softmax:
        int32_t formula, type, out_type
        float scale, beta
        const float *table
        float inverse
        int32_t zero_point
    ctypedef struct hwq_layer_norm:
        int32_t formula
        int64_t epsilon
        int64_t columns
        const int16_t *weights
        const int32_t *bias
        int32_t multiplier, shift, variance_limit
    void hwq_gemm_s16s8(const hwq_gemm_s16_args *)
    void hwq_widen(int32_t, int64_t, const uint16_t *, float *)
    void hwq_narrow(int32_t, int64_t, const float *, uint16_t *)
    int64_t hwq_gemm_half_workspace(int64_t, int64_t)
    void hwq_gemm_half(const hwq_gemm_half_args *)
    void hwq_dynamic_quantize(int32_t, int64_t, int64_t, const float *, void *, float *, int32_t *)
    void hwq_fake_quantize(int64_t, const float *, float, int32_t, int32_t, int32_t, float *)
    int32_t hwq_ranges(int64_t, int64_t, int64_t, const float *, float *, float *, double *)
    void hwq_histogram(int64_t, const float *, double, int64_t, int64_t *, double *)
    void hwq_lut_s16(int64_t, int32_t, const int16_t *, const int16_t *, int16_t *)
    void hwq_softmax_prepare(hwq_softmax *)
    void hwq_softmax_run(const hwq_softmax *, int64_t, int64_t, const void *, void *)
    void hwq_layer_norm_s16(const hwq_layer_norm *, int64_t, const int16_t *, int16_t *)
    int hwq_path_count()
    const char *hwq_path_name(int)
    int hwq_path_available(int)
    int hwq_path_chosen()
    int hwq_path_choose(int)
    int hwq_op_count()
    const char *hwq_op_name(int)
    int hwq_op_present(int, int)
    int hwq_cpuid_mask()
    int hwq_cpuid_masked()

cdef extern from "hwq/program.h" nogil:
    ctypedef struct hwq_place:
        int64_t base
        intptr_t offset
    ctypedef struct hwq_mean:
        int64_t outer, count, inner
        int32_t type, zero_point
    ctypedef struct hwq_step_softmax:
        const hwq_softmax *op
        int64_t rows, columns
    ctypedef struct hwq_step_binary:
        const hwq_binary *op
        int64_t n, a_step, b_step
    ctypedef struct hwq_step_scale:
        int32_t formula, type, lo, hi
        int64_t outer, channels, inner
        const float *scales
        const int32_t *zero_points
    ctypedef struct hwq_step_lut:
        int64_t n
        const uint8_t *table
        int32_t flip
    ctypedef struct hwq_step_move:
        int64_t element, outer, rows, columns, from_stride, to_stride
    ctypedef struct hwq_step_map:
        int32_t formula
        int64_t n
    ctypedef struct hwq_step_dynamic:
        int32_t formula
        int64_t rows, columns
    ctypedef struct hwq_step_products:
        int64_t batch, m, k, n, a_step, b_step, b_k_stride, b_n_stride
        int32_t a_signed, b_type, a_zero_point
        const int32_t *b_zero_points
        const int32_t *bias
    ctypedef struct hwq_step_cast:
        int32_t type, to_float
        int64_t n
    ctypedef struct hwq_step_rows:
        hwq_window window
        int64_t images, channels, first, depth, block, width
        int32_t type, zero_point, centered
        int64_t each
    ctypedef struct hwq_step_scaled:
        hwq_gemm_s4_args s4
        hwq_gemm_f32s8_args s8
        int32_t gathers
        hwq_step_rows rows
    ctypedef struct hwq_step_split:
        int64_t n
        int32_t type
    ctypedef struct hwq_step_join:
        int64_t rows, columns
        const int64_t *bias
        const double *factors
        const float *offsets
    ctypedef struct hwq_step_norm:
        hwq_layer_norm norm
        int64_t rows
        int32_t type, out_type, lo, hi
    ctypedef struct hwq_step_phases:
        int64_t images
        int64_t[3] c_in "in"
        int64_t[3] out
        int64_t[3] stride
        int64_t groups, bytes
    ctypedef union hwq_step_fields:
        hwq_gemm_args gemm
        hwq_gemm_f32_args gemm_f32
        hwq_conv conv
        hwq_pool pool
        hwq_mean mean
        hwq_step_softmax softmax
        hwq_step_binary binary
        hwq_step_scale scale
        hwq_step_lut lut
        hwq_step_move move
        hwq_step_map map
        hwq_step_dynamic dynamic
        hwq_row_scales sums
        hwq_step_products products
        hwq_step_cast cast
        hwq_step_scaled scaled
        hwq_step_split split
        hwq_step_join join
        hwq_step_norm norm
        hwq_step_phases phases
    ctypedef struct hwq_step:
        int32_t op, run_time
        hwq_place a, b, out, scale, zero_point
        hwq_epilogue epilogue
        hwq_step_fields fields "as"
    ctypedef struct hwq_barrier:
        pass
    int HWQ_STEP_GEMM_U8S8, HWQ_STEP_GEMM_S8S8, HWQ_STEP_CONV, HWQ_STEP_GEMM_F32, HWQ_STEP_POOL, HWQ_STEP_BINARY, HWQ_STEP_QUANTIZE
    int HWQ_STEP_DEQUANTIZE, HWQ_STEP_LUT, HWQ_STEP_TRANSPOSE, HWQ_STEP_COPY, HWQ_STEP_MEAN, HWQ_STEP_SOFTMAX, HWQ_STEP_MAP, HWQ_STEP_DYNAMIC, HWQ_STEP_SUMS
    int HWQ_STEP_PRODUCTS, HWQ_STEP_CAST, HWQ_STEP_GEMM_S4, HWQ_STEP_GEMM_F32S8, HWQ_STEP_SPLIT, HWQ_STEP_JOIN, HWQ_STEP_LAYER_NORM, HWQ_STEP_PHASES
    int64_t hwq_program_workspace(const hwq_step *, int64_t)
    void hwq_program_run(const hwq_step *, int64_t, void *const *, void *, int32_t, int32_t, hwq_barrier *)

cdef extern from "hwq/crew.h" nogil:
    ctypedef struct hwq_crew:
        int32_t threads
    int hwq_crew_open(hwq_crew *, int32_t)
    void hwq_crew_serve(hwq_crew *, int32_t)
    void hwq_crew_run(hwq_crew *, const hwq_step *, int64_t, void *const *, char *, int64_t)
    void hwq_crew_stop(hwq_crew *)
    void hwq_crew_close(hwq_crew *)
