/* What the step loop hands to a step: its addresses, and the units that this thread takes of it. */
#ifndef HWQ_PROGRAM_PART_H
#define HWQ_PROGRAM_PART_H
#include "hwq/program.h"

typedef struct {
    const char *a, *b;
    char *out;
    void *scale, *zero_point;
    void *workspace;
    int64_t first, last; /* this thread's units; first < last */
    int rows;            /* products: units are rows, not strips */
} hwq_part;

/* program_modes.c; the workspace of a normalization holds one row before and one behind it */
void hwq_run_scaled(const hwq_step *s, const hwq_part *p);
void hwq_run_split(const hwq_step *s, const hwq_part *p);
void hwq_run_join(const hwq_step *s, const hwq_part *p);
void hwq_run_norm(const hwq_step *s, const hwq_part *p);
void hwq_run_phases(const hwq_step *s, const hwq_part *p);
int64_t hwq_scaled_workspace(const hwq_step *s);
int64_t hwq_norm_workspace(const hwq_step *s);

#endif
