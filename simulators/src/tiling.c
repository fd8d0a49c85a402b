/* The tiling of a matrix product that moves the fewest bytes between DRAM and an on-chip buffer: an exhaustive search.
 *
 * A[M, K] @ B[K, N] is cut into ceil(M / Tm) x ceil(K / Tk) x ceil(N / Tn) tiles; three loops over them stand in one of six
 * orders. A tile stays while the loops inside only run over indices that it does not have. Bytes depend on the number of
 * tiles alone, and room on their size, so of all sizes that give a number only the smallest matters: ceil(size / number),
 * some 2 sqrt(size) candidates a dimension. Along K fewer tiles never move more bytes, so the largest that fits is best.
 */
#include <stddef.h>

#include "hwq/simulators.h"

static int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

__extension__ typedef unsigned __int128 wide;

/* ceil(bytes * part / whole); the product needs up to 2^41 * 2^62. */
static int64_t share(int64_t bytes, int64_t part, int64_t whole) {
    if (part >= whole) return bytes;
    if (bytes < INT64_C(1) << 31 && part < INT64_C(1) << 31) return bytes * part / whole + (bytes * part % whole != 0);
    return (int64_t)(((wide)bytes * (uint64_t)part + (uint64_t)whole - 1) / (uint64_t)whole);
}

static int64_t in_bursts(int64_t bytes, int64_t burst) { return ceil_div(bytes, burst) * burst; }

int64_t hwq_tiling_room(const hwq_tiling_gemm *g, int64_t tm, int64_t tk, int64_t tn) {
    const int one_m = tm >= g->m, one_k = tk >= g->k, one_n = tn >= g->n;
    int64_t room = 0; /* at most 3 * 2 * 2^41 */
    if (!g->a_stays) room += (one_m && one_k ? 1 : 2) * share(g->a_bytes, tm * tk, g->m * g->k);
    if (!g->b_stays) room += (one_k && one_n ? 1 : 2) * share(g->b_bytes, tk * tn, g->k * g->n);
    if (!g->out_stays) room += (one_m && one_n ? 1 : 2) * share(one_k ? g->out_bytes : g->sum_bytes, tm * tn, g->m * g->n);
    return room;
}

/* Loops of each order, outermost first. */
enum { LOOP_M, LOOP_K, LOOP_N };
static const unsigned char ORDERS[6][3] = {{LOOP_M, LOOP_N, LOOP_K}, {LOOP_N, LOOP_M, LOOP_K}, {LOOP_M, LOOP_K, LOOP_N},
                                           {LOOP_K, LOOP_M, LOOP_N}, {LOOP_N, LOOP_K, LOOP_M}, {LOOP_K, LOOP_N, LOOP_M}};

/* How often an operand without the index `other` passes: once for each step of that loop, if one of its own runs inside. */
static int64_t passes(const unsigned char order[3], const int64_t trips[3], int other) {
    int inside = 0;
    for (int at = 2; order[at] != other; at--) inside |= trips[order[at]] > 1;
    return inside ? trips[other] : 1;
}

static void weigh(const hwq_tiling_gemm *g, int64_t burst, const int64_t trips[3], int order, hwq_tiling *found) {
    found->order = order;
    found->a_passes = passes(ORDERS[order], trips, LOOP_N);
    found->b_passes = passes(ORDERS[order], trips, LOOP_M);
    found->sum_passes = passes(ORDERS[order], trips, LOOP_K);
    found->a_moved = g->a_stays ? 0 : found->a_passes * in_bursts(g->a_bytes, burst);
    found->b_moved = g->b_stays ? 0 : found->b_passes * in_bursts(g->b_bytes, burst);
    found->out_moved = g->out_stays ? 0 : in_bursts(g->out_bytes, burst);
    /* All passes but the last leave sums behind, all but the first fetch them. */
    found->sum_moved = g->out_stays ? 0 : 2 * (found->sum_passes - 1) * in_bursts(g->sum_bytes, burst);
}

static int64_t total(const hwq_tiling *t) { return t->a_moved + t->b_moved + t->out_moved + t->sum_moved; }

/* The next smaller candidate: the largest size that needs more tiles. */
static int64_t next_size(int64_t size, int64_t tile) {
    if (tile <= 1) return 0;
    const int64_t trips = ceil_div(size, tile - 1);
    return ceil_div(size, trips);
}

/* The largest candidate below k that fits beside tm and tn, or 0. */
static int64_t deepest(const hwq_tiling_gemm *g, int64_t capacity, int64_t tm, int64_t tn) {
    int64_t low = 0, high = g->k - 1;
    while (low < high) { /* room rises with tk as long as tk < k */
        const int64_t middle = low + (high - low + 1) / 2;
        if (hwq_tiling_room(g, tm, middle, tn) <= capacity) low = middle;
        else high = middle - 1;
    }
    return low == 0 ? 0 : ceil_div(g->k, ceil_div(g->k, low));
}

/* Any depth fits beside tm and tn: one element of k, or all of it. */
static int fits(const hwq_tiling_gemm *g, int64_t capacity, int64_t tm, int64_t tn) {
    return hwq_tiling_room(g, tm, 1, tn) <= capacity || hwq_tiling_room(g, tm, g->k, tn) <= capacity;
}

/* The largest candidate of n for which any depth fits, or 0. Above it, no tile is worth a look. */
static int64_t widest(const hwq_tiling_gemm *g, int64_t capacity, int64_t tm) {
    if (fits(g, capacity, tm, g->n)) return g->n;
    int64_t low = 0, high = g->n - 1;
    while (low < high) { /* room rises with tn as long as tn < n */
        const int64_t middle = low + (high - low + 1) / 2;
        if (fits(g, capacity, tm, middle)) low = middle;
        else high = middle - 1;
    }
    return low == 0 ? 0 : ceil_div(g->n, ceil_div(g->n, low));
}

/* No order moves less with these numbers of tiles: with several rows and columns of them, A or B must pass again. */
static double least(const hwq_tiling *once, int64_t rows, int64_t cols) {
    const double a = (double)once->a_moved, b = (double)once->b_moved, out = (double)once->out_moved;
    if (rows == 1 || cols == 1) return a + b + out;
    const double keep_a = a + (double)rows * b, keep_b = (double)cols * a + b;
    return out + (keep_a < keep_b ? keep_a : keep_b);
}

#define MAX_SIZE (INT64_C(1) << 31)
#define MAX_BYTES (INT64_C(1) << 41)

static int check(const hwq_tiling_gemm *g, int64_t capacity, int64_t burst) {
    const int64_t bytes[4] = {g->a_bytes, g->b_bytes, g->out_bytes, g->sum_bytes};
    for (int i = 0; i < 4; i++)
        if (bytes[i] < 0 || bytes[i] > MAX_BYTES) return 0;
    return g->m >= 1 && g->k >= 1 && g->n >= 1 && g->m < MAX_SIZE && g->k < MAX_SIZE && g->n < MAX_SIZE && capacity >= 0 &&
           burst >= 1 && burst <= MAX_BYTES;
}

hwq_sim_status hwq_tiling_search(const hwq_tiling_gemm *g, int64_t capacity, int64_t burst, hwq_tiling *best) {
    if (!check(g, capacity, burst)) return HWQ_SIM_BAD_ARGUMENT;
    const int64_t whole[3] = {1, 1, 1};
    hwq_tiling once;
    weigh(g, burst, whole, 0, &once); /* compulsory: every operand once */
    int64_t found = INT64_MAX;
    for (int64_t tm = g->m; tm > 0; tm = next_size(g->m, tm)) {
        const int64_t rows = ceil_div(g->m, tm);
        for (int64_t tn = widest(g, capacity, tm); tn > 0; tn = next_size(g->n, tn)) {
            const int64_t cols = ceil_div(g->n, tn);
            if (found < INT64_MAX && cols > 1 && least(&once, rows, cols) >= (double)found) break; /* it rises with cols */
            const int all_deep = hwq_tiling_room(g, tm, g->k, tn) <= capacity;
            const int64_t tk = all_deep ? g->k : deepest(g, capacity, tm, tn);
            if (tk == 0) continue;
            const int64_t trips[3] = {rows, ceil_div(g->k, tk), cols};
            /* Bytes fit 62 bits: 2^31 passes of 2^41 would not, so such a tiling is passed over. */
            if ((double)trips[0] * (double)g->b_bytes + (double)trips[2] * (double)g->a_bytes +
                    2.0 * (double)trips[1] * (double)g->sum_bytes +
                    4.0 * (double)burst * (double)(trips[0] + trips[1] + trips[2]) >
                4e18)
                continue;
            for (int order = 0; order < 6; order++) {
                hwq_tiling one = {tm, tk, tn, 0, 0, 0, 0, 0, 0, 0, 0};
                weigh(g, burst, trips, order, &one);
                if (total(&one) < found) {
                    found = total(&one);
                    *best = one;
                }
            }
            if (found == total(&once)) return HWQ_SIM_OK;
            if (all_deep) break; /* narrower tiles only add columns */
        }
    }
    return found == INT64_MAX ? HWQ_SIM_TOO_LARGE : HWQ_SIM_OK;
}
