// What the programs of the Linux guest have in common.
#pragma once

#include <errno.h>
#include <sched.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { PAGE = 4096, CPUS_MAX = 64 };

static inline _Noreturn void fail(const char *format, ...)
{
    char text[256];
    va_list list;
    va_start(list, format);
    vsnprintf(text, sizeof text, format, list);
    va_end(list);
    printf("FAILED: %s\n", text);
    fflush(stdout);
    _exit(1);
}

static inline uint64_t now_ns(void)
{
    struct timespec time;
    if (clock_gettime(CLOCK_MONOTONIC, &time))
        fail("clock_gettime: %s", strerror(errno));
    return (uint64_t)time.tv_sec * 1000000000u + (uint64_t)time.tv_nsec;
}

// Keeps the calling thread on a CPU.
static inline void stay_on(int cpu)
{
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET((size_t)cpu, &set);
    if (sched_setaffinity(0, sizeof set, &set))
        fail("CPU %d: sched_setaffinity: %s", cpu, strerror(errno));
    if (sched_getcpu() != cpu)
        fail("on CPU %d instead of %d", sched_getcpu(), cpu);
}

static inline void await(pid_t child)
{
    int status;
    if (waitpid(child, &status, 0) != child || status != 0)
        fail("a process ended with status %#x", status);
}

// Runs `work` on every CPU at once, in a process each.
static inline void on_every_cpu(const char *name, int cpus, void (*work)(int cpu))
{
    pid_t children[CPUS_MAX];
    const uint64_t start = now_ns();
    for (int cpu = 0; cpu < cpus; cpu++) {
        children[cpu] = fork();
        if (children[cpu] < 0)
            fail("fork: %s", strerror(errno));
        if (children[cpu] == 0) {
            stay_on(cpu);
            work(cpu);
            if (sched_getcpu() != cpu)
                fail("%s: moved from CPU %d to %d", name, cpu, sched_getcpu());
            fflush(stdout);
            _exit(0);
        }
    }
    for (int cpu = 0; cpu < cpus; cpu++)
        await(children[cpu]);
    printf("# %s: %llu ms\n", name, (unsigned long long)((now_ns() - start) / 1000000));
}

static inline uint64_t number(const char *text)
{
    char *end;
    errno = 0;
    const uint64_t value = strtoull(text, &end, 10);
    if (errno || end == text || *end)
        fail("%s is not a number", text);
    return value;
}

// The first argument of all programs.
static inline int cpus_of(const char *text)
{
    const uint64_t cpus = number(text);
    if (cpus < 1 || cpus > CPUS_MAX)
        fail("%s CPUs: 1 to %d can be had", text, CPUS_MAX);
    return (int)cpus;
}

// Zeroed memory, shared with processes that are forked later (MAP_SHARED) or not (MAP_PRIVATE).
static inline void *memory(size_t len, int sharing)
{
    void *at = mmap(NULL, len, PROT_READ | PROT_WRITE, sharing | MAP_ANONYMOUS, -1, 0);
    if (at == MAP_FAILED)
        fail("mmap: %s", strerror(errno));
    return at;
}
