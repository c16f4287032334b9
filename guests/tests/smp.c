/*
 * All CPUs start: their ids, the vectors of their SIPIs, and one sum over memory that each of them wrote a part of.
 * rounds=1: how often they write it; the others follow when all CPUs were started again.
 */
#include "tests.h"

#define WORDS_PER_PAGE (PAGE_SIZE / sizeof(u32))

static u32 *pages;

/* Each CPU fills its page, and adds its id to every word of the one that all share, each in its own words. */
static void fill(void *shared)
{
    u32 id = this_cpu()->id;
    for (u32 i = 0; i < WORDS_PER_PAGE; i++)
        pages[id * WORDS_PER_PAGE + i] = (u32)random_at(id, i);
    for (u32 i = id; i < WORDS_PER_PAGE; i += cpu_count())
        ((u32 *)shared)[i] = id + 1;
}

void test_smp(void)
{
    u32 count = cpu_count();
    pages = heap_pages(count);
    u32 *shared = heap_pages(1);
    u64 rounds = config_number("rounds", 1);
    for (u64 round = 0; round < rounds; round++) {
        for (u32 cpu = 1; round && cpu < count; cpu++)
            cpu_start(cpu, first_vector(cpu));
        run_on_all(fill, shared);
    }

    for (u32 cpu = 0; cpu < count; cpu++) {
        check(cpus[cpu].id == cpu, "CPU %u says that its id is %u", cpu, cpus[cpu].id);
        u32 expected = cpu ? first_vector(cpu) : 0;
        check(cpus[cpu].sipi_vector == expected, "CPU %u began at SIPI vector 0x%x instead of 0x%x", cpu,
              cpus[cpu].sipi_vector, expected);
        u64 logical = read_msr(MSR_X2APIC_LDR);
        check(cpu || logical == logical_id(0), "CPU 0 has logical id 0x%lx", logical);
        print("smp: cpu=%u sipi=0x%x starts=%lu\n", cpu, cpus[cpu].sipi_vector, cpus[cpu].starts);
    }
    u64 hash = HASH_START;
    for (u32 i = 0; i < count * WORDS_PER_PAGE; i++)
        hash = hash_word(hash, pages[i]);
    for (u32 i = 0; i < WORDS_PER_PAGE; i++)
        hash = hash_word(hash, shared[i]);
    print("smp: cpus=%u hash=0x%lx\n", count, hash);
}
