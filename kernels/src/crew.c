/* Waiting threads: a short look at the job counter, then sleep. The barrier at the end of hwq_program_run keeps the caller
 * from changing a job that a thread still reads. */
#include "hwq/crew.h"

#include <stdatomic.h>

enum { LOOKS = 20000 }; /* some tens of microseconds: layers of one model follow each other faster than that */

int hwq_crew_open(hwq_crew *crew, int32_t threads)
{
    crew->threads = threads;
    if (pthread_mutex_init(&crew->lock, NULL)) return -1;
    if (pthread_cond_init(&crew->wake, NULL)) {
        pthread_mutex_destroy(&crew->lock);
        return -1;
    }
    return 0;
}

static int ready(hwq_crew *crew, int64_t seen)
{
    return atomic_load_explicit(&crew->job, memory_order_acquire) != seen || atomic_load_explicit(&crew->stop, memory_order_acquire);
}

void hwq_crew_serve(hwq_crew *crew, int32_t thread)
{
    for (int64_t seen = 0;; seen++) {
        for (int look = 0; look < LOOKS && !ready(crew, seen); look++) {}
        if (!ready(crew, seen)) {
            pthread_mutex_lock(&crew->lock);
            while (!ready(crew, seen)) pthread_cond_wait(&crew->wake, &crew->lock);
            pthread_mutex_unlock(&crew->lock);
        }
        if (atomic_load_explicit(&crew->stop, memory_order_acquire)) return;
        hwq_program_run(crew->steps, crew->count, crew->bases, crew->workspaces + thread * crew->workspace_bytes, thread, crew->threads,
                        &crew->barrier);
    }
}

static void announce(hwq_crew *crew, int64_t jobs, int32_t stop)
{
    pthread_mutex_lock(&crew->lock);
    if (stop) atomic_store_explicit(&crew->stop, 1, memory_order_release);
    atomic_fetch_add_explicit(&crew->job, jobs, memory_order_release);
    pthread_cond_broadcast(&crew->wake);
    pthread_mutex_unlock(&crew->lock);
}

void hwq_crew_run(hwq_crew *crew, const hwq_step *steps, int64_t count, void *const *bases, char *workspaces, int64_t workspace_bytes)
{
    crew->steps = steps, crew->count = count, crew->bases = bases;
    crew->workspaces = workspaces, crew->workspace_bytes = workspace_bytes;
    announce(crew, 1, 0);
    hwq_program_run(steps, count, bases, workspaces, 0, crew->threads, &crew->barrier);
}

void hwq_crew_stop(hwq_crew *crew) { announce(crew, 0, 1); }

void hwq_crew_close(hwq_crew *crew)
{
    pthread_cond_destroy(&crew->wake);
    pthread_mutex_destroy(&crew->lock);
}
