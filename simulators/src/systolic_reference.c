/* The stepped array register by register: the plain reading of the assumptions at the top of systolic.c.
 *
 * Every wire carries a token; in a cycle each PE looks only at its neighbours' registers of the cycle before. The
 * controller starts loads and folds by what it sees (ports free, tile in place, array empty), not by a formula, and
 * everything reported is counted where it happens. Slow: for tests and for looking at.
 */
#include <stdlib.h>
#include <string.h>

#include "systolic.h"

typedef struct {
    hwq_word word;
    uint8_t operands; /* 0: nothing; else how many of the word's two are real */
    uint8_t mark;     /* ws, is: first of a fold's stream; os: last of it */
} token;

typedef struct {
    token right, down; /* what moves to the neighbours; down: second operand (os) */
    int32_t sum;       /* ws, is: moves down; os: stays */
    uint8_t live;      /* the sum belongs to an output */
    hwq_word weight, second;
    uint8_t weight_valid, second_valid;
    int64_t hops; /* the second register's word still has this many rows to go */
} pe;

struct hwq_reference {
    pe *now, *next;
    int64_t *starts, *loads; /* cycle in which a fold's stream and its load began, -1 before */
    int64_t *delivered;      /* sums that left each column (ws, is) */
    int64_t started, loaded, outputs, fold_outputs, cycle;
};

static int32_t multiply_add(int32_t sum, hwq_word a, hwq_word b) {
    const int32_t low = (int32_t)(int16_t)a * (int16_t)b, high = (int32_t)(int16_t)(a >> 16) * (int16_t)(b >> 16);
    return (int32_t)((uint32_t)sum + (uint32_t)low + (uint32_t)high);
}

hwq_sim_status hwq_reference_open(hwq_systolic *run, int64_t max_bytes) {
    const int64_t grid = run->array.rows * run->array.cols, folds = run->map.folds;
    const double bytes = 2.0 * (double)grid * sizeof(pe) + 8.0 * (2.0 * (double)folds + (double)run->array.cols);
    if (bytes > (double)max_bytes) return HWQ_SIM_TOO_LARGE;
    struct hwq_reference *ref = calloc(1, sizeof *ref);
    if (ref == NULL) return HWQ_SIM_NO_MEMORY;
    run->reference = ref;
    ref->now = calloc((size_t)grid, sizeof *ref->now);
    ref->next = calloc((size_t)grid, sizeof *ref->next);
    ref->starts = malloc((size_t)folds * sizeof *ref->starts);
    ref->loads = malloc((size_t)folds * sizeof *ref->loads);
    ref->delivered = calloc((size_t)run->array.cols, sizeof *ref->delivered);
    if (!ref->now || !ref->next || !ref->starts || !ref->loads || !ref->delivered) return HWQ_SIM_NO_MEMORY;
    return HWQ_SIM_OK;
}

void hwq_reference_close(struct hwq_reference *ref) {
    if (ref == NULL) return;
    free(ref->now);
    free(ref->next);
    free(ref->starts);
    free(ref->loads);
    free(ref->delivered);
    free(ref);
}

/* ---- controller ---------------------------------------------------------------------------------------------------- */

static int64_t sums_of(const hwq_systolic *run, int64_t fold) {
    const int64_t cols = hwq_used_cols(run, fold);
    return cols * (run->array.dataflow == HWQ_OS ? hwq_used_rows(run, fold) : run->map.steps);
}

/* All sums of the folds started so far have left, and the far corner's cycle has passed. */
static int is_empty(const hwq_systolic *run) {
    const struct hwq_reference *ref = run->reference;
    if (ref->started == 0) return 1;
    const int64_t far = ref->starts[ref->started - 1] + run->map.steps + run->array.rows + run->array.cols - 2;
    return ref->outputs == ref->fold_outputs && ref->cycle >= far;
}

static void control(hwq_systolic *run) {
    struct hwq_reference *ref = run->reference;
    const int64_t t = ref->cycle, R = run->array.rows;
    const int loads = run->array.dataflow != HWQ_OS;
    if (ref->started < run->map.folds) {
        const int64_t before = ref->started - 1;
        int ready = !loads || (ref->loaded > ref->started && t >= ref->loads[ref->started] + R);
        if (before >= 0 && run->array.overlap == HWQ_OVERLAP_FOLDS)
            ready = ready && t >= ref->starts[before] + run->map.steps && (loads || t >= ref->starts[before] + R);
        else
            ready = ready && is_empty(run);
        if (ready) {
            ref->fold_outputs += sums_of(run, ref->started);
            ref->starts[ref->started++] = t;
        }
    }
    if (!loads || ref->loaded == run->map.folds) return;
    /* The second register is free once the fold before has begun to take its weights; a single one once it is done. */
    const int free_now = run->array.overlap == HWQ_OVERLAP_NONE ? is_empty(run) && ref->started == ref->loaded
                                                                : ref->started == ref->loaded;
    if (free_now) ref->loads[ref->loaded++] = t;
}

/* ---- ports --------------------------------------------------------------------------------------------------------- */

static uint8_t operands(const hwq_operand *x, int64_t q) { return x->pack == 2 && 2 * q + 1 < x->k ? 2 : 1; }

static token row_port(hwq_systolic *run, int64_t r) {
    const struct hwq_reference *ref = run->reference;
    const int os = run->array.dataflow == HWQ_OS;
    for (int64_t fold = ref->started - 1; fold >= 0; fold--) {
        const int64_t i = ref->cycle - r - ref->starts[fold];
        if (i < 0) continue;
        if (i >= run->map.steps) break;
        token out = {0, 0, (uint8_t)(os ? i == run->map.steps - 1 : i == 0)};
        const int64_t line = fold % run->map.row_blocks * run->array.rows + r;
        if (r >= hwq_used_rows(run, fold)) return out;
        out.word = os ? hwq_word_at(&run->map.streamed, line, i) : hwq_word_at(&run->map.streamed, i, line);
        out.operands = operands(&run->map.streamed, os ? i : line);
        *(run->map.a_is_fixed ? &run->counts.b_reads : &run->counts.a_reads) += 1;
        return out;
    }
    return (token){0, 0, 0};
}

static token column_port(hwq_systolic *run, int64_t c) {
    const struct hwq_reference *ref = run->reference;
    for (int64_t fold = ref->started - 1; fold >= 0; fold--) {
        const int64_t i = ref->cycle - c - ref->starts[fold];
        if (i < 0) continue;
        if (i >= run->map.steps) break;
        if (c >= hwq_used_cols(run, fold)) break;
        run->counts.b_reads++;
        return (token){hwq_word_at(&run->map.fixed, fold / run->map.row_blocks * run->array.cols + c, i),
                       operands(&run->map.fixed, i), 0};
    }
    return (token){0, 0, 0};
}

/* A weight entering column c at the top: the last row's first. Returns whether one enters. */
static int weight_port(hwq_systolic *run, int64_t c, pe *to) {
    const struct hwq_reference *ref = run->reference;
    for (int64_t fold = ref->loaded - 1; fold >= 0; fold--) {
        const int64_t j = ref->cycle - c - ref->loads[fold];
        if (j < 0) continue;
        if (j >= run->array.rows) break;
        to->hops = run->array.rows - 1 - j;
        to->second_valid = to->hops < hwq_used_rows(run, fold) && c < hwq_used_cols(run, fold);
        to->second = 0;
        if (to->second_valid) {
            to->second = hwq_word_at(&run->map.fixed, fold / run->map.row_blocks * run->array.cols + c,
                                     fold % run->map.row_blocks * run->array.rows + to->hops);
            *(run->map.a_is_fixed ? &run->counts.a_reads : &run->counts.b_reads) += 1;
        }
        return 1;
    }
    return 0;
}

/* ---- one cycle ------------------------------------------------------------------------------------------------------ */

static void busy(hwq_systolic *run, int64_t r, int64_t c, const token *a) {
    const int64_t bin = run->timeline ? run->reference->cycle / run->bin_cycles : 0;
    run->counts.macs += a->operands;
    if (run->occupancy) run->occupancy[r * run->array.cols + c]++;
    if (run->timeline && bin < run->bins) run->timeline[r * run->bins + bin]++;
}

static void deliver(hwq_systolic *run, int64_t c, int32_t sum) {
    struct hwq_reference *ref = run->reference;
    const hwq_mapping *map = &run->map;
    const int64_t i = ref->delivered[c] % map->steps, fold = ref->delivered[c] / map->steps;
    int32_t *out = run->gemm.out + i * map->out_step_1 +
                   (fold / map->row_blocks * run->array.cols + c) * map->out_step_2;
    if (fold % map->row_blocks > 0) run->counts.sum_reads++;
    *out = (int32_t)((uint32_t)*out + (uint32_t)sum);
    run->counts.sum_writes++;
    ref->delivered[c]++;
    ref->outputs++;
}

static void emit(hwq_systolic *run, int64_t r, int64_t c, int32_t sum) {
    struct hwq_reference *ref = run->reference;
    int64_t fold = 0;
    while (fold + 1 < ref->started && ref->cycle >= ref->starts[fold + 1] + run->map.steps - 1 + r + c) fold++;
    const int64_t m = fold % run->map.row_blocks * run->array.rows + r;
    const int64_t n = fold / run->map.row_blocks * run->array.cols + c;
    run->gemm.out[m * run->map.out_step_1 + n * run->map.out_step_2] = sum;
    run->counts.sum_writes++;
    ref->outputs++;
}

static void step_stationary(hwq_systolic *run, int64_t r, int64_t c) {
    const int64_t C = run->array.cols, at = r * C + c;
    const pe *now = run->reference->now, *self = now + at;
    pe *next = run->reference->next + at;
    const token in = c ? now[at - 1].right : row_port(run, r);
    *next = *self;
    if (in.mark) {
        next->weight = self->second;
        next->weight_valid = self->second_valid;
    }
    next->right = in;
    next->sum = r ? now[at - C].sum : 0;
    next->live = r ? now[at - C].live : in.operands && next->weight_valid;
    if (in.operands && next->weight_valid) {
        next->sum = multiply_add(next->sum, in.word, next->weight);
        busy(run, r, c, &in);
    }
    if (r == run->array.rows - 1 && next->live) deliver(run, c, next->sum);
    if (r ? now[at - C].hops > 0 : 0) {
        next->second = now[at - C].second;
        next->second_valid = now[at - C].second_valid;
        next->hops = now[at - C].hops - 1;
    } else if (r || !weight_port(run, c, next)) {
        next->hops = 0; /* what it held stays, or has moved on */
    }
}

static int step_output(hwq_systolic *run, int64_t r, int64_t c) {
    const int64_t C = run->array.cols, at = r * C + c;
    const pe *now = run->reference->now, *self = now + at;
    pe *next = run->reference->next + at;
    next->right = c ? now[at - 1].right : row_port(run, r);
    next->down = r ? now[at - C].down : column_port(run, c);
    next->sum = self->sum;
    const int works = next->right.operands && next->down.operands;
    if (works) {
        next->sum = multiply_add(self->sum, next->right.word, next->down.word);
        busy(run, r, c, &next->right);
    }
    if (!works || !next->right.mark) return 0;
    emit(run, r, c, next->sum);
    next->sum = 0;
    return 1;
}

hwq_sim_status hwq_reference_advance(hwq_systolic *run, int64_t cycles) {
    struct hwq_reference *ref = run->reference;
    const int64_t R = run->array.rows, C = run->array.cols, stop = ref->cycle + cycles;
    while (ref->started < run->map.folds || !is_empty(run)) {
        if (ref->cycle >= stop) return HWQ_SIM_MORE;
        control(run);
        for (int64_t c = 0; c < C; c++) {
            int on_bus = 0;
            for (int64_t r = 0; r < R; r++) {
                if (run->array.dataflow == HWQ_OS) on_bus += step_output(run, r, c);
                else step_stationary(run, r, c);
            }
            if (on_bus > 1) return HWQ_SIM_BAD_ARGUMENT; /* two sums on one bus: the schedule is wrong */
        }
        pe *swap = ref->now;
        ref->now = ref->next;
        ref->next = swap;
        ref->cycle++;
    }
    run->counts.folds = ref->started;
    run->counts.cycles = ref->cycle;
    return HWQ_SIM_OK;
}
