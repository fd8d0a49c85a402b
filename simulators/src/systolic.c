/* A systolic array that moves real values: cycle by cycle, exact, with every word through a port counted.
 *
 * What is assumed of the hardware
 *   - R x C processing elements (PEs); in one cycle a PE multiplies a word from its left with its weight (ws, is) or
 *     with a word from above (os) and adds to a 32-bit sum, which wraps modulo 2^32.
 *   - Words move one PE to the right per cycle; sums (ws, is) or the second operand (os) one PE down. Row r gets its
 *     words r cycles late and, in os, column c its words c cycles late: the skewed edges.
 *   - A word that is produced in a cycle leaves in that cycle. Registered ports would add a constant to the whole run.
 *   - ws, is: each PE has a weight and a second register. A tile enters at the top, the last row's word first, column c
 *     one cycle after column c - 1; a word moves down one PE per cycle until it has reached its row: R cycles. The
 *     first word of a stream carries a mark; a PE that sees it takes its second register from then on.
 *   - os: the PE that multiplies its last words puts its sum on the result bus of its column in that cycle. Row r is one
 *     cycle behind row r - 1, so a bus never sees two; but the next fold may not end within R cycles of this one.
 *   - Accumulators behind the bottom edge (ws, is) add sums of the same outputs: a later fold along k reads them back.
 *   - A fold is clocked as a full one; ports without an operand deliver nothing and are not counted.
 * Folds: column blocks outermost, row blocks innermost. hwq_overlap says when a fold may start: when the last sum of the
 * one before has left (none, stationary), or max(T, R) cycles after it (folds); and when its tile must be in place:
 * loaded after that sum (none), or meanwhile.
 *
 * Here a row is stepped at once: its shift register is a window that moves over the words its port delivers, which is
 * what a shift register is; sums move for real, up to HWQ_HOPS rows between two visits (systolic_step.c). systolic_reference.c moves every register of every PE on its own and
 * schedules by what it sees; tests hold the two, the closed forms of hwq/simulators/dataflow.py and plain products equal.
 */
#include <stdlib.h>
#include <string.h>

#include "systolic.h"

static int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
static int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }
static int64_t max64(int64_t a, int64_t b) { return a > b ? a : b; }

/* ---- mapping and its counts -------------------------------------------------------------------------------------- */

static void map_gemm(hwq_systolic *run) {
    const hwq_systolic_gemm *g = &run->gemm;
    const hwq_systolic_array *x = &run->array;
    const hwq_dataflow dataflow = x->dataflow;
    const int64_t depth = ceil_div(g->k, x->pack), R = x->rows, C = x->cols;
    hwq_mapping *map = &run->map;
    const hwq_operand a = {g->a, g->a_type, g->a_stride_m, g->a_stride_k, g->k, x->pack};
    const hwq_operand b = {g->b, g->b_type, g->b_stride_n, g->b_stride_k, g->k, x->pack};
    map->a_is_fixed = dataflow == HWQ_IS;
    map->streamed = map->a_is_fixed ? b : a;
    map->fixed = map->a_is_fixed ? a : b;
    map->on_rows = dataflow == HWQ_OS ? g->m : depth;
    map->on_cols = dataflow == HWQ_IS ? g->m : g->n;
    map->steps = dataflow == HWQ_OS ? depth : dataflow == HWQ_WS ? g->m : g->n;
    map->out_step_1 = dataflow == HWQ_IS ? 1 : g->n;
    map->out_step_2 = dataflow == HWQ_IS ? g->n : 1;
    map->row_blocks = ceil_div(map->on_rows, R);
    map->col_blocks = ceil_div(map->on_cols, C);
    map->folds = map->row_blocks * map->col_blocks;
    map->first = dataflow == HWQ_OS ? 0 : R;
    const int64_t alone = map->steps + R + C - 2;
    map->interval = x->overlap == HWQ_OVERLAP_FOLDS        ? max64(map->steps, R)
                    : x->overlap == HWQ_OVERLAP_STATIONARY ? alone
                                                           : alone + map->first;
    map->cycles = map->first + (map->folds - 1) * map->interval + alone;
}

/* Where the cycles go, and what passes the ports: each fold's used rows and columns times its steps. */
static void count(hwq_systolic *run) {
    const hwq_mapping *map = &run->map;
    const int64_t R = run->array.rows, C = run->array.cols, F = map->folds, T = map->steps;
    const int os = run->array.dataflow == HWQ_OS;
    const int64_t lines = map->on_rows * map->on_cols; /* os: outputs; else words of the fixed operand */
    hwq_systolic_counts *n = &run->counts;
    n->folds = F;
    n->cycles = map->cycles;
    n->stream = F * T;
    const int64_t latencies = run->array.overlap == HWQ_OVERLAP_FOLDS ? 1 : F;
    n->fill = os ? 0 : latencies * (R - 1);
    n->drain = latencies * (os ? R + C - 2 : C - 1);
    n->load = map->cycles - n->stream - n->fill - n->drain;
    const int64_t streamed = map->col_blocks * map->on_rows * T;
    const int64_t fixed = os ? map->row_blocks * map->on_cols * T : lines;
    n->a_reads = map->a_is_fixed ? fixed : streamed;
    n->b_reads = map->a_is_fixed ? streamed : fixed;
    n->sum_writes = os ? lines : map->row_blocks * map->on_cols * T;
    n->sum_reads = os ? 0 : n->sum_writes - map->on_cols * T;
    n->macs = run->gemm.m * run->gemm.k * run->gemm.n;
}

static int64_t triangle(int64_t x) { return x > 0 ? x * (x + 1) / 2 : 0; }

/* Busy PE-cycles of a row of `cols` PEs in its first x cycles: PE c works in cycles c .. c + steps - 1, so this is the sum
 * over c of min(max(x - c, 0), steps). */
static int64_t busy_before(int64_t cols, int64_t steps, int64_t x) {
    return triangle(x) - triangle(x - cols) - (triangle(x - steps) - triangle(x - steps - cols));
}

static void account(hwq_systolic *run, int64_t fold) {
    const int64_t rows = hwq_used_rows(run, fold), cols = hwq_used_cols(run, fold), T = run->map.steps;
    if (run->occupancy)
        for (int64_t r = 0; r < rows; r++)
            for (int64_t c = 0; c < cols; c++) run->occupancy[r * run->array.cols + c] += T;
    if (run->timeline == NULL) return;
    for (int64_t r = 0; r < rows; r++) {
        const int64_t start = run->map.first + fold * run->map.interval + r, end = start + T + cols - 1;
        int64_t *line = run->timeline + r * run->bins, before = 0;
        for (int64_t bin = start / run->bin_cycles; bin < run->bins; bin++) {
            const int64_t edge = (bin + 1) * run->bin_cycles, now = busy_before(cols, T, edge - start);
            line[bin] += now - before;
            if (edge >= end) break;
            before = now;
        }
    }
}

/* ---- the words of a chunk of cycles ------------------------------------------------------------------------------ */

/* What the port of row r delivers in cycles last - n + 1 .. last, latest first; cycles count from the start of fold 0. */
static void fill_edge(const hwq_systolic *run, int64_t r, int64_t last, int64_t n, hwq_word *to) {
    const hwq_mapping *map = &run->map;
    const int os = run->array.dataflow == HWQ_OS;
    memset(to, 0, (size_t)n * sizeof *to);
    int64_t fold = min64((last - r < 0 ? -1 : (last - r) / map->interval), map->folds - 1);
    for (; fold >= 0; fold--) {
        const int64_t start = fold * map->interval + r; /* its first word passes here */
        const int64_t from = max64(start, last - n + 1), until = min64(start + map->steps - 1, last);
        if (until < last - n + 1) break;
        if (r >= hwq_used_rows(run, fold)) continue;
        const int64_t line = fold % map->row_blocks * run->array.rows + r;
        if (os) hwq_copy_depth(&map->streamed, line, from - start, until - from + 1, to + (last - from), -1);
        else hwq_copy_lines(&map->streamed, from - start, line, until - from + 1, to + (last - from), -1);
    }
}

/* os: the words of column c in cycles from .. from + n - 1, one line of `to`, which holds zeros, per cycle. */
static void fill_top(const hwq_systolic *run, int64_t c, int64_t from, int64_t n, hwq_word *to) {
    const hwq_mapping *map = &run->map;
    for (int64_t fold = max64(0, (from - c) / map->interval); fold < map->folds; fold++) {
        const int64_t start = fold * map->interval + c;
        const int64_t first = max64(start, from), end = min64(start + map->steps, from + n);
        if (start >= from + n) break;
        if (c >= hwq_used_cols(run, fold)) continue;
        const int64_t line = fold / map->row_blocks * run->array.cols + c;
        hwq_copy_depth(&map->fixed, line, first - start, end - first, to + (first - from) * run->pitch, run->pitch);
    }
}

/* The tile of a fold, placed in the second registers that its words reach before they are needed. */
static void fill_tile(const hwq_systolic *run, int64_t fold) {
    const int64_t rows = hwq_used_rows(run, fold), cols = hwq_used_cols(run, fold);
    const int64_t r0 = fold % run->map.row_blocks * run->array.rows, c0 = fold / run->map.row_blocks * run->array.cols;
    hwq_word *tile = run->tile + fold % run->tiles * run->array.rows * run->pitch;
    memset(tile, 0, (size_t)(run->array.rows * run->pitch) * sizeof *tile);
    for (int64_t r = 0; r < rows; r++) hwq_copy_lines(&run->map.fixed, c0, r0 + r, cols, tile + r * run->pitch, 1);
}

/* ---- stepping ---------------------------------------------------------------------------------------------------- */

/* PEs (r, t - start - r): those that see the last word of a fold in cycle t (os). */
#define ON_DIAGONAL(r, d, R, C) \
    for (int64_t r = max64(0, (d) - (C) + 1), r##_end = min64((R)-1, d); r <= r##_end; r++)

/* The tiles whose marks run through the array in cycles t .. t + n - 1. */
static int64_t find_waves(hwq_systolic *run, int64_t t, int64_t n) {
    const int64_t R = run->array.rows, C = run->array.cols, I = run->map.interval;
    int64_t waves = 0;
    for (int64_t fold = min64((t + n - 1) / I, run->map.folds - 1); fold >= 0; fold--) {
        const int64_t front = t - fold * I;
        if (front > R + C - 2) break;
        if (front <= 0) fill_tile(run, fold);
        run->waves[waves++] = (hwq_wave){front, run->tile + fold % run->tiles * R * run->pitch};
    }
    return waves;
}

/* Whether a sum comes to rest in cycles t .. t + n - 1 (os). */
static int has_resting(const hwq_systolic *run, int64_t t, int64_t n) {
    const int64_t I = run->map.interval, first = t - (run->map.steps - 1), last = first + n - 1;
    if (last < 0) return 0;
    const int64_t fold = min64(last / I, run->map.folds - 1);
    return first - fold * I <= run->array.rows + run->array.cols - 2;
}

static void collect_resting(hwq_systolic *run, int64_t t) {
    const int64_t R = run->array.rows, C = run->array.cols, I = run->map.interval;
    t -= run->map.steps - 1;
    for (int64_t fold = t < 0 ? -1 : min64(t / I, run->map.folds - 1); fold >= 0; fold--) {
        const int64_t d = t - fold * I;
        if (d > R + C - 2) return;
        const int64_t rows = hwq_used_rows(run, fold), cols = hwq_used_cols(run, fold);
        const int64_t r0 = fold % run->map.row_blocks * R, c0 = fold / run->map.row_blocks * C;
        ON_DIAGONAL(r, d, R, C) {
            int32_t *sum = &run->sums[r * run->pitch + d - r];
            if (r < rows && d - r < cols)
                run->gemm.out[(r0 + r) * run->map.out_step_1 + (c0 + d - r) * run->map.out_step_2] = *sum;
            *sum = 0;
        }
    }
}

/* What left the bottom edge in `n` cycles from `from` on: line l of a fold left in cycle start + R - 1 + l and holds step
 * l - c of column c. The accumulators are kept in that order: a later fold along k finds line l where this one left it. */
static void collect_moving(hwq_systolic *run, int64_t from, int64_t n) {
    const hwq_mapping *map = &run->map;
    const int64_t R = run->array.rows, I = map->interval, T = map->steps;
    for (int64_t fold = max64(0, (from - R + 1 - run->array.cols) / I - 1); fold < map->folds; fold++) {
        const int64_t start = fold * I + R - 1;
        if (start >= from + n) return;
        const int64_t cols = hwq_used_cols(run, fold), c0 = fold / map->row_blocks * run->array.cols;
        const int64_t end = min64(T + cols - 1, from + n - start);
        const int is_first = fold % map->row_blocks == 0, is_last = fold % map->row_blocks == map->row_blocks - 1;
        for (int64_t l = max64(0, from - start); l < end; l++) {
            const int64_t lo = max64(0, l - T + 1), hi = min64(cols - 1, l);
            const int32_t *left = run->bottom + (start + l - from) * run->pitch;
            int32_t *line = run->accumulators + l * run->line;
            if (is_first) memcpy(line + lo, left + lo, (size_t)(hi - lo + 1) * sizeof *line);
            else
                for (int64_t c = lo; c <= hi; c++) line[c] = (int32_t)((uint32_t)line[c] + (uint32_t)left[c]);
            if (!is_last) continue;
            int32_t *out = run->gemm.out + l * map->out_step_1 + c0 * map->out_step_2;
            for (int64_t c = lo; c <= hi; c++) out[c * (map->out_step_2 - map->out_step_1)] = line[c];
        }
    }
}

#define TOP_LINES 64

static void step_chunk(hwq_systolic *run, int64_t from, int64_t n) {
    const int64_t R = run->array.rows, last = from + n - 1, pitch = run->pitch;
    hwq_step_ws step_ws;
    hwq_step_os step_os;
    hwq_step_choose(&step_ws, &step_os);
    for (int64_t r = 0; r < R; r++) fill_edge(run, r, last, n - 1 + pitch, run->edge + r * run->edge_pitch);
    if (run->array.dataflow == HWQ_OS) {
        memset(run->top, 0, (size_t)((n + R - 1) * pitch) * sizeof *run->top);
        for (int64_t at = 0; at < n + R - 1; at += TOP_LINES) /* so few that they stay in the first cache */
            for (int64_t c = 0; c < run->array.cols; c++)
                fill_top(run, c, from - R + 1 + at, min64(TOP_LINES, n + R - 1 - at), run->top + at * pitch + c);
        for (int64_t t = from, m; t <= last; t += m) {
            m = min64(HWQ_HOPS, last - t + 1);
            if (has_resting(run, t, m)) m = 1;
            step_os(run->sums, run->top + (t - from + R - 1) * pitch, run->edge + (last - t), run->edge_pitch, R, pitch, m);
            if (m == 1) collect_resting(run, t);
        }
        return;
    }
    for (int64_t t = from, m; t <= last; t += m) {
        m = min64(HWQ_HOPS, last - t + 1);
        const int64_t waves = find_waves(run, t, m);
        step_ws(run->sums, run->weights, run->edge + (last - t), run->edge_pitch, R, run->array.cols, pitch, m,
                run->bottom + (t - from) * pitch, run->waves, waves);
    }
    collect_moving(run, from, n);
}

/* ---- life of a run ----------------------------------------------------------------------------------------------- */

#define MAX_SIDE 4096
#define MAX_COUNT (INT64_C(1) << 62)

static int check(const hwq_systolic_array *x, const hwq_systolic_gemm *g) {
    const double macs = (double)g->m * (double)g->k * (double)g->n * MAX_SIDE;
    return x->rows >= 1 && x->rows <= MAX_SIDE && x->cols >= 1 && x->cols <= MAX_SIDE && x->dataflow >= HWQ_WS &&
           x->dataflow <= HWQ_IS && x->overlap >= HWQ_OVERLAP_NONE && x->overlap <= HWQ_OVERLAP_FOLDS &&
           (x->pack == 1 || x->pack == 2) && g->m >= 1 && g->k >= 1 && g->n >= 1 && macs < (double)MAX_COUNT &&
           g->a_type >= HWQ_SIM_U8 && g->a_type <= HWQ_SIM_S16 && g->b_type >= HWQ_SIM_U8 && g->b_type <= HWQ_SIM_S16;
}

static hwq_sim_status allocate(hwq_systolic *run, int64_t max_bytes) {
    const int64_t R = run->array.rows, C = run->array.cols;
    const int os = run->array.dataflow == HWQ_OS;
    run->pitch = ceil_div(C, 16) * 16;
    run->chunk = max64(512, min64(2048, 4 * C)); /* long against the window, small enough for the cache */
    run->edge_pitch = run->chunk + run->pitch;
    run->tiles = os ? 0 : (R + C - 2 + HWQ_HOPS) / run->map.interval + 2; /* in flight during a block */
    const int64_t edge = R * run->edge_pitch, grid = R * run->pitch;
    run->line = min64(run->pitch, ceil_div(run->map.on_cols, 16) * 16);
    const int64_t sums = os ? 0 : (run->map.steps + C) * run->line;
    const int64_t words = sums + edge + 2 * grid + run->tiles * grid + (os ? run->chunk + R : run->chunk) * run->pitch;
    if (words * 4 + run->tiles * (int64_t)sizeof *run->waves > max_bytes) return HWQ_SIM_TOO_LARGE;
    if (!os && (run->waves = malloc((size_t)run->tiles * sizeof *run->waves)) == NULL) return HWQ_SIM_NO_MEMORY;
    hwq_word *next = calloc((size_t)words, sizeof *next);
    if (next == NULL) return HWQ_SIM_NO_MEMORY;
    run->memory = next;
    run->edge = next;
    run->weights = run->edge + edge;
    run->tile = run->weights + grid;
    run->sums = (int32_t *)(run->tile + run->tiles * grid);
    run->top = (hwq_word *)(run->sums + grid); /* os */
    run->bottom = run->sums + grid;            /* ws, is */
    run->accumulators = run->bottom + run->chunk * run->pitch;
    return HWQ_SIM_OK;
}

hwq_sim_status hwq_systolic_open(const hwq_systolic_array *array, const hwq_systolic_gemm *gemm, int64_t *occupancy,
                                 int64_t *timeline, int64_t bins, int64_t bin_cycles, int64_t max_bytes,
                                 hwq_systolic **out) {
    *out = NULL;
    if (!check(array, gemm) || (timeline && (bins < 1 || bin_cycles < 1))) return HWQ_SIM_BAD_ARGUMENT;
    hwq_systolic *run = calloc(1, sizeof *run);
    if (run == NULL) return HWQ_SIM_NO_MEMORY;
    run->array = *array;
    run->gemm = *gemm;
    run->occupancy = occupancy;
    run->timeline = timeline;
    run->bins = bins;
    run->bin_cycles = bin_cycles;
    map_gemm(run);
    const hwq_sim_status status = array->reference ? hwq_reference_open(run, max_bytes) : allocate(run, max_bytes);
    if (status != HWQ_SIM_OK) {
        hwq_systolic_close(run);
        return status;
    }
    memset(gemm->out, 0, (size_t)(gemm->m * gemm->n) * sizeof *gemm->out);
    *out = run;
    return HWQ_SIM_OK;
}

int64_t hwq_systolic_cycles(const hwq_systolic *run) { return run->map.cycles; }

hwq_sim_status hwq_systolic_advance(hwq_systolic *run, int64_t cycles) {
    if (run->array.reference) return hwq_reference_advance(run, cycles);
    const hwq_mapping *map = &run->map;
    const int64_t end = map->cycles - map->first, busy = map->steps + run->array.rows + run->array.cols - 2;
    const int64_t stop = run->now + max64(cycles, 1);
    while (run->now < end) {
        if (run->now >= stop) return HWQ_SIM_MORE;
        int64_t n = min64(run->chunk, end - run->now);
        if (map->interval > busy) { /* between folds the empty array only loads: nothing moves in it */
            const int64_t at = run->now % map->interval;
            if (at >= busy) {
                run->now += map->interval - at;
                continue;
            }
            n = min64(n, busy - at);
        }
        step_chunk(run, run->now, n);
        run->now += n;
    }
    for (int64_t fold = 0; fold < map->folds; fold++) account(run, fold);
    count(run);
    return HWQ_SIM_OK;
}

void hwq_systolic_read(const hwq_systolic *run, hwq_systolic_counts *counts) { *counts = run->counts; }

void hwq_systolic_close(hwq_systolic *run) {
    if (run == NULL) return;
    hwq_reference_close(run->reference);
    free(run->memory);
    free(run->waves);
    free(run);
}
