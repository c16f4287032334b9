/*
 * One CPU writes pages, another one reads a word of each, in an order without strides and with interrupts on, as always
 * at CPL 3. Reading must cost the reader's node one read request a page, and nobody a write request: the host looks at
 * its counters when the marks come.
 *
 * count=256: pages. by=N: the CPU that reads; the last one by default. nodes=1: nodes that take marks.
 * rounds=1: how often; each round writes the pages anew.
 */
#include "tests.h"

#define MARK_PORT 0x5d0 /* of node 0; the others' follow */

/* What the reader looks up, on one page. */
struct PAGE_ALIGNED job {
    u64 count, size, nodes;
    u8 *pages, *first; /* and a page more, for a start: code and tables are then where the reader is */
};

static struct job job;
static struct page_u64 sum;

static void mark(u8 value)
{
    for (u64 node = 0; node < job.nodes; node++)
        outb((u16)(MARK_PORT + node), value);
}

static volatile u64 *page(u8 *pages, u64 number) { return (volatile u64 *)(pages + number * PAGE_SIZE); }

/* A word of each page: the steps from one to the next are 1, 2, 3, ... modulo the size, a power of two. */
static __attribute__((noinline)) u64 read_each(u8 *pages, u64 count, u64 size)
{
    u64 found = 0;
    for (u64 position = 0; position < size; position++) {
        u64 number = (position * position + position) / 2 & (size - 1);
        if (number < count)
            found += *page(pages, number);
    }
    return found;
}

static void read_pages(void *unused)
{
    (void)unused;
    u64 count = job.count, size = job.size;
    u8 *pages = job.pages;
    read_each(job.first, 1, 1);
    mark(1);
    u64 found = read_each(pages, count, size);
    mark(2);
    sum.value = found;
}

void test_pages(void)
{
    u64 rounds = config_number("rounds", 1);
    u32 by = config_cpu("by", cpu_count() - 1);
    job.count = config_number("count", 256);
    job.nodes = config_number("nodes", 1);
    for (job.size = 1; job.size < job.count;)
        job.size *= 2;
    job.first = heap_pages(1 + job.count);
    job.pages = job.first + PAGE_SIZE;
    for (u64 round = 0; round < rounds; round++) {
        u64 wanted = 0;
        *page(job.first, 0) = round;
        for (u64 number = 0; number < job.count; number++) {
            u64 value = random_at(round, number);
            *page(job.pages, number) = value;
            wanted += value;
        }
        run_on(by, read_pages, NULL);
        check(sum.value == wanted, "pages: CPU %u reads a sum of 0x%lx instead of 0x%lx", by, sum.value, wanted);
    }
    print("pages: count=%lu by=%u sum=0x%lx\n", job.count, by, sum.value);
}
