/* SCALE-Sim 3.0.0, cycle by cycle: the demands of a systolic array against its three buffers.
 *
 * No demand matrix is stored: which ports ask in a cycle, and for which words, follows from the fold and the cycle in
 * it. Sources of every rule: experiments with the tool (PyPI scalesim 3.0.0) and the issues of
 * github.com/scalesim-project/SCALE-Sim named beside them. The deviations are reproduced on purpose and live only here.
 *
 * Folds: outer loop over column blocks, inner over row blocks. With used rows and columns r, c of a fold and T steps:
 *   os  input port p asks A[p, t - p], weight port p asks B[t - p, p]; R + C - 2 cycles of skew.
 *   ws  weight ports load B bottom row first (R cycles), then input port p asks A[t - R - p, p].
 *   is  input ports load A bottom row first, then weight port p asks B[p, t - R - p].
 */
#include <stdlib.h>
#include <string.h>

#include "scalesim.h"

typedef int64_t (*serve_fn)(hwq_read_buffer *, int64_t, int64_t, int64_t, int64_t, int64_t);

typedef struct {
    int64_t lo, hi, spatial, step; /* ports lo..hi ask, from these places of the operand's tables; none if hi < lo */
} request;

struct hwq_scalesim {
    hwq_scalesim_layer layer;
    hwq_scalesim_machine machine;
    int64_t m, k, n, on_rows, on_cols, steps; /* GEMM; what lies on rows, on columns, in time */
    int64_t row_folds, col_folds, fold_cycles, first_output;
    int64_t output_words, words;
    int64_t cycle, stalls, last_output;        /* cycle without stalls; cycle in which the last output row was taken */
    int64_t first[3], last[3];                 /* cycles without stalls of the first and last request */
    int64_t output_start, output_stop;
    double mapping_sum, utilization_sum;
    hwq_read_buffer ifmap, filter;
    hwq_write_buffer ofmap;
    serve_fn serve;
    uint32_t *memory;
};

static int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
static int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }
static int64_t max64(int64_t a, int64_t b) { return a > b ? a : b; }

/* ---- who asks when --------------------------------------------------------------------------------------------- */

static request streamed(int64_t t, int64_t used, int64_t steps, int64_t spatial) {
    return (request){max64(0, t - steps + 1), min64(used - 1, t), spatial, t};
}

static request loaded(const hwq_scalesim *sim, int64_t t, int64_t fr, int64_t used, int64_t spatial) {
    const int64_t row = fr * sim->machine.rows + sim->machine.rows - 1 - t;
    const int none = t >= sim->machine.rows || row >= sim->on_rows;
    return (request){0, none ? -1 : used - 1, spatial, row};
}

/* Requests of cycle t of fold (fr, fc): input, weights, outputs (of these only how many). */
static void demand(const hwq_scalesim *sim, int64_t fr, int64_t fc, int64_t t, request *ifmap, request *filter,
                   int64_t *outputs) {
    const int64_t R = sim->machine.rows, C = sim->machine.cols;
    const int64_t r0 = fr * R, c0 = fc * C, r = min64(R, sim->on_rows - r0), c = min64(C, sim->on_cols - c0);
    request out;
    if (sim->machine.dataflow == HWQ_OS) {
        *ifmap = streamed(t, r, sim->steps, r0);
        *filter = streamed(t, c, sim->steps, c0);
        out = streamed(t - sim->first_output - (R - r), c, r, 0); /* the bottom row leaves first, unused ones included */
    } else {
        const request load = loaded(sim, t, fr, c, c0), stream = streamed(t - R, r, sim->steps, r0);
        *ifmap = sim->machine.dataflow == HWQ_WS ? stream : load;
        *filter = sim->machine.dataflow == HWQ_WS ? load : stream;
        out = streamed(t - sim->first_output, c, sim->steps, 0);
    }
    *outputs = out.hi < out.lo ? 0 : out.hi - out.lo + 1;
}

static int asks(const hwq_read_buffer *b, const request *q) {
    for (int64_t p = q->lo; p <= q->hi; p++)
        if (b->seen[b->spatial[q->spatial + p] + b->temporal[q->step - (b->skewed ? p : 0)]] != HWQ_NOTHING) return 1;
    return 0;
}

/* The first (direction 1) or last (-1) cycle with a request of each kind. A layer without any keeps -1. */
static void find_ends(hwq_scalesim *sim, int64_t *found, int64_t direction) {
    const int64_t cycles = sim->row_folds * sim->col_folds * sim->fold_cycles;
    found[0] = found[1] = found[2] = -1;
    for (int64_t i = direction > 0 ? 0 : cycles - 1; i >= 0 && i < cycles; i += direction) {
        const int64_t fold = i / sim->fold_cycles;
        request ifmap, filter;
        int64_t outputs;
        demand(sim, fold % sim->row_folds, fold / sim->row_folds, i % sim->fold_cycles, &ifmap, &filter, &outputs);
        if (found[0] < 0 && asks(&sim->ifmap, &ifmap)) found[0] = i;
        if (found[1] < 0 && asks(&sim->filter, &filter)) found[1] = i;
        if (found[2] < 0 && outputs > 0) found[2] = i;
        if (found[0] >= 0 && found[1] >= 0 && found[2] >= 0) return;
    }
}

/* ---- tables ---------------------------------------------------------------------------------------------------- */

typedef struct {
    int64_t out_h, out_w, high, wide; /* output pixels; the input extended to what the windows cover */
} geometry;

/* Windows along one axis: positions inside the input, counted for each window and counted once. */
static void cover(int64_t size, int64_t window, int64_t stride, int64_t outs, int64_t *valid, int64_t *different) {
    *valid = *different = 0;
    int64_t end = 0;
    for (int64_t o = 0; o < outs; o++) {
        const int64_t from = o * stride, to = min64(size, from + window);
        *valid += max64(0, to - from);
        *different += max64(0, to - max64(from, end));
        end = max64(end, to);
    }
}

/* Output positions per axis round up (the tool's ceil): a last window may reach beyond the input. */
static geometry measure(const hwq_scalesim_layer *l) {
    geometry g;
    g.out_h = ceil_div(l->ifmap_h - l->filter_h + l->stride_h, l->stride_h);
    g.out_w = ceil_div(l->ifmap_w - l->filter_w + l->stride_w, l->stride_w);
    g.high = max64(l->ifmap_h, (g.out_h - 1) * l->stride_h + l->filter_h);
    g.wide = max64(l->ifmap_w, (g.out_w - 1) * l->stride_w + l->filter_w);
    return g;
}

static void count_words(hwq_scalesim *sim, const geometry *g) {
    const hwq_scalesim_layer *l = &sim->layer;
    int64_t valid_h, valid_w, different_h, different_w;
    cover(l->ifmap_h, l->filter_h, l->stride_h, g->out_h, &valid_h, &different_h);
    cover(l->ifmap_w, l->filter_w, l->stride_w, g->out_w, &valid_w, &different_w);
    sim->ifmap.valid_words = valid_h * valid_w * l->channels;
    sim->ifmap.distinct = different_h * different_w * l->channels;
    sim->filter.valid_words = sim->filter.distinct = sim->filter.addresses;
}

static void fill_tables(hwq_scalesim *sim, const geometry *g, uint32_t *pixel, uint32_t *tap, uint32_t *row,
                        uint32_t *depth) {
    const hwq_scalesim_layer *l = &sim->layer;
    for (int64_t y = 0; y < g->out_h; y++)
        for (int64_t x = 0; x < g->out_w; x++)
            *pixel++ = (uint32_t)((y * l->stride_h * g->wide + x * l->stride_w) * l->channels);
    for (int64_t y = 0; y < l->filter_h; y++)
        for (int64_t x = 0; x < l->filter_w; x++)
            for (int64_t c = 0; c < l->channels; c++) *tap++ = (uint32_t)((y * g->wide + x) * l->channels + c);
    for (int64_t i = 0; i < sim->n; i++) row[i] = (uint32_t)(i * sim->k);
    for (int64_t i = 0; i < sim->k; i++) depth[i] = (uint32_t)i;
    for (int64_t y = 0; y < g->high; y++)
        for (int64_t x = y < l->ifmap_h ? l->ifmap_w : 0; x < g->wide; x++)
            for (int64_t c = 0; c < l->channels; c++)
                sim->ifmap.seen[(y * g->wide + x) * l->channels + c] = HWQ_NOTHING;
}

static void wire(hwq_scalesim *sim, const uint32_t *pixel, const uint32_t *tap, const uint32_t *row,
                 const uint32_t *depth) {
    hwq_read_buffer *a = &sim->ifmap, *b = &sim->filter;
    const hwq_dataflow dataflow = sim->machine.dataflow;
    const int a_by_tap = dataflow == HWQ_WS, b_by_depth = dataflow == HWQ_IS;
    a->spatial = a_by_tap ? tap : pixel;
    a->temporal = a_by_tap ? pixel : tap;
    a->spatial_n = a_by_tap ? sim->k : sim->m;
    a->temporal_n = a_by_tap ? sim->m : sim->k;
    a->width = dataflow == HWQ_IS ? sim->machine.cols : sim->machine.rows;
    a->skewed = dataflow != HWQ_IS;
    b->spatial = b_by_depth ? depth : row;
    b->temporal = b_by_depth ? row : depth;
    b->spatial_n = b_by_depth ? sim->k : sim->n;
    b->temporal_n = b_by_depth ? sim->n : sim->k;
    b->width = dataflow == HWQ_IS ? sim->machine.rows : sim->machine.cols;
    b->skewed = dataflow != HWQ_WS;
}

/* ---- life of a simulation -------------------------------------------------------------------------------------- */

#define LIMIT (INT64_C(1) << 31) /* a dimension, an address space and a buffer stay below: products of two fit */

static int in_range(int64_t value, int64_t low) { return value >= low && value < LIMIT; }

static int check(const hwq_scalesim_layer *l, const hwq_scalesim_machine *x) {
    return in_range(l->filter_h, 1) && in_range(l->filter_w, 1) && in_range(l->ifmap_h, l->filter_h) &&
           in_range(l->ifmap_w, l->filter_w) && in_range(l->channels, 1) && in_range(l->filters, 1) &&
           in_range(l->stride_h, 1) && in_range(l->stride_w, 1) && in_range(x->rows, 1) && in_range(x->cols, 1) &&
           (x->dataflow == HWQ_WS || x->dataflow == HWQ_OS || x->dataflow == HWQ_IS) &&
           in_range(x->ifmap_words, 100) && in_range(x->filter_words, 100) && in_range(x->ofmap_words, 100) &&
           (!x->user || (in_range(x->ifmap_bandwidth, 1) && in_range(x->filter_bandwidth, 1) &&
                         in_range(x->ofmap_bandwidth, 1)));
}

/* a * b, or -1 if any factor is -1 or the product reaches 2^62. */
static int64_t multiply(int64_t a, int64_t b) {
    return a < 0 || b < 0 || (b > 0 && a > (INT64_C(1) << 62) / b) ? -1 : a * b;
}

static int lay_out(hwq_scalesim *sim, const geometry *g) {
    const hwq_scalesim_layer *l = &sim->layer;
    const hwq_dataflow dataflow = sim->machine.dataflow;
    const int64_t R = sim->machine.rows, C = sim->machine.cols;
    sim->m = multiply(g->out_h, g->out_w);
    sim->k = multiply(multiply(l->filter_h, l->filter_w), l->channels);
    sim->n = l->filters;
    sim->ifmap.addresses = multiply(multiply(g->high, g->wide), l->channels);
    sim->filter.addresses = multiply(sim->k, sim->n);
    if (!in_range(sim->m, 1) || !in_range(sim->k, 1) || !in_range(sim->ifmap.addresses, 1) ||
        !in_range(sim->filter.addresses, 1) || multiply(multiply(sim->m, sim->k), sim->n) < 0)
        return 0;
    sim->on_rows = dataflow == HWQ_OS ? sim->m : sim->k;
    sim->on_cols = dataflow == HWQ_IS ? sim->m : sim->n;
    sim->steps = dataflow == HWQ_OS ? sim->k : dataflow == HWQ_WS ? sim->m : sim->n;
    sim->row_folds = ceil_div(sim->on_rows, R);
    sim->col_folds = ceil_div(sim->on_cols, C);
    sim->fold_cycles = sim->steps + R + C - 2 + (dataflow == HWQ_OS ? 0 : R);
    sim->first_output = dataflow == HWQ_OS ? sim->steps - 1 : 2 * R - 1;
    const int64_t a = multiply(sim->m, sim->k), b = multiply(sim->k, sim->n), o = multiply(sim->m, sim->n);
    const int64_t folds = multiply(sim->row_folds, sim->col_folds);
    if (dataflow == HWQ_OS) {
        sim->ifmap.sram_words = multiply(sim->col_folds, a);
        sim->filter.sram_words = multiply(sim->row_folds, b);
        sim->output_words = multiply(folds, R + C); /* issue #166 of the tool: R + C words too many per fold */
        if (sim->output_words >= 0) sim->output_words += o;
    } else {
        sim->ifmap.sram_words = dataflow == HWQ_WS ? multiply(sim->col_folds, a) : a;
        sim->filter.sram_words = dataflow == HWQ_WS ? b : multiply(sim->col_folds, b);
        sim->output_words = multiply(sim->row_folds, o); /* partial sums are written and never read back */
    }
    const int64_t cycles = multiply(folds, sim->fold_cycles);
    if (sim->ifmap.sram_words < 0 || sim->filter.sram_words < 0 || sim->output_words < 0 || cycles < 0) return 0;
    sim->words = sim->ifmap.sram_words / 4 + sim->filter.sram_words / 4 + sim->output_words / 4 + cycles / 4;
    if (sim->words >= INT64_C(1) << 60) return 0;
    sim->words = sim->ifmap.sram_words + sim->filter.sram_words + sim->output_words + cycles;
    return 1;
}

/* The means over folds, added up in the tool's order so that the last bit is the same. */
static void average(hwq_scalesim *sim) {
    const int64_t R = sim->machine.rows, C = sim->machine.cols;
    /* For ws and is the tool adds the skew of the columns twice. */
    const int64_t cycles = sim->fold_cycles + (sim->machine.dataflow == HWQ_OS ? 0 : C - 1);
    for (int64_t fc = 0; fc < sim->col_folds; fc++)
        for (int64_t fr = 0; fr < sim->row_folds; fr++) {
            const int64_t used = min64(R, sim->on_rows - fr * R) * min64(C, sim->on_cols - fc * C);
            sim->mapping_sum += (double)used / (double)(R * C);
            sim->utilization_sum += (double)(used * sim->steps) / ((double)(R * C) * (double)cycles);
        }
}

hwq_sim_status hwq_scalesim_open(const hwq_scalesim_layer *layer, const hwq_scalesim_machine *machine,
                                 int64_t max_bytes, hwq_scalesim **out) {
    *out = NULL;
    if (!check(layer, machine)) return HWQ_SIM_BAD_ARGUMENT;
    const geometry g = measure(layer);
    hwq_scalesim plan = {.layer = *layer, .machine = *machine};
    if (!lay_out(&plan, &g)) return HWQ_SIM_TOO_LARGE;
    const int64_t entries = plan.m + 2 * plan.k + plan.n + plan.ifmap.addresses + plan.filter.addresses;
    if (entries * (int64_t)sizeof(uint32_t) > max_bytes) return HWQ_SIM_TOO_LARGE;
    count_words(&plan, &g);
    hwq_scalesim *sim = malloc(sizeof *sim);
    uint32_t *memory = calloc((size_t)entries, sizeof *memory);
    if (sim == NULL || memory == NULL) {
        free(sim);
        free(memory);
        return HWQ_SIM_NO_MEMORY;
    }
    *sim = plan;
    sim->memory = memory;
    uint32_t *pixel = memory, *tap = pixel + sim->m, *row = tap + sim->k, *depth = row + sim->n;
    sim->ifmap.seen = depth + sim->k;
    sim->filter.seen = sim->ifmap.seen + sim->ifmap.addresses;
    fill_tables(sim, &g, pixel, tap, row, depth);
    wire(sim, pixel, tap, row, depth);
    find_ends(sim, sim->first, 1);
    find_ends(sim, sim->last, -1);
    average(sim);
    if (machine->user) {
        hwq_prefetch_open(&sim->ifmap, machine->ifmap_words, machine->ifmap_bandwidth);
        hwq_prefetch_open(&sim->filter, machine->filter_words, machine->filter_bandwidth);
    } else {
        hwq_estimate_open(&sim->ifmap, machine->ifmap_words);
        hwq_estimate_open(&sim->filter, machine->filter_words);
        sim->ifmap.first_request = sim->first[0]; /* nothing stalls before: in CALC only outputs do */
        sim->filter.first_request = sim->first[1];
    }
    sim->serve = machine->user ? hwq_prefetch_serve : hwq_estimate_serve;
    hwq_write_open(&sim->ofmap, machine->ofmap_words, machine->user ? machine->ofmap_bandwidth : machine->cols);
    *out = sim;
    return HWQ_SIM_OK;
}

int64_t hwq_scalesim_words(const hwq_scalesim *sim) { return sim->words; }
int64_t hwq_scalesim_done(const hwq_scalesim *sim) { return sim->cycle; }

static int64_t serve(hwq_scalesim *sim, hwq_read_buffer *b, const request *q, int which, int64_t now) {
    const int64_t i = sim->cycle;
    int64_t stall = 0;
    if (!b->always && q->lo <= q->hi) {
        stall = sim->serve(b, q->lo, q->hi, q->spatial, q->step, now);
        b->work += q->hi - q->lo + 1;
    }
    if (i == sim->first[which]) b->sram_start = now + stall + 1; /* one cycle of hit latency */
    if (i == sim->last[which]) b->sram_stop = now + stall + 1;
    return stall;
}

hwq_sim_status hwq_scalesim_advance(hwq_scalesim *sim, int64_t budget) {
    const int64_t cycles = sim->row_folds * sim->col_folds * sim->fold_cycles;
    const int64_t done = sim->ifmap.work + sim->filter.work;
    const int64_t stop = budget > INT64_MAX / 2 - done ? INT64_MAX / 2 : done + budget; /* no sum beyond it wraps */
    int64_t fold = sim->cycle / sim->fold_cycles, t = sim->cycle % sim->fold_cycles, spent = 0;
    int64_t fr = fold % sim->row_folds, fc = fold / sim->row_folds;
    while (sim->cycle < cycles) {
        if (sim->ifmap.work + sim->filter.work + spent > stop) return HWQ_SIM_MORE;
        request ifmap, filter;
        int64_t outputs;
        demand(sim, fr, fc, t, &ifmap, &filter, &outputs);
        const int64_t now = sim->cycle + sim->stalls;
        const int64_t ifmap_stall = serve(sim, &sim->ifmap, &ifmap, 0, now);
        const int64_t filter_stall = serve(sim, &sim->filter, &filter, 1, now);
        const int64_t ofmap_stall = outputs ? hwq_write_serve(&sim->ofmap, outputs, now) : 0;
        if (sim->ofmap.failed) return HWQ_SIM_NO_MEMORY;
        sim->last_output = now + ofmap_stall;
        if (sim->cycle == sim->first[2]) sim->output_start = sim->last_output;
        if (sim->cycle == sim->last[2]) sim->output_stop = sim->last_output;
        sim->stalls += max64(ofmap_stall, max64(ifmap_stall, filter_stall));
        spent += outputs + 1;
        sim->cycle++;
        if (++t == sim->fold_cycles) {
            t = 0;
            if (++fr == sim->row_folds) fr = 0, fc++;
        }
    }
    hwq_write_flush(&sim->ofmap, sim->last_output);
    if (!sim->machine.user) {
        hwq_estimate_close(&sim->ifmap, sim->machine.ifmap_words);
        hwq_estimate_close(&sim->filter, sim->machine.filter_words);
    } else {
        sim->ifmap.dram_stop = sim->ifmap.last_answer;
        sim->filter.dram_stop = sim->filter.last_answer;
    }
    return HWQ_SIM_OK;
}

static hwq_scalesim_port port(const hwq_read_buffer *b) {
    return (hwq_scalesim_port){b->sram_start, b->sram_stop, b->sram_words, b->dram_start, b->dram_stop, b->dram_words};
}

void hwq_scalesim_read(const hwq_scalesim *sim, hwq_scalesim_report *report) {
    const int64_t folds = sim->row_folds * sim->col_folds;
    *report = (hwq_scalesim_report){
        .total_cycles = sim->last_output, /* issue #125 of the tool: the index of the last cycle, not their number */
        .stall_cycles = sim->stalls,
        .macs = sim->m * sim->k * sim->n,
        .mapping_efficiency = sim->mapping_sum / (double)folds,
        .compute_utilization = sim->utilization_sum / (double)folds,
        .ifmap = port(&sim->ifmap),
        .filter = port(&sim->filter),
        .ofmap = {sim->output_start, sim->output_stop, sim->output_words, sim->ofmap.first_drain,
                  sim->ofmap.last_drain, sim->ofmap.written},
    };
}

void hwq_scalesim_close(hwq_scalesim *sim) {
    if (sim == NULL) return;
    hwq_write_free(&sim->ofmap);
    free(sim->memory);
    free(sim);
}
