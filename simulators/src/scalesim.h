/* Parts of the SCALE-Sim memory model: two read buffers (one per operand) and the write buffer. */
#ifndef HWQ_SCALESIM_H
#define HWQ_SCALESIM_H

#include "hwq/simulators.h"

/* A word's address is spatial[port's index] + temporal[step's index]: every operand of every dataflow has this form.
 * `seen` has one entry per address. A tap beyond the input's edge makes no request: its entry is HWQ_NOTHING for ever,
 * which reads as "present" in both buffers. */
#define HWQ_NOTHING UINT32_C(0x80000000)

typedef struct {
    int64_t band, row; /* anti-diagonal and row in it, or row and column */
} hwq_cursor;

typedef struct {
    const uint32_t *spatial, *temporal;
    uint32_t *seen;
    int64_t addresses;           /* entries of seen */
    int64_t spatial_n, temporal_n, width; /* table lengths; ports */
    int64_t valid_words, distinct; /* words in the operand that are requests; different addresses among them */
    int skewed;                  /* streamed with a skew, else loaded row by row before the stream */
    int always;                  /* no access can miss: nothing to look up */
    int64_t work;                /* words moved through the window (for the budget) */
    int64_t sram_start, sram_stop, sram_words, dram_start, dram_stop, dram_words;
    /* CALC: a window of distinct addresses, emptied when full. */
    uint32_t epoch;
    int64_t window, held, first_request, last_end, fills;
    /* USER: sets of the fetch order, a circular window of them. */
    int64_t bandwidth, set_words, sets, last_set_words, active, prefetch, first_set, miss_cycles, last_answer;
    int once; /* every address occurs once: seen holds its set, else its copies in the window */
    hwq_cursor leaving, entering;
} hwq_read_buffer;

void hwq_estimate_open(hwq_read_buffer *buffer, int64_t sram_words);
void hwq_estimate_close(hwq_read_buffer *buffer, int64_t sram_words);
void hwq_prefetch_open(hwq_read_buffer *buffer, int64_t sram_words, int64_t bandwidth);
/* Serve ports lo..hi of one cycle: port p asks spatial[s + p] + temporal[t - p] (skewed) or + temporal[t] (load).
 * Return the stall in cycles, which USER mode may make negative. */
int64_t hwq_estimate_serve(hwq_read_buffer *buffer, int64_t lo, int64_t hi, int64_t s, int64_t t, int64_t cycle);
int64_t hwq_prefetch_serve(hwq_read_buffer *buffer, int64_t lo, int64_t hi, int64_t s, int64_t t, int64_t cycle);

typedef struct {
    int64_t line, padding;
} hwq_short_line;

typedef struct {
    int64_t size, half, line_words, free;  /* words */
    int64_t filled, lines, drained;        /* words in the open line; closed lines; of them drained */
    int64_t drain_end, first_drain, last_drain, written;
    hwq_short_line *queue;                 /* padded lines not yet drained, oldest first */
    int64_t head, tail, capacity;
    int failed;                            /* the queue could not grow */
} hwq_write_buffer;

void hwq_write_open(hwq_write_buffer *buffer, int64_t sram_words, int64_t line_words);
/* Take `words` words in `cycle`; return the stall in cycles. */
int64_t hwq_write_serve(hwq_write_buffer *buffer, int64_t words, int64_t cycle);
void hwq_write_flush(hwq_write_buffer *buffer, int64_t cycle);
void hwq_write_free(hwq_write_buffer *buffer);

#endif
