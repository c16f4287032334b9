// A token that goes round among threads on all CPUs, each of which sleeps in the kernel until it is its turn:
// `futex CPUS TURNS`. What it protects is changed without atomic instructions.

#include <linux/futex.h>
#include <sys/syscall.h>

#include "threads.h"

static int cpus;
static uint32_t turns;
static _Alignas(PAGE) _Atomic uint32_t turn;
static uint64_t sum;

static void go_round(int me)
{
    for (uint32_t mine = (uint32_t)me; mine < turns; mine += (uint32_t)cpus) {
        for (uint32_t seen; (seen = turn) != mine;)
            if (syscall(SYS_futex, &turn, FUTEX_WAIT, seen, NULL, NULL, 0) && errno != EAGAIN && errno != EINTR)
                fail("futex: wait: %s", strerror(errno));
        sum += mine;
        turn = mine + 1;
        if (syscall(SYS_futex, &turn, FUTEX_WAKE, cpus, NULL, NULL, 0) < 0)
            fail("futex: wake: %s", strerror(errno));
    }
}

int main(int argc, char **argv)
{
    if (argc != 3)
        fail("usage: futex CPUS TURNS");
    setvbuf(stdout, NULL, _IOLBF, 0);
    cpus = cpus_of(argv[1]);
    turns = (uint32_t)number(argv[2]);
    in_threads("futex", cpus, go_round);
    printf("futex: turns=%u sum=%llu\n", turns, (unsigned long long)sum);
    return 0;
}
