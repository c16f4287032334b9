// Threads of one process, one on each CPU.
#pragma once

#include <pthread.h>

#include "common.h"

struct on_cpu {
    int cpu;
    void (*work)(int cpu);
};

static inline void *thread_on_cpu(void *argument)
{
    const struct on_cpu *it = argument;
    stay_on(it->cpu);
    it->work(it->cpu);
    if (sched_getcpu() != it->cpu)
        fail("a thread moved from CPU %d to %d", it->cpu, sched_getcpu());
    return NULL;
}

// Runs `work` on every CPU at once, in a thread each.
static inline void in_threads(const char *name, int cpus, void (*work)(int cpu))
{
    pthread_t threads[CPUS_MAX];
    struct on_cpu arguments[CPUS_MAX];
    const uint64_t start = now_ns();
    for (int cpu = 0; cpu < cpus; cpu++) {
        arguments[cpu] = (struct on_cpu){cpu, work};
        const int error = pthread_create(&threads[cpu], NULL, thread_on_cpu, &arguments[cpu]);
        if (error)
            fail("pthread_create: %s", strerror(error));
    }
    for (int cpu = 0; cpu < cpus; cpu++)
        pthread_join(threads[cpu], NULL);
    printf("# %s: %llu ms\n", name, (unsigned long long)((now_ns() - start) / 1000000));
}
