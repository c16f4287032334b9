// Threads of one process on all CPUs, on memory that they share: `primes CPUS LIMIT` counts the primes below LIMIT.
//
// Each thread stays on a CPU and marks its part of the numbers; when all have, it counts the part that the next thread
// has marked, so all that is counted was written by another CPU.

#include "threads.h"

// What one page of page tables covers: a thread that writes its part leaves the tables of the others' alone.
enum { TABLE = 512 * PAGE };

static int cpus;
static uint64_t limit;
static uint8_t *composite;
static pthread_barrier_t marked;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static uint64_t primes;

// The first number of a part.
static uint64_t begin(int part)
{
    return limit * (uint64_t)part / (uint64_t)cpus;
}

// How far apart the bytes of the parts are.
static size_t stride(void)
{
    return (limit / (uint64_t)cpus + TABLE) / TABLE * TABLE;
}

// The bytes of a part, one for each number.
static uint8_t *bytes(int part)
{
    return composite + stride() * (size_t)part;
}

static void mark(uint8_t *part, uint64_t from, uint64_t to)
{
    for (uint64_t n = from; n < to && n < 2; n++)
        part[n - from] = 1;
    for (uint64_t factor = 2; factor * factor < to; factor++) {
        uint64_t multiple = factor * factor;
        if (multiple < from)
            multiple = (from + factor - 1) / factor * factor;
        for (; multiple < to; multiple += factor)
            part[multiple - from] = 1;
    }
}

static void work(int me)
{
    const int other = (me + 1) % cpus;
    mark(bytes(me), begin(me), begin(me + 1));
    pthread_barrier_wait(&marked);
    uint64_t found = 0;
    for (uint64_t n = begin(other); n < begin(other + 1); n++)
        found += !bytes(other)[n - begin(other)];
    unsigned cpu, node;
    if (getcpu(&cpu, &node))
        fail("getcpu: %s", strerror(errno));
    pthread_mutex_lock(&lock);
    primes += found;
    printf("thread %d on CPU %u, NUMA node %u: marked %llu to %llu, found %llu primes in %llu to %llu\n", me, cpu, node,
           (unsigned long long)begin(me), (unsigned long long)begin(me + 1) - 1, (unsigned long long)found,
           (unsigned long long)begin(other), (unsigned long long)begin(other + 1) - 1);
    pthread_mutex_unlock(&lock);
}

int main(int argc, char **argv)
{
    if (argc != 3)
        fail("usage: primes CPUS LIMIT");
    setvbuf(stdout, NULL, _IOLBF, 0);
    cpus = cpus_of(argv[1]);
    limit = number(argv[2]);
    if (limit < PAGE || limit > 1u << 30)
        fail("a limit of %s: %d to %u can be had", argv[2], PAGE, 1u << 30);
    // Linux takes each page from the NUMA node of the thread that first touches it.
    composite = memory(stride() * (size_t)cpus + TABLE, MAP_PRIVATE);
    composite += -(uintptr_t)composite % TABLE;
    pthread_barrier_init(&marked, NULL, (unsigned)cpus);
    in_threads("primes", cpus, work);
    printf("%d threads of one process: %llu primes below %llu\n", cpus, (unsigned long long)primes,
           (unsigned long long)limit);
    return 0;
}
