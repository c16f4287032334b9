/*
 * Time never goes back from one CPU to the next. A token goes round, and each CPU reads the TSC when it gets it and when
 * it hands it on: what it gets must not be earlier than what the CPU before handed on.
 *
 * count=100000: hops. on=0,1,2: the CPUs, in the order of the token. by=interrupt|memory: what the token is. As an
 * interrupt, whose handler reads the TSC, it is the shortest message there is, and no page moves meanwhile: each CPU
 * writes its times down, and they are compared afterwards. As memory, it is a page that each CPU fetches.
 */
#include "tests.h"

struct hop {
    u64 got, handed_on;
};

struct PAGE_ALIGNED token {
    u64 hop; /* whose turn it is: hop modulo the number of CPUs; written last */
    u64 handed_on;
};

static u64 count;
static u32 ids[MAX_CPUS], listed;
static struct token token;
static struct page_u64 asleep[MAX_CPUS];
static u64 taken_before[MAX_CPUS];
static struct hop *hops[MAX_CPUS]; /* by place in the order, on pages of its own each */

static u32 own_place(void)
{
    u32 place = 0;
    while (ids[place] != this_cpu()->id)
        place++;
    return place;
}

static void hand_on_interrupt(void *unused)
{
    (void)unused;
    struct cpu *cpu = this_cpu();
    u32 place = own_place(), next = ids[(place + 1) % listed];
    u64 taken = taken_before[place] - (place == 0); /* the first hop needs no news */
    struct hop *mine = hops[place];
    for (u64 hop = place; hop < count; hop += listed, mine++, taken++) {
        while (hop && load(&cpu->counts[VECTOR_STAMP]) == taken)
            wait_while(&cpu->counts[VECTOR_STAMP], taken);
        mine->got = hop ? cpu->arrival_tsc : rdtsc();
        if (hop + 1 < count) {
            mine->handed_on = rdtsc();
            ipi_send(next, ICR_FIXED | VECTOR_STAMP);
        }
    }
}

/* Waits for this hop: awake for a while, then halted until the CPU before sends an interrupt. */
static void take_memory(u64 hop, struct page_u64 *sleeps)
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

static void hand_on_memory(void *unused)
{
    (void)unused;
    u32 place = own_place(), next = ids[(place + 1) % listed];
    struct hop *mine = hops[place];
    for (u64 hop = place; hop < count; hop += listed, mine++) {
        take_memory(hop, &asleep[ids[place]]);
        mine->got = rdtsc();
        mine->handed_on = rdtsc();
        __atomic_store_n(&token.hop, hop + 1, __ATOMIC_SEQ_CST);
        if (load(&asleep[next].value))
            ipi_send(next, ICR_FIXED | VECTOR_WAKE);
    }
}

/* Compares what each CPU got with what the one before handed on. */
static void judge(const char *by)
{
    u64 violations = 0, least = ~0UL, worst = 0;
    for (u64 hop = 0; hop < count; hop++) {
        u64 got = hops[hop % listed][hop / listed].got;
        check(got, "tsc: by=%s the token was lost at hop %lu", by, hop);
        if (!hop)
            continue;
        u64 handed_on = hops[(hop - 1) % listed][(hop - 1) / listed].handed_on;
        if (got < handed_on) {
            violations++;
            worst = handed_on - got > worst ? handed_on - got : worst;
        } else if (got - handed_on < least) {
            least = got - handed_on;
        }
    }
    print("# tsc: by=%s least_step_cycles=%lu\n", by, least);
    check(!violations, "tsc: by=%s time went back %lu times in %lu hops, by %lu cycles at most", by, violations, count, worst);
    print("tsc: by=%s hops=%lu violations=%lu\n", by, count, violations);
}

void test_tsc(void)
{
    const char *by = config_text("by", "interrupt");
    bool by_memory = same(by, "memory");
    check(by_memory || same(by, "interrupt"), "tsc: by=%s is not known", by);
    count = config_number("count", 100000);
    listed = config_cpus("on", ids);
    for (u32 i = 0; i < listed; i++) {
        if (!hops[i])
            hops[i] = heap_pages((count / listed + 1) * sizeof(struct hop) / PAGE_SIZE + 1);
        memset(hops[i], 0, (count / listed + 1) * sizeof(struct hop));
        taken_before[i] = count_of(ids[i], VECTOR_STAMP);
    }
    token.hop = 0;
    run_on_list(ids, listed, by_memory ? hand_on_memory : hand_on_interrupt, NULL);
    judge(by);
}
