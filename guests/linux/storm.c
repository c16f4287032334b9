// Processes that start programs and talk to them through pipes, on all CPUs at once: `storm CPUS ROUNDS`.
// As `storm echo CPU` it is that program: it reads a number and writes another.

#include "common.h"

static uint64_t rounds;

static uint64_t answer(uint64_t asked, int cpu)
{
    return asked * 3 + (uint64_t)cpu;
}

static void tell(int to, uint64_t value)
{
    if (write(to, &value, sizeof value) != sizeof value)
        fail("write to a pipe: %s", strerror(errno));
}

static uint64_t hear(int from)
{
    uint64_t value;
    if (read(from, &value, sizeof value) != sizeof value)
        fail("read from a pipe: %s", strerror(errno));
    return value;
}

static void storm(int cpu)
{
    char number[16];
    snprintf(number, sizeof number, "%d", cpu);
    for (uint64_t round = 0; round < rounds; round++) {
        int to[2], from[2];
        if (pipe(to) || pipe(from))
            fail("pipe: %s", strerror(errno));
        const pid_t child = fork();
        if (child < 0)
            fail("fork: %s", strerror(errno));
        if (child == 0) {
            dup2(to[0], 0);
            dup2(from[1], 1);
            execl("/proc/self/exe", "storm", "echo", number, (char *)NULL);
            fail("exec: %s", strerror(errno));
        }
        close(to[0]);
        close(from[1]);
        tell(to[1], round);
        const uint64_t told = hear(from[0]);
        if (told != answer(round, cpu))
            fail("CPU %d, round %llu: %llu came back", cpu, (unsigned long long)round, (unsigned long long)told);
        close(to[1]);
        close(from[0]);
        await(child);
    }
}

int main(int argc, char **argv)
{
    if (argc != 3)
        fail("usage: storm CPUS ROUNDS");
    if (!strcmp(argv[1], "echo")) {
        tell(1, answer(hear(0), (int)number(argv[2])));
        return 0;
    }
    setvbuf(stdout, NULL, _IOLBF, 0);
    const int cpus = cpus_of(argv[1]);
    rounds = number(argv[2]);
    on_every_cpu("storm", cpus, storm);
    printf("storm: cpus=%d rounds=%llu\n", cpus, (unsigned long long)rounds);
    return 0;
}
