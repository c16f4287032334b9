// What a Linux guest does on every CPU at once: `worker CPUS LOOPS INCREMENTS FORKS TURNS BYTES`.
//
// What has an amount of 0 is left out. Each line that it prints is the same on every run with the same arguments,
// wherever the CPUs are; lines that start with `#` tell of times. It ends with 1 if anything is not as it must be.

#include "common.h"

// Memory that all processes share, each part on pages of its own.
struct shared {
    _Alignas(PAGE) _Atomic uint64_t counter;
    _Alignas(PAGE) _Atomic uint64_t turn;
    uint64_t time_ns;
    _Alignas(PAGE) struct {
        _Alignas(PAGE) uint64_t loops;
    } of[CPUS_MAX];
    _Alignas(PAGE) uint8_t bytes[];
};

static struct {
    int cpus;
    uint64_t loops, increments, forks, turns, bytes;
} arguments;
static struct shared *shared;

// Nothing is shared.
static void busy(int cpu)
{
    volatile uint64_t *mine = &shared->of[cpu].loops;
    for (uint64_t i = 0; i < arguments.loops; i++)
        *mine += 1;
}

// Every increment of one shared counter counts.
static void count(int cpu)
{
    (void)cpu;
    for (uint64_t i = 0; i < arguments.increments; i++)
        shared->counter++;
}

// The kernel's own shared structures: page tables, run queues, process ids.
static void forks(int cpu)
{
    (void)cpu;
    for (uint64_t i = 0; i < arguments.forks; i++) {
        const pid_t child = fork();
        if (child < 0)
            fail("fork: %s", strerror(errno));
        if (child == 0)
            _exit(0);
        await(child);
    }
}

// A token goes round with the time at which it was passed on, which nobody may find to be in the future.
static void tokens(int cpu)
{
    const uint64_t cpus = (uint64_t)arguments.cpus;
    for (uint64_t turn = (uint64_t)cpu; turn < arguments.turns * cpus; turn += cpus) {
        while (shared->turn != turn)
            __builtin_ia32_pause();
        const uint64_t now = now_ns();
        if (now < shared->time_ns)
            fail("turn %llu: time went back by %llu ns on CPU %d", (unsigned long long)turn,
                 (unsigned long long)(shared->time_ns - now), cpu);
        shared->time_ns = now_ns();
        shared->turn = turn + 1;
    }
}

// Bytes of a linear congruential generator: this CPU's slice of them.
static void fill(int cpu)
{
    const uint64_t slice = arguments.bytes / (uint64_t)arguments.cpus;
    uint32_t state = 12345u + (uint32_t)cpu;
    for (uint64_t i = 0; i < slice; i++) {
        state = state * 1103515245u + 12345u;
        shared->bytes[(uint64_t)cpu * slice + i] = (uint8_t)(state >> 16);
    }
}

// FNV-1a of what all CPUs have filled, by every CPU.
static void checksum(int cpu)
{
    uint64_t sum = 0xcbf29ce484222325u;
    for (uint64_t i = 0; i < arguments.bytes; i++)
        sum = (sum ^ shared->bytes[i]) * 0x100000001b3u;
    shared->of[cpu].loops = sum;
}

int main(int argc, char **argv)
{
    if (argc != 7)
        fail("usage: worker CPUS LOOPS INCREMENTS FORKS TURNS BYTES");
    setvbuf(stdout, NULL, _IOLBF, 0);
    arguments.cpus = cpus_of(argv[1]);
    arguments.loops = number(argv[2]);
    arguments.increments = number(argv[3]);
    arguments.forks = number(argv[4]);
    arguments.turns = number(argv[5]);
    arguments.bytes = number(argv[6]) / (uint64_t)arguments.cpus * (uint64_t)arguments.cpus;
    const size_t len = sizeof *shared + arguments.bytes;
    shared = memory(len, MAP_SHARED);

    // To do nothing on every CPU costs a process on each, so it is left out.
    if (arguments.loops) {
        on_every_cpu("busy", arguments.cpus, busy);
        for (int cpu = 0; cpu < arguments.cpus; cpu++)
            printf("busy: cpu=%d loops=%llu\n", cpu, (unsigned long long)shared->of[cpu].loops);
    }
    if (arguments.increments) {
        on_every_cpu("count", arguments.cpus, count);
        printf("count: counter=%llu\n", (unsigned long long)shared->counter);
    }
    if (arguments.forks) {
        on_every_cpu("forks", arguments.cpus, forks);
        printf("forks: cpus=%d each=%llu\n", arguments.cpus, (unsigned long long)arguments.forks);
    }
    if (arguments.turns) {
        on_every_cpu("tokens", arguments.cpus, tokens);
        printf("tokens: turns=%llu\n", (unsigned long long)shared->turn);
    }
    if (arguments.bytes) {
        on_every_cpu("fill", arguments.cpus, fill);
        on_every_cpu("checksum", arguments.cpus, checksum);
        for (int cpu = 0; cpu < arguments.cpus; cpu++)
            printf("checksum: cpu=%d bytes=%llu sum=%016llx\n", cpu,
                   (unsigned long long)arguments.bytes, (unsigned long long)shared->of[cpu].loops);
    }
    return 0;
}
