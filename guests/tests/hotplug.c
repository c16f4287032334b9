/*
 * CPUs go offline and come back at another SIPI vector, started by another CPU than before where there are three.
 * In even rounds the CPU halts for good first; in odd rounds INIT hits it while it waits for work. Afterwards an
 * interrupt from every CPU must reach it, once each, and the others' counts must not move. rounds=8
 */
#include "tests.h"

static const u8 vectors[] = {0x2f, 0x42, 0x9e, 0x33, 0x75}; /* none of first_vector's */

struct start {
    u32 cpu;
    u32 vector;
};

static void go_offline(void *unused)
{
    (void)unused;
    cpu_offline();
}

static void start_it(void *argument)
{
    const struct start *start = argument;
    cpu_start(start->cpu, start->vector);
}

static void send_one(void *argument)
{
    u32 cpu = *(const u32 *)argument, vector = VECTOR_IPI_FIRST + this_cpu()->id;
    u64 wanted = count_of(cpu, vector) + 1;
    ipi_send(cpu, ICR_FIXED | vector);
    for (u32 turns = 0; count_of(cpu, vector) < wanted;)
        relax(&turns);
}

/* The CPU that starts `cpu` in this round: any other, a new one in every round where there are enough. */
static u32 starter(u32 cpu, u32 round)
{
    u32 other = round % (cpu_count() - 1);
    return other >= cpu ? other + 1 : other;
}

static void run_round(u32 cpu, u32 round)
{
    static struct start start;
    static u32 target;
    start = (struct start){cpu, vectors[round % LENGTH(vectors)]};
    target = cpu;
    u64 starts = cpus[cpu].starts;
    if (!(round & 1))
        work_begin(cpu, go_offline, NULL);
    run_on(starter(cpu, round), start_it, &start);
    check(cpus[cpu].starts == starts + 1, "hotplug: CPU %u started %lu times at one SIPI", cpu, cpus[cpu].starts - starts);
    check(cpus[cpu].sipi_vector == start.vector, "hotplug: CPU %u began at vector 0x%x instead of 0x%x", cpu,
          cpus[cpu].sipi_vector, start.vector);
    for (u32 sender = 0; sender < cpu_count(); sender++)
        run_on(sender, send_one, &target);
    print("hotplug: round=%u cpu=%u by=%u sipi=0x%x\n", round, cpu, starter(cpu, round), start.vector);
}

void test_hotplug(void)
{
    u32 rounds = (u32)config_number("rounds", 8);
    check(cpu_count() > 1, "hotplug: needs two CPUs");
    u64 taken[MAX_CPUS] = {0};
    for (u32 round = 0; round < rounds; round++) {
        u32 cpu = 1 + round / 2 % (cpu_count() - 1);
        run_round(cpu, round);
        taken[cpu]++;
    }
    for (u32 cpu = 0; cpu < cpu_count(); cpu++)
        for (u32 sender = 0; sender < cpu_count(); sender++)
            check(count_of(cpu, VECTOR_IPI_FIRST + sender) == taken[cpu], "hotplug: CPU %u took %lu of %lu from CPU %u", cpu,
                  count_of(cpu, VECTOR_IPI_FIRST + sender), taken[cpu], sender);
    print("hotplug: rounds=%u interrupts=%u\n", rounds, rounds * cpu_count());
}
