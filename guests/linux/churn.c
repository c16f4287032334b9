// Threads of one process on all CPUs that change their page tables all the time: `churn CPUS ROUNDS`.
//
// Alone, each thread maps, protects and unmaps memory of its own, while the others do the same to the same tables.
// Together, one thread changes a page that all have just read, and then no other may still have it as it was: a
// translation that outlives the change, on whatever host, shows.

#include <setjmp.h>
#include <signal.h>

#include "threads.h"

enum { PAGES = 4 };

// How a page changes, in turn.
enum { HIDDEN, READ_ONLY, REPLACED, UNMAPPED, CHANGES };

static int cpus;
static uint64_t rounds;
static pthread_barrier_t barrier;
static volatile uint64_t *page;
static __thread sigjmp_buf back;

static void caught(int signal)
{
    siglongjmp(back, signal);
}

static int read_faults(volatile uint64_t *at, uint64_t *value)
{
    if (sigsetjmp(back, 1))
        return 1;
    *value = *at;
    return 0;
}

static int write_faults(volatile uint64_t *at, uint64_t value)
{
    if (sigsetjmp(back, 1))
        return 1;
    *at = value;
    return 0;
}

static void protect(volatile uint64_t *at, size_t len, int rights)
{
    if (mprotect((void *)at, len, rights))
        fail("mprotect: %s", strerror(errno));
}

static void alone(int cpu)
{
    for (uint64_t round = 0; round < rounds; round++) {
        uint64_t *own = memory(PAGES * PAGE, MAP_PRIVATE);
        for (int i = 0; i < PAGES; i++)
            own[i * PAGE / 8] = round * 100 + (uint64_t)cpu;
        protect(own, PAGES * PAGE, PROT_READ);
        if (!write_faults(own, 1))
            fail("CPU %d, round %llu: a write to memory that is read-only", cpu, (unsigned long long)round);
        for (int i = 0; i < PAGES; i++)
            if (own[i * PAGE / 8] != round * 100 + (uint64_t)cpu)
                fail("CPU %d, round %llu: %llu in page %d", cpu, (unsigned long long)round,
                     (unsigned long long)own[i * PAGE / 8], i);
        if (munmap(own, PAGES * PAGE))
            fail("munmap: %s", strerror(errno));
    }
}

// The change of a round, and whether all have seen it.
static void change(uint64_t round)
{
    const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED;
    switch (round % CHANGES) {
    case HIDDEN:
        protect(page, PAGE, PROT_NONE);
        break;
    case READ_ONLY:
        protect(page, PAGE, PROT_READ);
        break;
    case REPLACED:
        if (mmap((void *)page, PAGE, PROT_READ | PROT_WRITE, flags, -1, 0) != page)
            fail("mmap over a page: %s", strerror(errno));
        *page = ~round;
        break;
    default:
        if (munmap((void *)page, PAGE))
            fail("munmap: %s", strerror(errno));
    }
}

static void look(int cpu, uint64_t round)
{
    uint64_t value = 0;
    const int gone = read_faults(page, &value);
    switch (round % CHANGES) {
    case READ_ONLY:
        if (gone || value != round || !write_faults(page, 1))
            fail("CPU %d, round %llu: a page made read-only", cpu, (unsigned long long)round);
        break;
    case REPLACED:
        if (gone || value != ~round)
            fail("CPU %d, round %llu: another page: %llu", cpu, (unsigned long long)round, (unsigned long long)value);
        break;
    default:
        if (!gone)
            fail("CPU %d, round %llu: a page that is gone: %llu", cpu, (unsigned long long)round,
                 (unsigned long long)value);
    }
}

static void together(int cpu)
{
    for (uint64_t round = 0; round < rounds * CHANGES; round++) {
        const int mine = (int)(round / CHANGES % (uint64_t)cpus) == cpu;
        if (mine) {
            page = memory(PAGE, MAP_PRIVATE);
            *page = round;
        }
        pthread_barrier_wait(&barrier);
        if (*page != round)
            fail("CPU %d, round %llu: a new page: %llu", cpu, (unsigned long long)round, (unsigned long long)*page);
        pthread_barrier_wait(&barrier);
        if (mine)
            change(round);
        pthread_barrier_wait(&barrier);
        look(cpu, round);
        // The next page may be another thread's, and be made at once.
        volatile uint64_t *const old = page;
        pthread_barrier_wait(&barrier);
        if (mine && round % CHANGES != UNMAPPED)
            munmap((void *)old, PAGE);
    }
}

int main(int argc, char **argv)
{
    if (argc != 3)
        fail("usage: churn CPUS ROUNDS");
    setvbuf(stdout, NULL, _IOLBF, 0);
    cpus = cpus_of(argv[1]);
    rounds = number(argv[2]);
    struct sigaction action = {.sa_handler = caught};
    sigaction(SIGSEGV, &action, NULL);
    pthread_barrier_init(&barrier, NULL, (unsigned)cpus);
    in_threads("churn alone", cpus, alone);
    printf("churn: cpus=%d rounds=%llu alone\n", cpus, (unsigned long long)rounds);
    in_threads("churn together", cpus, together);
    printf("churn: cpus=%d rounds=%llu together\n", cpus, (unsigned long long)rounds * CHANGES);
    return 0;
}
