/*
 * A memory test of all free RAM: every CPU writes a part of it, word by word; then each reads every word of the part
 * that the next one has written, and writes it anew. Meant for machines with more RAM than any of their nodes may keep.
 *
 * rounds=2: how often each part is read. seed=1.
 */
#include "tests.h"

/* What all CPUs look up. */
struct PAGE_ALIGNED job {
    u64 *words;
    u64 count, seed, round;
};

static struct job job;

/* The first word of the part that a CPU has in this round; they change hands from round to round. */
static u64 part_start(u64 turn) { return job.count * (turn % cpu_count()) / cpu_count(); }
static u64 part_end(u64 turn) { return job.count * (turn % cpu_count() + 1) / cpu_count(); }

static void write_part(void *unused)
{
    (void)unused;
    struct job now = job;
    u64 turn = this_cpu()->id + now.round;
    for (u64 at = part_start(turn), end = part_end(turn); at < end; at++)
        now.words[at] = random_at(now.seed + now.round, at);
}

static void check_part(void *unused)
{
    (void)unused;
    struct job now = job;
    u64 turn = this_cpu()->id + now.round;
    for (u64 at = part_start(turn), end = part_end(turn); at < end; at++) {
        u64 wanted = random_at(now.seed + now.round - 1, at);
        check(now.words[at] == wanted, "memory: word 0x%lx is 0x%lx instead of 0x%lx", (u64)&now.words[at],
              now.words[at], wanted);
    }
}

void test_memory(void)
{
    u64 rounds = config_number("rounds", 2);
    u64 pages = (heap_end() - heap_start()) / PAGE_SIZE;
    job.seed = config_number("seed", 1);
    job.words = heap_pages(pages);
    job.count = pages * PAGE_SIZE / sizeof(u64);
    run_on_all(write_part, NULL);
    for (u64 round = 1; round <= rounds; round++) {
        job.round = round;
        run_on_all(check_part, NULL);
        if (round < rounds)
            run_on_all(write_part, NULL);
        print("memory: round=%lu pages=%lu\n", round, pages);
    }
}
