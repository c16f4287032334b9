/*
 * Page tables that the processors of several nodes walk all the time, and seldom change. Where a walk counts as a
 * write, the host may keep such a page writable on all of these nodes; the guest must not notice.
 *
 * - settled: all CPUs walk tables in which nothing changes, until the host has made up its mind.
 * - handed: one CPU changes an entry and tells the next one, by a page and then by an interrupt, which must find the
 *   new page there.
 * - together: all CPUs change entries of one table at once; none may be lost.
 * - marked: one CPU takes the marks of being accessed and dirty away, another one's walk must set them where all see it.
 * - counted: a page that is no table, looks like one and comes back as it went, is counted in by all CPUs; no count
 *   may be lost.
 *
 * count=100: changes that are handed over. settle=64: rounds of walks before. on=0,1: the CPUs; all by default.
 */
#include "tests.h"

#define MARKS 0x60
#define VECTOR_TURN VECTOR_MSI
#define FRAMES 8
#define SLOT 1UL /* of the first table: the 512 GiB where `walked` is mapped */
#define MARK_ROUNDS 4
#define COUNTS 64
#define CHANGE_CYCLES 30000000 /* between two changes: a page that changes more often is left to one node at a time */
#define COUNT_CYCLES 1000000 /* between two counts: the news that another CPU counts too takes less than all of them */
#define COUNT_STEP (2UL << 12) /* so that the count looks like an entry that walks have no more to do with */

static u64 count, settle, members;
static u32 ids[MAX_CPUS];
static u64 (*map)[TABLE_ENTRIES], (*pointers)[TABLE_ENTRIES], (*directory)[TABLE_ENTRIES], (*walked)[TABLE_ENTRIES], (*false_table)[TABLE_ENTRIES];
static u64 (*frames)[TABLE_ENTRIES];
static struct page_u64 turn;
static struct barrier all;

static volatile u64 *mapped(u64 entry, u64 word) { return (volatile u64 *)(SLOT << 39 | entry << 12 | word << 3); }
static u64 leaf(u64 frame) { return (u64)&frames[frame] | ENTRY_PAGE; }
static u64 shown(u64 entry) { return *mapped(entry, 0); }
static volatile u64 *entry_at(u64 entry) { return &(*walked)[entry]; }

/* Forgets what this CPU remembers of its walks. */
static void walk_anew(void) { use_page_map(map); }

static void build(void)
{
    map = heap_pages(1), pointers = heap_pages(1), directory = heap_pages(1), walked = heap_pages(1);
    false_table = heap_pages(1), frames = heap_pages(FRAMES);
    memset(map, 0, PAGE_SIZE), memset(pointers, 0, PAGE_SIZE), memset(directory, 0, PAGE_SIZE);
    (*map)[0] = page_map[0];
    (*map)[SLOT] = (u64)pointers | ENTRY_TABLE;
    (*pointers)[0] = (u64)directory | ENTRY_TABLE;
    (*directory)[0] = (u64)walked | ENTRY_TABLE;
    for (u64 frame = 0; frame < FRAMES; frame++)
        frames[frame][0] = frame;
    for (u64 entry = 0; entry < TABLE_ENTRIES; entry++) {
        (*walked)[entry] = leaf(entry % FRAMES);
        (*false_table)[entry] = leaf(0);
    }
}

/* Each CPU in turn: `act` is given who it is, and the round. */
static void in_turn(u64 member, u64 first_round, u64 rounds, void (*act)(u64 member, u64 round))
{
    barrier_wait(&all, members);
    u64 first = load(&turn.value);
    barrier_wait(&all, members);
    for (u64 round = 0; round < rounds; round++) {
        u64 mine = first + round * members + member;
        wait_until(&turn.value, mine);
        act(member, first_round + round);
        store(&turn.value, mine + 1);
    }
    barrier_wait(&all, members);
}

/* The same, and nothing but an interrupt tells a CPU that it is its turn: no page goes along with that. */
static void in_turn_by_interrupt(u64 member, u64 first_round, u64 rounds, void (*act)(u64 member, u64 round))
{
    u64 first = count_of(ids[member], VECTOR_TURN);
    barrier_wait(&all, members);
    for (u64 round = 0; round < rounds; round++) {
        /* The first turn is nobody's to tell of. */
        u64 told = first + round + (member != 0);
        for (u32 turns = 0; count_of(ids[member], VECTOR_TURN) < told;)
            relax(&turns);
        act(member, first_round + round);
        ipi_send(ids[(member + 1) % members], ICR_FIXED | VECTOR_TURN);
    }
    barrier_wait(&all, members);
}

static void walk_all(u64 member, u64 round)
{
    (void)round;
    walk_anew();
    for (u64 entry = 0; entry < TABLE_ENTRIES; entry += 61)
        check(shown(entry) == entry % FRAMES, "walks: CPU %u finds page %lu at entry %lu", ids[member], shown(entry), entry);
    /* Stores what is there: the page comes to this node to be written, and goes as it came. */
    volatile u64 *word = &(*false_table)[member];
    *word = *word;
}

static void wait_cycles(u64 cycles)
{
    for (u64 start = rdtsc(); rdtsc() - start < cycles;)
        pause();
}

static u64 handed_entry(u64 turn_number) { return turn_number * 37 % TABLE_ENTRIES; }

/* What the CPU before has handed over, then an entry for the next. Changes are numbered over all rounds. */
static void hand_over(u64 member, u64 round)
{
    u64 number = round * members + member;
    if (number > 0) {
        u64 before = handed_entry(number - 1), wanted = (before + number) % FRAMES;
        walk_anew();
        check(shown(before) == wanted, "walks: change %lu is not seen: CPU %u finds page %lu instead of %lu", number - 1,
              ids[member], shown(before), wanted);
    }
    u64 entry = handed_entry(number);
    wait_cycles(CHANGE_CYCLES);
    *entry_at(entry) = leaf((entry + number + 1) % FRAMES);
}

static void change_together(u64 member)
{
    for (u64 round = 0; round < count / 8 + 1; round++) {
        barrier_wait(&all, members);
        *entry_at(member * 7) = leaf((member + round) % FRAMES);
        barrier_wait(&all, members);
        walk_anew();
        for (u64 other = 0; other < members; other++) {
            u64 found = shown(other * 7), wanted = (other + round) % FRAMES;
            check(found == wanted, "walks: CPU %u's change %lu is lost: CPU %u finds page %lu instead of %lu", ids[other],
                  round, ids[member], found, wanted);
        }
    }
}

/* Even turns take an entry's marks away, odd ones have the processor set them. */
static void mark(u64 member, u64 round)
{
    u64 number = round * members + member, entry = 100 + number / 2;
    if (number % 2 == 0) {
        *entry_at(entry) &= ~(u64)MARKS;
        return;
    }
    walk_anew();
    *mapped(entry, 8 + member) = number;
}

static void check_marks(void)
{
    for (u64 number = 1; number < MARK_ROUNDS * members; number += 2) {
        u64 entry = 100 + number / 2;
        check((*entry_at(entry) & MARKS) == MARKS, "walks: entry %lu was written through and has no mark: 0x%lx", entry,
              *entry_at(entry));
    }
}

/* All CPUs at once. */
static void count_in(void)
{
    for (u64 n = 0; n < COUNTS; n++) {
        __atomic_fetch_add(&(*false_table)[0], COUNT_STEP, __ATOMIC_RELAXED);
        wait_cycles(COUNT_CYCLES);
    }
}

static void run_walks(void *unused)
{
    (void)unused;
    u64 member = 0;
    while (ids[member] != this_cpu()->id)
        member++;
    walk_anew();
    in_turn(member, 0, settle, walk_all);
    count_in();
    u64 rounds = (count + members - 1) / members;
    in_turn(member, 0, rounds, hand_over);
    in_turn_by_interrupt(member, rounds, rounds, hand_over);
    change_together(member);
    in_turn(member, 0, MARK_ROUNDS, mark);
    use_page_map(page_map);
}

void test_walks(void)
{
    members = config_cpus("on", ids);
    count = config_number("count", 100);
    settle = config_number("settle", 64);
    build();
    run_on_list(ids, (u32)members, run_walks, NULL);
    check_marks();
    u64 counted = ((*false_table)[0] - leaf(0)) / COUNT_STEP;
    check(counted == COUNTS * members, "walks: %lu of %lu counts are lost", COUNTS * members - counted, COUNTS * members);
    print("walks: cpus=%lu handed=%lu counted=%lu\n", members, count, counted);
}
