/*
 * Time never goes back from one CPU to the next. A token goes round; its holder reads the TSC, which must not be below
 * what the last holder read. count=100000: hops. on=0,1,2: the CPUs, in the order of the token.
 */
#include "tests.h"

struct PAGE_ALIGNED token {
    u64 hop; /* whose turn it is: hop modulo the number of CPUs; written last */
    u64 tsc;
    u64 violations;
    u64 least; /* the smallest step so far */
    u64 worst; /* the largest step back */
};

static u64 count;
static u32 ids[MAX_CPUS], listed;
static struct token token;
static struct page_u64 asleep[MAX_CPUS];

/* Waits for this hop: awake for a while, then halted until the CPU before sends an interrupt. */
static void take(u64 hop, struct page_u64 *sleeps)
{
    for (u32 turn = 0; turn < TURNS_UNTIL_NAP; turn++) {
        if (load(&token.hop) == hop)
            return;
        pause();
    }
    __atomic_store_n(&sleeps->value, 1, __ATOMIC_SEQ_CST);
    for (u64 now; (now = load(&token.hop)) != hop;)
        wait_while(&token.hop, now);
    sleeps->value = 0;
}

static void pass_on(u64 hop, u32 next)
{
    __atomic_store_n(&token.hop, hop, __ATOMIC_SEQ_CST);
    if (load(&asleep[next].value))
        ipi_send(next, ICR_FIXED | VECTOR_WAKE);
}

static void hand_on(void *unused)
{
    (void)unused;
    u64 place = 0;
    while (ids[place] != this_cpu()->id)
        place++;
    for (u64 hop = place; hop < count; hop += listed) {
        take(hop, &asleep[ids[place]]);
        u64 now = rdtsc();
        if (now < token.tsc) {
            token.violations++;
            if (token.tsc - now > token.worst)
                token.worst = token.tsc - now;
        } else if (hop && now - token.tsc < token.least) {
            token.least = now - token.tsc;
        }
        token.tsc = now;
        pass_on(hop + 1, ids[(place + 1) % listed]);
    }
}

void test_tsc(void)
{
    count = config_number("count", 100000);
    listed = config_cpus("on", ids);
    token.least = ~0UL;
    run_on_list(ids, listed, hand_on, NULL);
    check(token.hop == count, "tsc: the token made %lu hops instead of %lu", token.hop, count);
    print("# tsc: least_step_cycles=%lu\n", token.least);
    check(!token.violations, "tsc: time went back %lu times in %lu hops, by %lu cycles at most", token.violations, count,
          token.worst);
    print("tsc: hops=%lu violations=%lu\n", count, token.violations);
}
