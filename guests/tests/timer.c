/*
 * The local APIC's timer wakes each CPU from its halt, all at once, never too early: by TSC deadline where CPUID has
 * it. count=20: times on each CPU. cycles=300000: how long each wait is.
 */
#include "tests.h"

#define LVT_TSC_DEADLINE 0x40000
#define CPUID_1C_TSC_DEADLINE 0x1000000

static u64 count, cycles;
static bool by_deadline;

static void wait_often(void *unused)
{
    (void)unused;
    struct cpu *cpu = this_cpu();
    write_msr(MSR_X2APIC_LVT_TIMER, VECTOR_TIMER | (by_deadline ? LVT_TSC_DEADLINE : 0));
    for (u64 n = 0; n < count; n++) {
        u64 taken = load(&cpu->counts[VECTOR_TIMER]), deadline = rdtsc() + cycles;
        write_msr(by_deadline ? MSR_TSC_DEADLINE : MSR_X2APIC_TIMER_INITIAL, by_deadline ? deadline : cycles);
        while (load(&cpu->counts[VECTOR_TIMER]) == taken)
            wait_while(&cpu->counts[VECTOR_TIMER], taken);
        u64 now = rdtsc();
        check(!by_deadline || now >= deadline, "timer: CPU %u woke %lu cycles before its deadline", cpu->id, deadline - now);
    }
    write_msr(MSR_X2APIC_LVT_TIMER, VECTOR_NAP);
}

void test_timer(void)
{
    u32 a, b, c, d;
    count = config_number("count", 20);
    cycles = config_number("cycles", 300000);
    cpuid(1, &a, &b, &c, &d);
    by_deadline = c & CPUID_1C_TSC_DEADLINE;
    run_on_all(wait_often, NULL);
    for (u32 cpu = 0; cpu < cpu_count(); cpu++)
        check(count_of(cpu, VECTOR_TIMER) == count, "timer: CPU %u took %lu interrupts instead of %lu", cpu,
              count_of(cpu, VECTOR_TIMER), count);
    print("timer: cpus=%u count=%lu by=%s\n", cpu_count(), count, by_deadline ? "tsc-deadline" : "one-shot");
}
