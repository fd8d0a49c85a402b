/* The engines without Python: the stepped array against a plain product and against its register-by-register twin, and
 * every engine in calls of any budget. Buffers are of their exact size, so that the address sanitizer guards their ends. */
#include "hwq/simulators.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static uint64_t seed = 0x9E3779B97F4A7C15;
static int64_t checks, failures;

static uint64_t draw(void) /* xorshift64* */
{
    seed ^= seed >> 12, seed ^= seed << 25, seed ^= seed >> 27;
    return seed * UINT64_C(2685821657736338717);
}
static int64_t between(int64_t low, int64_t high) { return low + (int64_t)((draw() >> 11) % (uint64_t)(high - low + 1)); }

static void check(int good, const char *what)
{
    checks++;
    if (!good && failures++ < 20) fprintf(stderr, "failed: %s\n", what);
}

static void *take(size_t bytes)
{
    void *made = malloc(bytes ? bytes : 1);
    if (!made) exit(2);
    return made;
}

/* ---- systolic ---- */

static const size_t WIDTH[] = {1, 1, 2};

static int32_t value(const void *data, hwq_sim_type type, int64_t at)
{
    if (type == HWQ_SIM_U8) return ((const uint8_t *)data)[at];
    if (type == HWQ_SIM_S8) return ((const int8_t *)data)[at];
    return ((const int16_t *)data)[at];
}

static void *operand(hwq_sim_type type, int64_t n, int extreme)
{
    void *data = take((size_t)n * WIDTH[type]);
    for (int64_t i = 0; i < n; i++) {
        if (type == HWQ_SIM_U8) ((uint8_t *)data)[i] = (uint8_t)(extreme ? 255 : between(0, 255));
        if (type == HWQ_SIM_S8) ((int8_t *)data)[i] = (int8_t)(extreme ? -128 : between(-128, 127));
        if (type == HWQ_SIM_S16) ((int16_t *)data)[i] = (int16_t)(extreme ? -256 : between(-256, 255));
    }
    return data;
}

/* One run in calls of `budget` cycles. */
static int step(const hwq_systolic_array *array, const hwq_systolic_gemm *gemm, int64_t *occupancy, int64_t budget,
                hwq_systolic_counts *counts)
{
    hwq_systolic *run = NULL;
    if (hwq_systolic_open(array, gemm, occupancy, NULL, 0, 1, INT64_C(1) << 30, &run) != HWQ_SIM_OK) return 0;
    const int64_t known = hwq_systolic_cycles(run);
    hwq_sim_status status;
    while ((status = hwq_systolic_advance(run, budget)) == HWQ_SIM_MORE) {}
    hwq_systolic_read(run, counts);
    hwq_systolic_close(run);
    return status == HWQ_SIM_OK && counts->cycles == known;
}

static void check_systolic(void)
{
    for (int round = 0; round < 600; round++) {
        const int extreme = round % 7 == 0;
        hwq_systolic_array array = {between(1, 20), between(1, 20), (hwq_dataflow)(round % 3),
                                    (hwq_overlap)(round / 3 % 3), 1 + round / 9 % 2, 0};
        hwq_systolic_gemm gemm = {between(1, 24), between(1, 40), between(1, 24), NULL, NULL,
                                  (hwq_sim_type)between(0, 2), (hwq_sim_type)between(0, 2), 0, 0, 0, 0, NULL};
        const int64_t m = gemm.m, k = gemm.k, n = gemm.n;
        void *a = operand(gemm.a_type, m * k, extreme), *b = operand(gemm.b_type, k * n, extreme);
        gemm.a = a, gemm.b = b;
        const int turned = round % 2; /* a as k x m, b as n x k */
        gemm.a_stride_m = turned ? 1 : k, gemm.a_stride_k = turned ? m : 1;
        gemm.b_stride_k = turned ? 1 : n, gemm.b_stride_n = turned ? k : 1;
        int32_t *out = take((size_t)(m * n) * 4), *twin = take((size_t)(m * n) * 4), *want = take((size_t)(m * n) * 4);
        for (int64_t i = 0; i < m; i++)
            for (int64_t j = 0; j < n; j++) {
                uint32_t sum = 0; /* modulo 2^32; a product is at most 2^16 in size */
                for (int64_t l = 0; l < k; l++)
                    sum += (uint32_t)(value(a, gemm.a_type, i * gemm.a_stride_m + l * gemm.a_stride_k)
                                      * value(b, gemm.b_type, l * gemm.b_stride_k + j * gemm.b_stride_n));
                want[i * n + j] = (int32_t)sum;
            }
        const size_t cells = (size_t)(array.rows * array.cols) * 8;
        int64_t *busy = calloc(1, cells), *busy_twin = calloc(1, cells);
        if (!busy || !busy_twin) exit(2);
        hwq_systolic_counts counts, counts_twin;
        gemm.out = out;
        check(step(&array, &gemm, busy, between(1, 200), &counts), "the array runs");
        check(!memcmp(out, want, (size_t)(m * n) * 4), "its sums are the product");
        check(counts.macs == m * k * n, "every MAC once");
        check(counts.cycles == counts.load + counts.fill + counts.stream + counts.drain, "cycles have four parts");
        array.reference = 1, gemm.out = twin;
        check(step(&array, &gemm, busy_twin, between(1, 50), &counts_twin), "the reference runs");
        check(!memcmp(twin, want, (size_t)(m * n) * 4), "the reference's sums are the product");
/* The reference does not tell the four parts apart. */
        check(counts.folds == counts_twin.folds && counts.cycles == counts_twin.cycles && counts.macs == counts_twin.macs
                  && counts.a_reads == counts_twin.a_reads && counts.b_reads == counts_twin.b_reads
                  && counts.sum_reads == counts_twin.sum_reads && counts.sum_writes == counts_twin.sum_writes,
              "both count the same");
        check(!memcmp(busy, busy_twin, cells), "both are busy in the same places");
        free(a), free(b), free(out), free(twin), free(want), free(busy), free(busy_twin);
    }
    hwq_systolic *run = (hwq_systolic *)&run;
    const hwq_systolic_array array = {0, 4, HWQ_WS, HWQ_OVERLAP_NONE, 1, 0};
    int8_t one = 1;
    int32_t sum;
    const hwq_systolic_gemm gemm = {1, 1, 1, &one, &one, HWQ_SIM_S8, HWQ_SIM_S8, 1, 1, 1, 1, &sum};
    check(hwq_systolic_open(&array, &gemm, NULL, NULL, 0, 1, 1 << 20, &run) == HWQ_SIM_BAD_ARGUMENT, "no rows is refused");
}

/* ---- scalesim ---- */

static int simulate(const hwq_scalesim_layer *layer, const hwq_scalesim_machine *machine, int64_t budget,
                    hwq_scalesim_report *report)
{
    hwq_scalesim *sim = NULL;
    if (hwq_scalesim_open(layer, machine, INT64_C(1) << 30, &sim) != HWQ_SIM_OK) return 0;
    hwq_sim_status status;
    while ((status = hwq_scalesim_advance(sim, budget)) == HWQ_SIM_MORE) {}
    memset(report, 0, sizeof *report);
    hwq_scalesim_read(sim, report);
    hwq_scalesim_close(sim);
    return status == HWQ_SIM_OK;
}

static void check_scalesim(void)
{
    for (int round = 0; round < 120; round++) {
        hwq_scalesim_layer layer = {between(3, 14), between(3, 14), between(1, 3), between(1, 3),
                                    between(1, 9),  between(1, 20), between(1, 2), between(1, 2)};
        hwq_scalesim_machine machine = {between(1, 12), between(1, 12), (hwq_dataflow)(round % 3), between(100, 3000),
                                        between(100, 3000), between(100, 3000), round & 1, between(1, 16), between(1, 16),
                                        between(1, 16)};
        hwq_scalesim_report whole, parts;
        check(simulate(&layer, &machine, INT64_MAX, &whole), "a layer runs");
        check(simulate(&layer, &machine, between(1, 500), &parts), "a layer runs in parts");
        check(!memcmp(&whole, &parts, sizeof whole), "parts change nothing");
        check(whole.stall_cycles >= 0 && whole.stall_cycles <= whole.total_cycles, "stalls are cycles");
    }
}

/* ---- tiling ---- */

static void check_tiling(void)
{
    for (int round = 0; round < 400; round++) {
        const int64_t m = between(1, 90), k = between(1, 90), n = between(1, 90);
        const hwq_tiling_gemm gemm = {m, k, n, m * k, k * n, m * n, 4 * m * n, round % 5 == 0, round % 7 == 0, round % 11 == 0};
        const int64_t capacity = between(1, 40000), burst = round % 2 ? 64 : 1;
        hwq_tiling best;
        const hwq_sim_status status = hwq_tiling_search(&gemm, capacity, burst, &best);
        if (status == HWQ_SIM_TOO_LARGE) {
            check(hwq_tiling_room(&gemm, 1, 1, 1) > capacity, "only what cannot fit is refused");
            continue;
        }
        check(status == HWQ_SIM_OK, "a tiling is found");
        check(hwq_tiling_room(&gemm, best.tm, best.tk, best.tn) <= capacity, "its tiles fit");
        check(best.a_moved >= (gemm.a_stays ? 0 : gemm.a_bytes) && best.b_moved >= (gemm.b_stays ? 0 : gemm.b_bytes),
              "each operand is read at least once");
        hwq_tiling more;
        check(hwq_tiling_search(&gemm, 2 * capacity, burst, &more) == HWQ_SIM_OK, "a larger buffer holds what a small one did");
        check(more.a_moved + more.b_moved + more.out_moved + more.sum_moved
                  <= best.a_moved + best.b_moved + best.out_moved + best.sum_moved,
              "a larger buffer moves no more");
    }
}

int main(void)
{
    check_systolic();
    check_scalesim();
    check_tiling();
    printf("%lld checks, %lld failed\n", (long long)checks, (long long)failures);
    return failures != 0;
}
