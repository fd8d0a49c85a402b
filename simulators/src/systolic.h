/* Parts of the stepped array: what is mapped where, the row step, the reference. */
#ifndef HWQ_SYSTOLIC_H
#define HWQ_SYSTOLIC_H

#include "hwq/simulators.h"

/* A word on a wire: two 16-bit operands along k, the second 0 unless packed. */
typedef uint32_t hwq_word;

/* A matrix whose words are pairs along k: word (i, q) holds elements k = q * pack .. of line i. */
typedef struct {
    const void *data;
    hwq_sim_type type;
    int64_t line_step, k_step, k, pack;
} hwq_operand;

hwq_word hwq_word_at(const hwq_operand *operand, int64_t line, int64_t q);
/* to[i * to_step] = word (line + i, q), respectively (line, q + i), for i < n. */
void hwq_copy_lines(const hwq_operand *operand, int64_t line, int64_t q, int64_t n, hwq_word *to, int64_t to_step);
void hwq_copy_depth(const hwq_operand *operand, int64_t line, int64_t q, int64_t n, hwq_word *to, int64_t to_step);

/* ws and is: `streamed` lines are time steps, `fixed` lines are columns, q is the row.
 * os: `streamed` lines are rows, `fixed` lines are columns, q is the time step. */
typedef struct {
    int64_t on_rows, on_cols, steps;          /* T words per fold and port */
    int64_t row_blocks, col_blocks, folds;    /* fold f: row block f % row_blocks, column block f / row_blocks */
    int64_t first, interval, cycles;          /* start of fold 0; cycles between starts; cycles in all */
    hwq_operand streamed, fixed;
    int64_t out_step_1, out_step_2;           /* ws, is: of time and column; os: of row and column */
    int a_is_fixed;
} hwq_mapping;

/* Cycles stepped together: long enough to keep a sum in a register, short against a fold. */
#define HWQ_HOPS 8

/* A tile whose mark is in the array: PE (0, front) sees it in the first of the stepped cycles. */
typedef struct {
    int64_t front;
    const hwq_word *tile;
} hwq_wave;

struct hwq_systolic {
    hwq_systolic_array array;
    hwq_systolic_gemm gemm;
    hwq_mapping map;
    hwq_systolic_counts counts;
    int64_t *occupancy, *timeline, bins, bin_cycles; /* rows x cols; rows x bins */
    int64_t now; /* cycles since the start of fold 0 (fast) or since cycle 0 (reference) */
    /* fast: one row is `pitch` words, a multiple of 16; a chunk is a number of cycles stepped at once */
    int64_t pitch, chunk, edge_pitch, tiles;
    hwq_word *edge;    /* rows x edge_pitch: what each row's ports deliver, latest first */
    hwq_word *weights; /* rows x pitch: the weight each PE uses (ws, is) */
    hwq_word *tile;    /* tiles x rows x pitch: the second weight registers of the folds in flight */
    hwq_word *top;     /* os: (chunk + rows) x pitch: what the column ports deliver, one line per cycle */
    int32_t *sums;     /* rows x pitch: partial sums on their way down (ws, is) or at rest (os) */
    int32_t *bottom;   /* chunk x pitch: what left the array in each cycle (ws, is) */
    int64_t line;          /* words of a line of accumulators */
    int32_t *accumulators; /* (steps + cols) x line, in the order in which sums leave (ws, is) */
    hwq_wave *waves;       /* at most `tiles` */
    void *memory;
    struct hwq_reference *reference;
};

/* The used part of a fold. */
static inline int64_t hwq_used_rows(const hwq_systolic *run, int64_t fold) {
    const int64_t rest = run->map.on_rows - fold % run->map.row_blocks * run->array.rows;
    return rest < run->array.rows ? rest : run->array.rows;
}
static inline int64_t hwq_used_cols(const hwq_systolic *run, int64_t fold) {
    const int64_t rest = run->map.on_cols - fold / run->map.row_blocks * run->array.cols;
    return rest < run->array.cols ? rest : run->array.cols;
}

/* `cycles` cycles of all PEs. ws, is: sums move down one row a cycle and each PE adds word . weight; what leaves the last
 * row goes to `bottom`, one line a cycle. os: each PE adds row word . column word to its own sum; row r sees the line of
 * `top` that is r cycles old. `edge` and `top` point to the first cycle; later words of `edge` lie before it. */
typedef void (*hwq_step_ws)(int32_t *sums, hwq_word *weights, const hwq_word *edge, int64_t edge_pitch, int64_t rows,
                            int64_t cols, int64_t pitch, int64_t cycles, int32_t *bottom, const hwq_wave *waves,
                            int64_t n_waves);
typedef void (*hwq_step_os)(int32_t *sums, const hwq_word *top, const hwq_word *edge, int64_t edge_pitch, int64_t rows,
                            int64_t pitch, int64_t cycles);
void hwq_step_choose(hwq_step_ws *ws, hwq_step_os *os);

hwq_sim_status hwq_reference_open(hwq_systolic *run, int64_t max_bytes);
hwq_sim_status hwq_reference_advance(hwq_systolic *run, int64_t cycles);
void hwq_reference_close(struct hwq_reference *reference);

#endif
