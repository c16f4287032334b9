/*
 * Litmus tests of x86-TSO, at CPL 3, each variable on its own page. shape=every|name count=1000 seed=1
 * on=0,1,..: the CPU of each thread. lead=10000000: the longest lead in cycles, see below. faults=0: with 1, iterations without
 * a fault are not counted; 0 for CPUs that are all on one node, where no iteration has one.
 *
 * Before each iteration every variable is set back to 0 by one thread of the shape alone, chosen at random but the same
 * on all, which leaves its page writable there and nowhere else; and in every shape each variable is used by two threads
 * at least. So a thread on another node must fetch a page within the iteration. Whether one did is seen by the time that
 * the accesses took: a fault goes to the host's program and to another node, accesses without one take a hundredth of that.
 *
 * Threads meet on pages that hold no variable. Thread 0 then names a time a little ahead, and each thread spins on the
 * TSC until then plus a random delay, so that the slow news of the meeting doesn't decide who is first.
 */
#include "tests.h"

#define THREADS_MAX 4
#define ATTEMPTS 2 /* iterations for one that is counted, at most */
#define OUTCOMES 81 /* four results of 0 to 2 */
#define ANY 3
#define FAULT_CYCLES 20000 /* a fault takes longer, and accesses and a fence without one do not */

/* Threads of a shape write results to r[0..3]; those that no thread writes are final values, or stay 0. */
struct shape {
    const char *name;
    u32 threads;
    void (*run)(u32 thread, u64 result[2]);
    void (*gather)(u64 results[THREADS_MAX][2], u64 outcome[4]);
    u8 forbidden[4]; /* ANY matches all; a shape that allows everything has ANY in all places */
    u8 uses_y;
};

struct PAGE_ALIGNED report {
    u64 ready; /* the iteration for which this thread has set its variables back */
    u64 done;
    u64 result[2];
    u64 late;
    u64 faulted;
};
struct PAGE_ALIGNED start {
    u64 tsc;
    u64 iteration; /* written last */
};

static struct page_u64 x, y;
static struct report reports[THREADS_MAX];
static struct start start;
static struct page_u64 next;
static struct page_u64 counted; /* iterations so far, as all threads know when they begin one */
static const struct shape *shape;
static u32 ids[MAX_CPUS];
static u64 count, seed, lead_cycles_max, late_starts, without_fault, histogram[OUTCOMES];
static bool want_faults;

static inline void write_to(struct page_u64 *variable, u64 value)
{
    __asm__ volatile("movq %1, %0" : "=m"(variable->value) : "r"(value) : "memory");
}
static inline u64 read_from(const struct page_u64 *variable)
{
    u64 value;
    __asm__ volatile("movq %1, %0" : "=r"(value) : "m"(variable->value) : "memory");
    return value;
}
static inline void fence(void) { __asm__ volatile("mfence" ::: "memory"); }

/* Store buffering: allowed without fences, forbidden with them. */
static void run_sb(u32 thread, u64 r[2])
{
    write_to(thread ? &y : &x, 1);
    r[0] = read_from(thread ? &x : &y);
}
static void run_sb_fenced(u32 thread, u64 r[2])
{
    write_to(thread ? &y : &x, 1);
    fence();
    r[0] = read_from(thread ? &x : &y);
}
static void run_mp(u32 thread, u64 r[2])
{
    if (thread == 0) {
        write_to(&x, 1);
        write_to(&y, 1);
    } else {
        r[0] = read_from(&y);
        r[1] = read_from(&x);
    }
}
static void run_lb(u32 thread, u64 r[2])
{
    r[0] = read_from(thread ? &y : &x);
    write_to(thread ? &x : &y, 1);
}
static void run_iriw(u32 thread, u64 r[2])
{
    if (thread < 2) {
        write_to(thread ? &y : &x, 1);
    } else {
        r[0] = read_from(thread == 2 ? &x : &y);
        r[1] = read_from(thread == 2 ? &y : &x);
    }
}
static void run_wrc(u32 thread, u64 r[2])
{
    if (thread == 0) {
        write_to(&x, 1);
    } else if (thread == 1) {
        r[0] = read_from(&x);
        write_to(&y, r[0]);
    } else {
        r[0] = read_from(&y);
        r[1] = read_from(&x);
    }
}
static void run_s(u32 thread, u64 r[2])
{
    if (thread == 0) {
        write_to(&x, 2);
        write_to(&y, 1);
    } else {
        r[0] = read_from(&y);
        write_to(&x, 1);
    }
}
static void run_r(u32 thread, u64 r[2])
{
    if (thread == 0) {
        write_to(&x, 1);
        fence();
        write_to(&y, 1);
    } else {
        write_to(&y, 2);
        fence();
        r[0] = read_from(&x);
    }
}
static void run_2_2w(u32 thread, u64 r[2])
{
    (void)r;
    write_to(thread ? &y : &x, 1);
    write_to(thread ? &x : &y, 2);
}
static void run_corr(u32 thread, u64 r[2])
{
    if (thread == 0) {
        write_to(&x, 1);
    } else {
        r[0] = read_from(&x);
        r[1] = read_from(&x);
    }
}

/* Outcomes: the results of the reading threads in order, or one result and final values. */
static void both_firsts(u64 r[THREADS_MAX][2], u64 o[4]) { o[0] = r[0][0], o[1] = r[1][0]; }
static void second_thread(u64 r[THREADS_MAX][2], u64 o[4]) { o[0] = r[1][0], o[1] = r[1][1]; }
static void last_two(u64 r[THREADS_MAX][2], u64 o[4]) { o[0] = r[2][0], o[1] = r[2][1], o[2] = r[3][0], o[3] = r[3][1]; }
static void chain(u64 r[THREADS_MAX][2], u64 o[4]) { o[0] = r[1][0], o[1] = r[2][0], o[2] = r[2][1]; }
static void read_and_x(u64 r[THREADS_MAX][2], u64 o[4]) { o[0] = r[1][0], o[1] = read_from(&x); }
static void read_and_y(u64 r[THREADS_MAX][2], u64 o[4]) { o[0] = r[1][0], o[1] = read_from(&y); }
static void finals(u64 r[THREADS_MAX][2], u64 o[4]) { (void)r, o[0] = read_from(&x), o[1] = read_from(&y); }

static const struct shape shapes[] = {
    {"sb", 2, run_sb, both_firsts, {ANY, ANY, ANY, ANY}, 1},
    {"sb+fences", 2, run_sb_fenced, both_firsts, {0, 0, ANY, ANY}, 1},
    {"mp", 2, run_mp, second_thread, {1, 0, ANY, ANY}, 1},
    {"lb", 2, run_lb, both_firsts, {1, 1, ANY, ANY}, 1},
    {"s", 2, run_s, read_and_x, {1, 2, ANY, ANY}, 1},
    {"r+fences", 2, run_r, read_and_y, {0, 2, ANY, ANY}, 1},
    {"2+2w", 2, run_2_2w, finals, {1, 1, ANY, ANY}, 1},
    {"corr", 2, run_corr, second_thread, {1, 0, ANY, ANY}, 0},
    {"wrc", 3, run_wrc, chain, {1, 1, 0, ANY}, 1},
    {"iriw", 4, run_iriw, last_two, {1, 0, 1, 0}, 1},
};

/* A number for this iteration that all threads agree on. */
static u64 drawn(u64 iteration, u32 which) { return random_at(seed, iteration * 8 + which); }

/* Sets back what this thread is drawn for: one of the threads that use the variable. */
static void set_back(u32 thread, u64 iteration)
{
    static const u8 users_of_x[THREADS_MAX] = {0, 1, 2, 3}, iriw_x[3] = {0, 2, 3}, iriw_y[3] = {1, 2, 3}, wrc_y[2] = {1, 2};
    u64 draw_x = drawn(iteration, 0), draw_y = drawn(iteration, 1);
    u32 for_x = users_of_x[draw_x % shape->threads], for_y = users_of_x[draw_y % shape->threads];
    if (shape->threads == 4) {
        for_x = iriw_x[draw_x % 3];
        for_y = iriw_y[draw_y % 3];
    } else if (shape->threads == 3) {
        for_y = wrc_y[draw_y % 2];
    }
    if (thread == for_x)
        write_to(&x, 0);
    if (thread == for_y && shape->uses_y)
        write_to(&y, 0);
}

/* Thread 0: waits for all, starts them, and counts the outcome. */
static void lead(u64 iteration, u64 *lead_cycles)
{
    for (u32 i = 0; i < shape->threads; i++)
        wait_until(&reports[i].ready, iteration);
    start.tsc = rdtsc() + *lead_cycles;
    store(&start.iteration, iteration);
}

static void gather(u64 iteration, u64 *lead_cycles)
{
    u64 results[THREADS_MAX][2] = {{0}}, outcome[4] = {0}, late = 0, faulted = 0;
    for (u32 i = 0; i < shape->threads; i++) {
        wait_until(&reports[i].done, iteration);
        results[i][0] = reports[i].result[0];
        results[i][1] = reports[i].result[1];
        late += reports[i].late;
        faulted += reports[i].faulted;
    }
    shape->gather(results, outcome);
    if (faulted || !want_faults) {
        histogram[outcome[0] + 3 * outcome[1] + 9 * outcome[2] + 27 * outcome[3]]++;
        counted.value++;
    } else {
        without_fault++;
    }
    /* As short a lead as the news takes, since a later start is only waiting. */
    late_starts += late != 0;
    if (late && *lead_cycles < lead_cycles_max)
        *lead_cycles *= 2;
    else if (!late)
        *lead_cycles -= *lead_cycles / 64;
    store(&next.value, iteration + 1);
}

static void run_thread(void *unused)
{
    (void)unused;
    u64 lead_cycles = 20000;
    u32 thread = 0;
    while (ids[thread] != this_cpu()->id)
        thread++;
    struct report *report = &reports[thread];
    for (u64 iteration = 1; load(&counted.value) < count && iteration <= ATTEMPTS * count; iteration++) {
        set_back(thread, iteration);
        store(&report->ready, iteration);
        if (thread == 0)
            lead(iteration, &lead_cycles);
        wait_until(&start.iteration, iteration);
        u64 result[2] = {0}, at = start.tsc, delay = drawn(iteration, 2 + thread) % 2000;
        u64 late = rdtsc() > at;
        while (rdtsc() < at + delay)
            pause();
        u64 before = rdtsc();
        shape->run(thread, result);
        report->faulted = rdtsc() - before > FAULT_CYCLES;
        report->result[0] = result[0];
        report->result[1] = result[1];
        report->late = late;
        store(&report->done, iteration);
        if (thread == 0)
            gather(iteration, &lead_cycles);
        wait_until(&next.value, iteration + 1);
    }
}

/* Prints the histogram, and counts what must not be. */
static void judge(void)
{
    u64 forbidden = 0;
    bool nothing = true;
    for (u32 i = 0; i < LENGTH(shape->forbidden); i++)
        nothing = nothing && shape->forbidden[i] == ANY;
    for (u32 i = 0; i < OUTCOMES; i++) {
        u32 outcome[4] = {i % 3, i / 3 % 3, i / 9 % 3, i / 27};
        bool matches = !nothing;
        for (u32 part = 0; part < 4; part++)
            matches = matches && (shape->forbidden[part] == ANY || shape->forbidden[part] == outcome[part]);
        forbidden += matches ? histogram[i] : 0;
        if (histogram[i])
            print("# litmus: shape=%s outcome=%u%u%u%u times=%lu\n", shape->name, outcome[0], outcome[1], outcome[2], outcome[3],
                  histogram[i]);
    }
    print("# litmus: shape=%s late_starts=%lu without_fault=%lu\n", shape->name, late_starts, without_fault);
    check(counted.value == count, "litmus: shape=%s %lu iterations were without a fault, %lu with", shape->name, without_fault,
          counted.value);
    check(!forbidden, "litmus: shape=%s %lu of %lu iterations ended as x86-TSO forbids", shape->name, forbidden, count);
    print("litmus: shape=%s iterations=%lu forbidden=%lu\n", shape->name, count, forbidden);
}

void test_litmus(void)
{
    const char *name = config_text("shape", "every");
    u32 listed = config_cpus("on", ids);
    count = config_number("count", 1000);
    seed = config_number("seed", 1);
    want_faults = config_number("faults", 0);
    lead_cycles_max = config_number("lead", 10000000);
    bool known = same(name, "every");
    for (u32 i = 0; i < LENGTH(shapes); i++) {
        if (!same(name, "every") && !same(name, shapes[i].name))
            continue;
        known = true;
        shape = &shapes[i];
        if (shape->threads > listed) {
            print("litmus: shape=%s skipped: needs %u CPUs\n", shape->name, shape->threads);
            continue;
        }
        memset(reports, 0, sizeof reports);
        memset(histogram, 0, sizeof histogram);
        start.iteration = next.value = counted.value = late_starts = without_fault = 0;
        run_on_list(ids, shape->threads, run_thread, NULL);
        judge();
    }
    check(known, "litmus: shape=%s is not known", name);
}
