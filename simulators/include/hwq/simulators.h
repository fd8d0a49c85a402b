/* Engines that step or enumerate. They know no machine by name and no Python.
 *
 * Every function returns a status; nothing here prints, exits or keeps state between calls. Memory that a caller does
 * not own is bounded by a number it gives and freed by the matching close. Counts are 64-bit words, bytes or cycles.
 */
#ifndef HWQ_SIMULATORS_H
#define HWQ_SIMULATORS_H

#include <stdint.h>

typedef enum {
    HWQ_SIM_MORE = 1,          /* the budget of this call is spent, call again */
    HWQ_SIM_OK = 0,
    HWQ_SIM_BAD_ARGUMENT = -1, /* outside what the contract allows */
    HWQ_SIM_TOO_LARGE = -2,    /* needs more memory than the caller's bound, or counts beyond its integers */
    HWQ_SIM_NO_MEMORY = -3,    /* the system refused memory within the bound */
} hwq_sim_status;

typedef enum { HWQ_WS = 0, HWQ_OS = 1, HWQ_IS = 2 } hwq_dataflow;

/* ---- scalesim: the memory model of SCALE-Sim 3.0.0, its deviations included ------------------------------------ */

/* One layer as its topology file says it: the input is already padded; sizes in elements, all at least 1. */
typedef struct {
    int64_t ifmap_h, ifmap_w, filter_h, filter_w, channels, filters, stride_h, stride_w;
} hwq_scalesim_layer;

typedef struct {
    int64_t rows, cols; /* processing elements */
    hwq_dataflow dataflow;
    int64_t ifmap_words, filter_words, ofmap_words; /* SRAM, one word a byte; at least 100 */
    int user;                                       /* 0 CALC: which bandwidth would be needed; 1 USER: these: */
    int64_t ifmap_bandwidth, filter_bandwidth, ofmap_bandwidth; /* words per cycle */
} hwq_scalesim_machine;

/* One operand's stamps (cycles) and DRAM words. */
typedef struct {
    int64_t sram_start, sram_stop, sram_words, dram_start, dram_stop, dram_words;
} hwq_scalesim_port;

typedef struct {
    int64_t total_cycles, stall_cycles, macs;
    double mapping_efficiency, compute_utilization; /* shares; means over folds, added in the order of the folds */
    hwq_scalesim_port ifmap, filter, ofmap;
} hwq_scalesim_report;

typedef struct hwq_scalesim hwq_scalesim;

/* Prepare a layer; *out is NULL unless HWQ_SIM_OK. */
hwq_sim_status hwq_scalesim_open(const hwq_scalesim_layer *layer, const hwq_scalesim_machine *machine,
                                 int64_t max_bytes, hwq_scalesim **out);
/* Words that the whole layer requests, plus its cycles: its work, known before it starts. */
int64_t hwq_scalesim_words(const hwq_scalesim *sim);
/* Run about `budget` words further: HWQ_SIM_MORE until the layer is done, then HWQ_SIM_OK. */
hwq_sim_status hwq_scalesim_advance(hwq_scalesim *sim, int64_t budget);
/* Array cycles (without stalls) done so far. */
int64_t hwq_scalesim_done(const hwq_scalesim *sim);
/* Valid once advance returned HWQ_SIM_OK. */
void hwq_scalesim_read(const hwq_scalesim *sim, hwq_scalesim_report *report);
void hwq_scalesim_close(hwq_scalesim *sim);

/* ---- systolic: an array that moves real values, cycle by cycle ------------------------------------------------- */

typedef enum { HWQ_OVERLAP_NONE = 0, HWQ_OVERLAP_STATIONARY = 1, HWQ_OVERLAP_FOLDS = 2 } hwq_overlap;
typedef enum { HWQ_SIM_U8 = 0, HWQ_SIM_S8 = 1, HWQ_SIM_S16 = 2 } hwq_sim_type;

typedef struct {
    int64_t rows, cols; /* processing elements, at most 4096 each */
    hwq_dataflow dataflow;
    hwq_overlap overlap;
    int pack;      /* MACs along k per PE and cycle: 1, or 2 (INT4) */
    int reference; /* move every register of every PE on its own instead of whole rows: slow, for proof */
} hwq_systolic_array;

/* out[m][n] = sum over k of a[m][k] * b[k][n], modulo 2^32. Strides in elements. s16 values lie in -256..255. */
typedef struct {
    int64_t m, k, n;
    const void *a, *b;
    hwq_sim_type a_type, b_type;
    int64_t a_stride_m, a_stride_k, b_stride_k, b_stride_n;
    int32_t *out; /* m x n, contiguous */
} hwq_systolic_gemm;

typedef struct {
    int64_t folds, cycles, load, fill, stream, drain; /* cycles = load + fill + stream + drain */
    int64_t macs;                                     /* multiplications with two real operands */
    int64_t a_reads, b_reads, sum_reads, sum_writes;  /* words through the ports */
} hwq_systolic_counts;

typedef struct hwq_systolic hwq_systolic;

/* Prepare a run. occupancy: NULL or rows x cols busy cycles; timeline: NULL or rows x bins counts of busy
 * PE-cycles, each over bin_cycles cycles. The arrays of `gemm` and these two must outlive the run; they are written by advance. */
hwq_sim_status hwq_systolic_open(const hwq_systolic_array *array, const hwq_systolic_gemm *gemm, int64_t *occupancy,
                                 int64_t *timeline, int64_t bins, int64_t bin_cycles, int64_t max_bytes,
                                 hwq_systolic **out);
/* Cycles of the whole run, known before it starts. */
int64_t hwq_systolic_cycles(const hwq_systolic *run);
/* Step about `cycles` further: HWQ_SIM_MORE until the last sum has left, then HWQ_SIM_OK. */
hwq_sim_status hwq_systolic_advance(hwq_systolic *run, int64_t cycles);
void hwq_systolic_read(const hwq_systolic *run, hwq_systolic_counts *counts);
void hwq_systolic_close(hwq_systolic *run);

/* ---- tiling: the cut of a product that moves the fewest bytes -------------------------------------------------- */

/* A product of m x k by k x n. Bytes are those of each whole operand in DRAM (up to 2^41; a convolution's input counts once,
 * not once a tap); sums are partial results. What `stays` is on chip already: no traffic, and no room of the buffer's. */
typedef struct {
    int64_t m, k, n;
    int64_t a_bytes, b_bytes, out_bytes, sum_bytes;
    int a_stays, b_stays, out_stays;
} hwq_tiling_gemm;

/* Orders, outermost loop first: 0 m n k, 1 n m k, 2 m k n, 3 k m n, 4 n k m, 5 k n m. */
typedef struct {
    int64_t tm, tk, tn;
    int64_t order;
    int64_t a_passes, b_passes, sum_passes;           /* how often each operand passes the chip's edge */
    int64_t a_moved, b_moved, out_moved, sum_moved;   /* bytes, in whole bursts a pass */
} hwq_tiling;

/* The tiling with the fewest bytes whose tiles fit `capacity`, twice each unless there is only one of them. TOO_LARGE: not
 * even single elements fit. */
hwq_sim_status hwq_tiling_search(const hwq_tiling_gemm *gemm, int64_t capacity, int64_t burst, hwq_tiling *best);
/* Bytes that tiles of this size take in the buffer. */
int64_t hwq_tiling_room(const hwq_tiling_gemm *gemm, int64_t tm, int64_t tk, int64_t tn);

#endif
