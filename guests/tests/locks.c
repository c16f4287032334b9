/*
 * Locks and atomic instructions on shared pages, by all CPUs at once. count=1000: rounds of each CPU.
 * Under each lock two plain counters on pages of their own rise together: a lock that lets two in loses an increment,
 * or is seen with the counters apart.
 */
#include "tests.h"

struct guarded {
    struct page_u64 first, second;
};

static u64 count;
static struct page_u64 spin;
static struct ticket_lock ticket;
static struct guarded by_spin, by_ticket;
static struct page_u64 added, exchanged;
static u64 *bits;

static void enter(struct guarded *guarded, const char *lock)
{
    u64 first = load(&guarded->first.value), second = load(&guarded->second.value);
    check(first == second, "locks: lock=%s CPU %u sees %lu and %lu under it", lock, this_cpu()->id, first, second);
    store(&guarded->first.value, first + 1);
    store(&guarded->second.value, second + 1);
}

static void take_spin_lock(void *unused)
{
    (void)unused;
    for (u64 n = 0; n < count; n++) {
        spin_lock(&spin.value);
        enter(&by_spin, "spin");
        spin_unlock(&spin.value);
    }
}

static void take_ticket_lock(void *unused)
{
    (void)unused;
    for (u64 n = 0; n < count; n++) {
        ticket_lock(&ticket);
        enter(&by_ticket, "ticket");
        ticket_unlock(&ticket);
    }
}

static void add(void *unused)
{
    (void)unused;
    for (u64 n = 0; n < count; n++) {
        u64 value = 1;
        __asm__ volatile("lock xaddq %0, %1" : "+r"(value), "+m"(added.value)::"memory");
    }
}

static void compare_exchange(void *unused)
{
    (void)unused;
    for (u64 n = 0; n < count; n++) {
        u64 old = load(&exchanged.value);
        bool done;
        do
            __asm__ volatile("lock cmpxchgq %3, %1"
                             : "=@ccz"(done), "+m"(exchanged.value), "+a"(old)
                             : "r"(old + 3)
                             : "memory");
        while (!done);
    }
}

/* Every CPU tries to set every bit; each bit may be set by one of them only. */
static u64 bits_won[MAX_CPUS][PAGE_SIZE / sizeof(u64)] PAGE_ALIGNED;
static void set_bits(void *unused)
{
    (void)unused;
    u64 won = 0;
    for (u64 n = 0; n < count; n++) {
        bool was_set;
        __asm__ volatile("lock btsq %2, %1" : "=@ccc"(was_set), "+m"(bits[n / 64]) : "r"(n % 64) : "memory");
        won += !was_set;
    }
    bits_won[this_cpu()->id][0] = won;
}

void test_locks(void)
{
    count = config_number("count", 1000);
    bits = heap_pages((count + 8 * PAGE_SIZE - 1) / (8 * PAGE_SIZE));
    u64 wanted = count * cpu_count();

    run_on_all(take_spin_lock, NULL);
    check(by_spin.first.value == wanted, "locks: lock=spin counted %lu instead of %lu", by_spin.first.value, wanted);
    print("locks: lock=spin count=%lu\n", by_spin.first.value);
    run_on_all(take_ticket_lock, NULL);
    check(by_ticket.first.value == wanted, "locks: lock=ticket counted %lu instead of %lu", by_ticket.first.value, wanted);
    print("locks: lock=ticket count=%lu\n", by_ticket.first.value);
    run_on_all(add, NULL);
    check(added.value == wanted, "locks: xadd counted %lu instead of %lu", added.value, wanted);
    print("locks: atomic=xadd sum=%lu\n", added.value);
    run_on_all(compare_exchange, NULL);
    check(exchanged.value == 3 * wanted, "locks: cmpxchg added %lu instead of %lu", exchanged.value, 3 * wanted);
    print("locks: atomic=cmpxchg sum=%lu\n", exchanged.value);
    run_on_all(set_bits, NULL);
    u64 won = 0;
    for (u32 cpu = 0; cpu < cpu_count(); cpu++)
        won += bits_won[cpu][0];
    check(won == count, "locks: bts set %lu bits; there are %lu", won, count);
    print("locks: atomic=bts bits=%lu\n", won);
}
