/*
 * Every kind of IPI from every CPU to every CPU. Each sender has vectors of its own, and sends one of each before it
 * waits until its receivers have counted them all, so a local APIC has no reason to merge two. What was taken must be
 * what was sent, neither more nor less. NMIs have no vector: they go one at a time, and the receiver answers each.
 *
 * kind=every|fixed|logical|lowest|multicast|anyone|broadcast|others|self|selfmsr|nmi count=10000 together=0
 * flight=32: vectors of a sender, at most. With together=1 all CPUs send at the same time; NMIs take turns.
 */
#include "tests.h"

#define FLIGHT_MAX 32

struct kind {
    const char *name;
    u64 command;
    enum { EACH, CLUSTER, ANYONE, ALL, OTHERS, SELF } to;
};

static const struct kind kinds[] = {
    {"fixed", ICR_FIXED, EACH},
    {"logical", ICR_LOGICAL, EACH},
    {"lowest", ICR_LOWEST | ICR_LOGICAL, EACH},
    {"multicast", ICR_LOGICAL, CLUSTER},
    {"anyone", ICR_LOWEST | ICR_LOGICAL, ANYONE}, /* lowest priority among a cluster: one of them takes it */
    {"broadcast", ICR_ALL, ALL},
    {"others", ICR_OTHERS, OTHERS},
    {"self", ICR_SELF, SELF},
    {"selfmsr", 0, SELF}, /* by the register SELF IPI */
    {"nmi", ICR_NMI, EACH},
};

/* What one sender did: how often each CPU must have taken its vector. */
struct PAGE_ALIGNED sent {
    u64 to[MAX_CPUS];
    u64 to_anyone;
};

static u64 count;
static u32 flight;
static bool together;
static const struct kind *kind;
static struct sent sent[MAX_CPUS];
static struct page_u64 nmi_lock;

static bool is_nmi(void) { return kind->command == ICR_NMI; }

/* A sender's vectors: the first, and how many. */
static u32 first_vector_of(u32 sender) { return is_nmi() ? VECTOR_NMI : VECTOR_IPI_FIRST + sender * flight; }
static u32 vectors(void) { return is_nmi() ? 1 : flight; }

/* CPUs with a bit in the logical ids of the first cluster. */
static u32 cluster_size(void) { return cpu_count() < 16 ? cpu_count() : 16; }

/* The CPUs that one destination reaches, as bits. */
static u32 receivers(u32 sender, u32 destination)
{
    u32 all = (u32)((1UL << cpu_count()) - 1);
    switch (kind->to) {
    case EACH:
        return 1U << destination;
    case CLUSTER:
    case ANYONE:
        return (1U << cluster_size()) - 1;
    case OTHERS:
        return all & ~(1U << sender);
    case SELF:
        return 1U << sender;
    case ALL:
    default:
        return all;
    }
}

static u64 bits_set(u32 set)
{
    u64 bits = 0;
    for (; set; set &= set - 1)
        bits++;
    return bits;
}

static void send_one(u32 destination, u32 vector)
{
    if (kind->to == SELF && !kind->command)
        write_msr(MSR_X2APIC_SELF_IPI, vector);
    else if (kind->to == CLUSTER || kind->to == ANYONE)
        ipi_send((1U << cluster_size()) - 1, kind->command | vector);
    else if (kind->command & ICR_LOGICAL)
        ipi_send(logical_id(destination), kind->command | vector);
    else
        ipi_send(destination, kind->command | vector);
}

/* What a CPU has taken of all vectors of a sender. */
static u64 taken_by(u32 cpu, u32 sender)
{
    u64 sum = 0;
    for (u32 i = 0; i < vectors(); i++)
        sum += count_of(cpu, first_vector_of(sender) + i);
    return sum;
}

static u64 taken_by_all(u32 set, u32 sender)
{
    u64 sum = 0;
    for (u32 cpu = 0; cpu < cpu_count(); cpu++)
        if (set >> cpu & 1)
            sum += taken_by(cpu, sender);
    return sum;
}

/* Waits until so many have been taken; more than that were doubled. */
static void await(u32 set, u32 sender, u64 wanted)
{
    u64 taken;
    for (u32 turns = 0; (taken = taken_by_all(set, sender)) < wanted;)
        relax(&turns);
    check(taken == wanted, "ipi: kind=%s from CPU %u was taken %lu times by CPUs 0x%x; %lu were sent", kind->name, sender,
          taken, set, wanted);
}

/* Sends `count` times to a set of CPUs, as many at a time as there are vectors. */
static void send_batches(u32 sender, u32 destination, u32 set)
{
    u64 base = taken_by_all(set, sender), each = kind->to == ANYONE ? 1 : bits_set(set);
    for (u64 n = 0; n < count;) {
        u64 batch = count - n < vectors() ? count - n : vectors();
        for (u32 i = 0; i < batch; i++)
            send_one(destination, first_vector_of(sender) + i);
        n += batch;
        await(set, sender, base + n * each);
    }
}

/* Sends `count` NMIs to one CPU, which answers each: so nobody looks at a page that another writes. */
static void send_nmis(u32 sender, u32 destination)
{
    const u64 *answers = &cpus[sender].counts[VECTOR_ANSWERED];
    store(&cpus[destination].answer_icr, (u64)sender << 32 | ICR_ASSERT | VECTOR_ANSWERED);
    for (u64 n = 0; n < count; n++) {
        u64 before = load(answers);
        ipi_send(destination, ICR_NMI);
        for (u64 turns = 0; load(answers) == before; turns++)
            turns < TURNS_UNTIL_NAP ? pause() : wait_while(answers, before);
    }
    store(&cpus[destination].answer_icr, 0);
}

/* Sends `count` times to one destination. */
static void send_to(u32 sender, u32 destination)
{
    u32 set = receivers(sender, destination);
    if (set && is_nmi())
        send_nmis(sender, destination);
    else if (set)
        send_batches(sender, destination, set);
    for (u32 cpu = 0; cpu < cpu_count(); cpu++)
        if (kind->to != ANYONE && (set >> cpu & 1))
            sent[sender].to[cpu] += count;
    if (kind->to == ANYONE)
        sent[sender].to_anyone += count;
}

static void send_all(void *unused)
{
    (void)unused;
    u32 sender = this_cpu()->id;
    bool turns = together && is_nmi();
    if (turns)
        spin_lock(&nmi_lock.value);
    for (u32 i = 0; i < (kind->to == EACH ? cpu_count() : 1); i++)
        send_to(sender, (sender + i) % cpu_count());
    if (turns)
        spin_unlock(&nmi_lock.value);
}

/* Compares what was taken since `before` with what was sent; what a late doubling adds shows here too. */
static void compare(u64 before[MAX_CPUS][MAX_CPUS])
{
    u32 senders = is_nmi() ? 1 : cpu_count(); /* NMIs don't tell who sent them */
    u64 total = 0, wanted_total = 0;
    for (u32 sender = 0; sender < senders; sender++) {
        u64 taken_from = 0, anyone = sent[sender].to_anyone;
        for (u32 cpu = 0; cpu < cpu_count(); cpu++) {
            u64 taken = taken_by(cpu, sender) - before[sender][cpu], wanted = sent[sender].to[cpu];
            for (u32 other = 1; senders == 1 && other < cpu_count(); other++)
                wanted += sent[other].to[cpu];
            taken_from += taken;
            wanted_total += wanted;
            check(kind->to == ANYONE || taken == wanted, "ipi: kind=%s CPU %u took %lu from CPU %u, which sent %lu",
                  kind->name, cpu, taken, sender, wanted);
        }
        check(kind->to != ANYONE || taken_from == anyone, "ipi: kind=%s %lu of CPU %u's were taken; it sent %lu", kind->name,
              taken_from, sender, anyone);
        total += taken_from;
        wanted_total += anyone;
    }
    print("ipi: kind=%s count=%lu sent=%lu taken=%lu\n", kind->name, count, wanted_total, total);
}

static void run_kind(void)
{
    static u64 before[MAX_CPUS][MAX_CPUS];
    for (u32 sender = 0; sender < cpu_count(); sender++) {
        memset(&sent[sender], 0, sizeof sent[sender]);
        for (u32 cpu = 0; cpu < cpu_count(); cpu++)
            before[sender][cpu] = taken_by(cpu, sender);
    }
    u64 start = rdtsc();
    if (together) {
        run_on_all(send_all, NULL);
    } else {
        for (u32 sender = 0; sender < cpu_count(); sender++)
            run_on(sender, send_all, NULL);
    }
    print("# ipi: kind=%s cycles=%lu\n", kind->name, rdtsc() - start);
    compare(before);
}

void test_ipi(void)
{
    const char *name = config_text("kind", "every");
    bool known = same(name, "every");
    count = config_number("count", 10000);
    flight = (u32)config_number("flight", FLIGHT_MAX);
    if (flight > (VECTOR_IPI_END - VECTOR_IPI_FIRST) / cpu_count())
        flight = (VECTOR_IPI_END - VECTOR_IPI_FIRST) / cpu_count();
    check(flight, "ipi: flight=0: nothing would be sent");
    together = config_number("together", 0);
    for (u32 i = 0; i < LENGTH(kinds); i++) {
        if (!same(name, "every") && !same(name, kinds[i].name))
            continue;
        known = true;
        kind = &kinds[i];
        run_kind();
    }
    check(known, "ipi: kind=%s is not known", name);
}
