/* Processor time of the ops on every path: best of several runs, in giga-MACs or giga-elements per second. */
#define _POSIX_C_SOURCE 199309L
#include "check.h"

#include <time.h>

static double seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Prints work / best time over at least `runs` runs and a fifth of a second. */
#define TIME(label, work, statement)                                                                                          \
    do {                                                                                                                      \
        double best = 1e9, start = seconds();                                                                                 \
        for (int run = 0; run < 3 || (seconds() - start < 0.2 && run < 1000); run++) {                                        \
            const double before = seconds();                                                                                  \
            statement;                                                                                                        \
            const double took = seconds() - before;                                                                           \
            if (took < best) best = took;                                                                                     \
        }                                                                                                                     \
        printf("%-28s %-12s %9.2f G/s\n", label, hwq_path_name(hwq_path_chosen()), (double)(work) / best * 1e-9);              \
    } while (0)

static void gemm(int64_t m, int64_t k, int64_t n)
{
    guarded a = guard((size_t)(m * k), 0), w = guard((size_t)(k * n), 0), quads = guard((size_t)hwq_packed_bytes(k, n), 0);
    guarded out = guard((size_t)(m * n) * 4, 0), workspace = guard((size_t)hwq_gemm_workspace(k), 0);
    int32_t *columns = calloc((size_t)n * 3, 4);
    int64_t *proof = calloc((size_t)n * 2, 8);
    char label[64];
    fill_bytes(a.data, m * k, 0);
    fill_bytes(w.data, k * n, 0);
    hwq_pack(w.data, HWQ_S8, k, n, n, 1, NULL, quads.data, columns, columns + n, columns + 2 * n, proof, proof + n);
    const hwq_packed packed = {.k = k, .n = n, .groups = 1, .quads = quads.data, .column_sums = columns + n, .column_products = columns + 2 * n};
    const float scale = 1e-4f;
    const hwq_epilogue e = {.kind = HWQ_KIND_REQUANT, .rounding = HWQ_ROUND_FP32, .out_type = HWQ_S8, .scales_f32 = &scale, .lo = -128, .hi = 127};
    const hwq_gemm_args args = {.m = m, .a = a.data, .a_stride = k, .weights = &packed, .strips = (n + 15) / 16, .epilogue = &e, .out = out.data,
                                .out_stride = n, .workspace = workspace.data};
    snprintf(label, sizeof label, "gemm_u8s8 %dx%dx%d", (int)m, (int)k, (int)n);
    EACH_PATH(path) TIME(label, m * k * n, hwq_gemm_u8s8(&args));
    check_guard(&a), check_guard(&w), check_guard(&quads), check_guard(&out), check_guard(&workspace);
    free(columns), free(proof);
}

static void gemm_f32(int64_t m, int64_t k, int64_t n)
{
    float *a = calloc((size_t)(m * k), 4), *w = calloc((size_t)(k * n), 4), *out = calloc((size_t)(m * n), 4);
    float *packed = calloc((size_t)hwq_packed_f32_floats(k, n), 4);
    char label[64];
    for (int64_t i = 0; i < m * k; i++) a[i] = real();
    for (int64_t i = 0; i < k * n; i++) w[i] = real();
    hwq_pack_f32(w, k, n, n, 1, packed);
    const hwq_gemm_f32_args args = {.m = m, .k = k, .n = n, .a = a, .a_stride = k, .weights = packed, .out = out, .out_stride = n};
    snprintf(label, sizeof label, "gemm_f32 %dx%dx%d", (int)m, (int)k, (int)n);
    EACH_PATH(path) TIME(label, m * k * n, hwq_gemm_f32(&args));
    free(a), free(w), free(out), free(packed);
}

void time_ops(void)
{
    gemm(64, 1024, 1024), gemm(256, 256, 256), gemm(1, 4096, 4096);
    gemm_f32(64, 1024, 1024), gemm_f32(256, 256, 256);
    enum { N = 1 << 18 };
    float *x = calloc(N, 4);
    uint8_t *q = calloc(N, 1), *r = calloc(N, 1);
    const float scale = 0.01f;
    const int32_t zero = 3;
    hwq_binary add = {.formula = HWQ_BINARY_ORT_ADD, .hi = 255, .a_scale = 0.1f, .b_scale = 0.2f, .scale = 0.3f};
    for (int i = 0; i < N; i++) x[i] = real();
    hwq_binary_prepare(&add);
    EACH_PATH(path) TIME("quantize onnx u8", N, hwq_quantize(HWQ_QUANTIZE_ONNX, 1, 1, N, x, &scale, &zero, 0, 255, q, HWQ_U8));
    EACH_PATH(path) TIME("dequantize u8", N, hwq_dequantize(1, 1, N, q, HWQ_U8, &scale, &zero, x));
    EACH_PATH(path) TIME("binary_run ort-add", N, hwq_binary_run(&add, N, q, 1, q, 1, r));
    free(x), free(q), free(r);
}
