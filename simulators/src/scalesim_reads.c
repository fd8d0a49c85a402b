/* The two read buffers of SCALE-Sim 3.0.0: CALC estimates bandwidth, USER prefetches with a given one. */
#include <stddef.h>

#include "scalesim.h"

static int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

/* ---- CALC ------------------------------------------------------------------------------------------------------ */

/* The SRAM is cut into 100 sets of floor(words / 100) distinct addresses; 50 full sets are dropped at once, and the
 * DRAM read of a dropped half is spread over the cycles in which the half before it was in use. */
#define HALF_SETS 50
#define ESTIMATE_BANDWIDTH 10 /* words per cycle of the very first fill: the tool's constant */
#define PORT_LATENCY 1        /* cycles from a DRAM request to its answer */

void hwq_estimate_open(hwq_read_buffer *b, int64_t sram_words) {
    b->window = HALF_SETS * (sram_words / 100);
    b->epoch = 1;
    b->held = b->fills = 0;
    b->first_request = 0;
    b->dram_words = 0;
    b->always = b->distinct < b->window; /* never full, never emptied: each address is read once */
}

static void estimate_full(hwq_read_buffer *b, int64_t cycle) {
    if (b->fills == 0) {
        b->last_end = b->first_request - 1 - PORT_LATENCY;
        b->dram_start = b->last_end - ceil_div(b->window, ESTIMATE_BANDWIDTH) + 1 + PORT_LATENCY;
    }
    b->last_end = cycle;
    b->fills++;
    b->dram_words += b->window;
    b->held = 0;
    b->epoch++;
}

int64_t hwq_estimate_serve(hwq_read_buffer *b, int64_t lo, int64_t hi, int64_t s, int64_t t, int64_t cycle) {
    const uint32_t *spatial = b->spatial + s;
    uint32_t *seen = b->seen;
    const int64_t step = b->skewed ? 1 : 0;
    const uint32_t *temporal = b->temporal + t - lo * step;
    for (int64_t p = lo; p <= hi; p++, temporal -= step) {
        const uint32_t address = spatial[p] + *temporal;
        if (seen[address] < b->epoch) { /* HWQ_NOTHING exceeds every epoch: fills < 2^31 by the bound on words */
            seen[address] = b->epoch;
            if (++b->held == b->window) estimate_full(b, cycle);
        }
    }
    return 0;
}

void hwq_estimate_close(hwq_read_buffer *b, int64_t sram_words) {
    if (b->always) b->held = b->distinct;
    if (b->fills == 0) { /* all of it arrives before the first cycle */
        const int64_t set = sram_words / 100;
        const int64_t cycles = ceil_div(ceil_div(b->held, set) * set, ESTIMATE_BANDWIDTH);
        b->dram_stop = -1;
        b->dram_start = b->dram_stop - cycles + 1;
    } else { /* what is held now was fetched while the half before it filled */
        b->dram_stop = b->last_end + PORT_LATENCY;
    }
    b->dram_words += b->held;
}

/* ---- USER ------------------------------------------------------------------------------------------------------ */

/* Walk `words` requests of the fetch order from `c` and update each address's entry to (entry & keep) + value.
 * The order: blocks of `width` ports stacked along time, read along anti-diagonals from the highest row down (skewed)
 * or row by row. Places without a request keep their place in the DRAM lines but are in no set. */
static void walk_load(hwq_read_buffer *b, hwq_cursor *c, int64_t words, uint32_t keep, uint32_t value) {
    const int64_t rows = ceil_div(b->spatial_n, b->width) * b->temporal_n;
    while (words > 0) {
        const int64_t block = c->band / b->temporal_n * b->width;
        const int64_t limit = b->spatial_n - block < b->width ? b->spatial_n - block : b->width;
        const uint32_t base = b->temporal[c->band % b->temporal_n];
        for (; c->row < limit && words > 0; c->row++) {
            uint32_t *entry = &b->seen[b->spatial[block + c->row] + base];
            if (*entry & HWQ_NOTHING) continue;
            *entry = (*entry & keep) + value;
            words--;
        }
        if (c->row < limit) return;
        c->row = 0;
        if (++c->band == rows) c->band = 0;
    }
}

static void walk_skewed(hwq_read_buffer *b, hwq_cursor *c, int64_t words, uint32_t keep, uint32_t value) {
    const int64_t rows = ceil_div(b->spatial_n, b->width) * b->temporal_n;
    while (words > 0) {
        const int64_t lowest = c->band - b->width + 1 > 0 ? c->band - b->width + 1 : 0;
        int64_t block = c->row / b->temporal_n, step = c->row % b->temporal_n;
        for (; c->row >= lowest && words > 0; c->row--) {
            const int64_t at = block * b->width + c->band - c->row;
            if (at < b->spatial_n) {
                uint32_t *entry = &b->seen[b->spatial[at] + b->temporal[step]];
                if (!(*entry & HWQ_NOTHING)) {
                    *entry = (*entry & keep) + value;
                    words--;
                }
            }
            if (--step < 0) {
                step = b->temporal_n - 1;
                block--;
            }
        }
        if (c->row >= lowest) return;
        if (++c->band == rows + b->width - 1) c->band = 0;
        c->row = c->band < rows ? c->band : rows - 1;
    }
}

static void walk(hwq_read_buffer *b, hwq_cursor *c, int64_t first_set, int64_t sets, uint32_t keep, uint32_t value) {
    int64_t words = sets * b->set_words;
    const int64_t last = b->sets - 1;
    if (first_set + sets > last && first_set <= last) words -= b->set_words - b->last_set_words;
    b->work += words;
    if (b->skewed) walk_skewed(b, c, words, keep, value);
    else walk_load(b, c, words, keep, value);
}

void hwq_prefetch_open(hwq_read_buffer *b, int64_t sram_words, int64_t bandwidth) {
    const int64_t half = ceil_div(sram_words, 2), rest = sram_words - half;
    const int64_t places = ceil_div(b->spatial_n, b->width) * b->width * b->temporal_n;
    const int64_t all_lines = ceil_div(places, bandwidth);
    int64_t lines = ceil_div(half, bandwidth);
    if (lines > all_lines) lines = all_lines;
    b->bandwidth = bandwidth;
    b->set_words = ceil_div(sram_words, 100);
    b->sets = b->valid_words / b->set_words + 1; /* the last one may be empty */
    b->last_set_words = b->valid_words % b->set_words;
    b->active = ceil_div(half, b->set_words);
    if (b->active > b->sets) b->active = b->sets;
    b->prefetch = ceil_div(rest, b->set_words);
    if (b->prefetch > b->sets - b->active) b->prefetch = b->sets - b->active;
    b->miss_cycles = ceil_div(rest, bandwidth);
    b->first_set = 0;
    b->last_answer = -1; /* the active part has arrived before cycle 0 */
    b->dram_start = -lines;
    b->dram_words = lines * bandwidth;
    b->always = b->active == b->sets;
    b->leaving = b->entering = (hwq_cursor){0, 0};
    b->once = b->distinct == b->valid_words;
    if (b->always) return;
    if (!b->once) {
        walk(b, &b->entering, 0, b->active, UINT32_MAX, 1);
        return;
    }
    for (int64_t set = 0; set < b->sets; set++) walk(b, &b->entering, set, 1, 0, (uint32_t)set);
}

/* The window slides by `prefetch` sets round the fetch order: by no more than leave room for, so that the sets that
 * leave, those that stay and those that enter are different ones. An address that occurs once keeps the number of its
 * set; one that occurs in several keeps how many of its copies the window holds. */
static void slide(hwq_read_buffer *b) {
    if (!b->once) {
        walk(b, &b->leaving, b->first_set, b->prefetch, UINT32_MAX, UINT32_MAX);
        walk(b, &b->entering, (b->first_set + b->active) % b->sets, b->prefetch, UINT32_MAX, 1);
    }
    b->first_set += b->prefetch;
    if (b->first_set >= b->sets) b->first_set -= b->sets;
    b->last_answer += b->miss_cycles + PORT_LATENCY;
    b->dram_words += b->miss_cycles * b->bandwidth;
    b->work++;
}

static int hits(const hwq_read_buffer *b, uint32_t entry) {
    if (!b->once) return entry != 0;
    if (entry & HWQ_NOTHING) return 1;
    const int64_t distance = (int64_t)entry - b->first_set;
    return (distance < 0 ? distance + b->sets : distance) < b->active;
}

int64_t hwq_prefetch_serve(hwq_read_buffer *b, int64_t lo, int64_t hi, int64_t s, int64_t t, int64_t cycle) {
    const uint32_t *spatial = b->spatial + s;
    const int64_t step = b->skewed ? 1 : 0;
    const uint32_t *temporal = b->temporal + t - lo * step;
    int64_t offset = 1; /* hit latency */
    for (int64_t p = lo; p <= hi; p++, temporal -= step) {
        const uint32_t *entry = &b->seen[spatial[p] + *temporal];
        while (!hits(b, *entry)) {
            slide(b);
            /* Issue #130 of the tool: the wait is added also when it is negative, and once more when positive. */
            const int64_t wait = b->last_answer - (cycle + offset);
            offset += wait;
            if (wait > 0) offset += wait;
        }
    }
    return offset - 1;
}
