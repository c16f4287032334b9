// Pages that Linux copies when they are written, and pages that it swaps out, used on all CPUs: `pages CPUS PAGES`.

#include "threads.h"

#ifndef MADV_PAGEOUT
#define MADV_PAGEOUT 21
#endif

static int cpus;
static uint64_t pages;
static uint64_t *words;
static pthread_barrier_t *barrier;

static uint64_t *word(uint64_t page)
{
    return &words[page * PAGE / 8 + page % (PAGE / 8)];
}

static uint64_t pattern(uint64_t page, int who)
{
    return page * 0x9e3779b97f4a7c15u + (uint64_t)who;
}

static void fill(int who)
{
    for (uint64_t page = 0; page < pages; page++)
        *word(page) = pattern(page, who);
}

static void check(const char *what, int cpu, int who)
{
    for (uint64_t page = 0; page < pages; page++)
        if (*word(page) != pattern(page, who))
            fail("%s: CPU %d, page %llu: %llx", what, cpu, (unsigned long long)page, (unsigned long long)*word(page));
}

// The parent's pages are there, and stay there, whatever the children write to theirs.
static void child(int cpu)
{
    check("before it wrote", cpu, CPUS_MAX);
    fill(cpu);
    pthread_barrier_wait(barrier);
    check("after all wrote", cpu, cpu);
}

static uint64_t swapped_kib(void)
{
    FILE *status = fopen("/proc/self/status", "r");
    char line[128];
    unsigned long long kib = 0;
    while (status && fgets(line, sizeof line, status))
        if (sscanf(line, "VmSwap: %llu kB", &kib) == 1)
            break;
    if (status)
        fclose(status);
    return kib;
}

// Each CPU in turn writes all pages and has them swapped out; then all CPUs read them in.
static void swap(int cpu)
{
    for (int writer = 0; writer < cpus; writer++) {
        if (cpu == writer) {
            fill(writer);
            if (madvise(words, pages * PAGE, MADV_PAGEOUT))
                fail("MADV_PAGEOUT: %s", strerror(errno));
            const uint64_t out_kib = swapped_kib();
            if (out_kib < pages * PAGE / 1024 / 2)
                fail("swap: CPU %d: only %llu KiB are out", cpu, (unsigned long long)out_kib);
        }
        pthread_barrier_wait(barrier);
        check("swapped in", cpu, writer);
        pthread_barrier_wait(barrier);
    }
}

int main(int argc, char **argv)
{
    if (argc != 3)
        fail("usage: pages CPUS PAGES");
    setvbuf(stdout, NULL, _IOLBF, 0);
    cpus = cpus_of(argv[1]);
    pages = number(argv[2]);
    words = memory(pages * PAGE, MAP_PRIVATE);
    barrier = memory(PAGE, MAP_SHARED);
    pthread_barrierattr_t attributes;
    pthread_barrierattr_init(&attributes);
    pthread_barrierattr_setpshared(&attributes, PTHREAD_PROCESS_SHARED);
    pthread_barrier_init(barrier, &attributes, (unsigned)cpus);
    fill(CPUS_MAX);
    on_every_cpu("copy-on-write", cpus, child);
    check("the parent", -1, CPUS_MAX);
    printf("copy-on-write: cpus=%d pages=%llu\n", cpus, (unsigned long long)pages);
    in_threads("swap", cpus, swap);
    printf("swap: cpus=%d pages=%llu\n", cpus, (unsigned long long)pages);
    return 0;
}
