/* The output buffer of SCALE-Sim 3.0.0: half of it drains, one line a cycle, while the other half fills. */
#include <stdlib.h>

#include "scalesim.h"

void hwq_write_open(hwq_write_buffer *b, int64_t sram_words, int64_t line_words) {
    *b = (hwq_write_buffer){0};
    b->size = b->free = sram_words;
    b->half = sram_words / 2;
    b->line_words = line_words;
    b->first_drain = INT64_MAX;
    b->last_drain = INT64_MIN;
}

void hwq_write_free(hwq_write_buffer *b) { free(b->queue); }

static void close_line(hwq_write_buffer *b) {
    if (b->filled == 0) return;
    if (b->tail == b->capacity) {
        /* Drop what has been drained before growing: the queue stays as long as the backlog. */
        for (int64_t i = b->head; i < b->tail; i++) b->queue[i - b->head] = b->queue[i];
        b->tail -= b->head;
        b->head = 0;
        if (b->tail * 2 >= b->capacity) {
            const int64_t capacity = b->capacity ? 2 * b->capacity : 64;
            hwq_short_line *grown = realloc(b->queue, (size_t)capacity * sizeof *grown);
            if (grown == NULL) {
                b->failed = 1;
                return;
            }
            b->queue = grown;
            b->capacity = capacity;
        }
    }
    b->queue[b->tail++] = (hwq_short_line){b->lines++, b->line_words - b->filled};
    b->filled = 0;
}

/* Drain up to half the buffer from `cycle` on. A padded line counts its padding as written unless it is the last. */
static void drain(hwq_write_buffer *b, int64_t cycle) {
    int64_t lines = (b->half + b->line_words - 1) / b->line_words;
    if (lines > b->lines - b->drained) lines = b->lines - b->drained;
    int64_t words = lines * b->line_words;
    b->drained += lines;
    for (; b->head < b->tail && b->queue[b->head].line < b->drained; b->head++)
        if (b->queue[b->head].line == b->drained - 1) words -= b->queue[b->head].padding;
    b->written += words;
    b->free += words;
    b->drain_end = cycle + lines - 1;
    if (cycle < b->first_drain) b->first_drain = cycle;
    if (b->drain_end > b->last_drain) b->last_drain = b->drain_end;
}

static void fill(hwq_write_buffer *b, int64_t words) {
    b->free -= words;
    b->filled += words;
    if (b->filled >= b->line_words) {
        b->lines += b->filled / b->line_words;
        b->filled %= b->line_words;
    }
}

int64_t hwq_write_serve(hwq_write_buffer *b, int64_t words, int64_t cycle) {
    if (cycle < b->drain_end ? b->free - words > 0 : b->free - words >= b->size - b->half) {
        fill(b, words); /* no word of this cycle can wait or start a drain */
        return 0;
    }
    int64_t now = cycle;
    for (int64_t i = 0; i < words && !b->failed; i++) {
        fill(b, 1);
        if (now < b->drain_end) {
            if (b->free <= 0) now = b->drain_end;
        } else if (b->free < b->size - b->half) {
            close_line(b);
            drain(b, now);
        }
    }
    return now - cycle;
}

void hwq_write_flush(hwq_write_buffer *b, int64_t cycle) {
    close_line(b);
    while (b->drained < b->lines && !b->failed) {
        drain(b, cycle);
        cycle = b->drain_end + 1;
    }
}
