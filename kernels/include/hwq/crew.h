/* A crew: threads that wait in the caller's memory to run programs together with the caller. POSIX threads only; the crew
 * starts none itself: whoever owns threads sends them into hwq_crew_serve. */
#ifndef HWQ_CREW_H
#define HWQ_CREW_H
#include "hwq/program.h"
#include <pthread.h>

typedef struct {
    pthread_mutex_t lock;
    pthread_cond_t wake;
    _Atomic int64_t job;         /* counts calls; none is skipped, as a call ends when all have finished it */
    _Atomic int32_t stop;
    int32_t threads;             /* the caller included */
    const hwq_step *steps;
    int64_t count;
    void *const *bases;
    char *workspaces;            /* thread t's begins at t * workspace_bytes */
    int64_t workspace_bytes;
    hwq_barrier barrier;
} hwq_crew;

int hwq_crew_open(hwq_crew *crew, int32_t threads);   /* 0, or -1 where the system has no more locks */
void hwq_crew_serve(hwq_crew *crew, int32_t thread);  /* of thread 1 .. threads - 1: returns after hwq_crew_stop */
/* hwq_program_run by the caller as thread 0 and every serving thread; returns when all have finished. */
void hwq_crew_run(hwq_crew *crew, const hwq_step *steps, int64_t count, void *const *bases, char *workspaces, int64_t workspace_bytes);
void hwq_crew_stop(hwq_crew *crew);
void hwq_crew_close(hwq_crew *crew);                  /* after every hwq_crew_serve has returned */

#endif
