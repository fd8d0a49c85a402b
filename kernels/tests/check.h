/* One harness for every op: each path against ref, ref against a plain reading, in buffers that end at a guard page. */
#ifndef HWQ_CHECK_H
#define HWQ_CHECK_H
#include "epilogue.h"
#include "isa.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- Random data: xorshift64*, seeded per op, so that a failure repeats ---- */
extern uint64_t check_seed;
static inline uint64_t draw(void)
{
    check_seed ^= check_seed >> 12, check_seed ^= check_seed << 25, check_seed ^= check_seed >> 27;
    return check_seed * UINT64_C(2685821657736338717);
}
static inline int64_t between(int64_t lo, int64_t hi) { return lo + (int64_t)((draw() >> 11) % (uint64_t)(hi - lo + 1)); }
static inline float real(void) { return (float)((double)(int64_t)draw() * 0x1p-63); }

/* What bytes look like: random, all lowest, all highest, alternating extremes, signed -128, unsigned 255. */
enum { FILLS = 5 };
void fill_bytes(void *to, int64_t n, int how);

/* ---- Guarded buffers: the last byte stands before an unreadable page, 64 known bytes stand before the first ---- */
typedef struct {
    char *pages;
    size_t length;
    void *data;
    size_t bytes;
} guarded;
guarded guard(size_t bytes, size_t shift); /* shift: bytes left free before the page, so data is unaligned by choice */
void check_guard(const guarded *buffer);   /* fails if the bytes around were written; frees */

/* ---- Verdicts ---- */
void check_begin(const char *op, int path);
void check_equal(const void *got, const void *want, size_t bytes, const char *what);
void check_true(int condition, const char *what);

/* Run `body` for every wanted path of this CPU; `path` is its number, and the path is chosen. */
#define EACH_PATH(path)                                                                                                       \
    for (int path = 0; path < hwq_path_count(); path++)                                                                       \
        if (check_wanted(path) && hwq_path_choose(path) == 0)

/* --only names the paths that are wanted; all are, without it. --brief: fewer of the repetitions that bring no new tail or
 * edge, for emulators. */
int check_wanted(int path);
extern int check_brief;

/* ---- The files of checks ---- */
void check_paths(void);
void check_gemm(void);
void check_s4(void);
void check_f32s8(void);
void check_float(void);
void check_requantize(void);
void check_window(void);
void check_elementwise(void);
void check_int16(void);
void check_half(void);
void check_program(void);
void check_modes(void);
void check_state(void);
void time_ops(void);

#endif
