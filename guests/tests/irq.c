/*
 * Interrupts from the test device: level-triggered ones through the IOAPIC, and MSIs. count=100: times to each CPU.
 *
 * exact=1 (level only): each time the line is high, one interrupt comes, and no more. With 0 more may come, for hosts
 * whose local APIC ends an interrupt when it delivers it: there the line is still high at its end now and then.
 */
#include "tests.h"

#define IOAPIC_SELECT 0xfec00000UL
#define IOAPIC_WINDOW 0xfec00010UL
#define IOAPIC_ENTRY(pin) (0x10 + 2 * (pin))
#define ENTRY_LEVEL 0x8000
#define ENTRY_MASKED 0x10000
#define ENTRY_REMOTE_IRR 0x4000

/* What the handler reads and writes, each on a page of its own: the line's CPU changes with every target. */
static struct page_u64 ignored; /* how many interrupts the handler shall leave raised */
static struct page_u64 lowered; /* how often it has lowered the line */
static u32 lines_before; /* how often the line had been raised before the test */
static bool exact;

static void ioapic_write(u32 index, u32 value)
{
    *(volatile u32 *)IOAPIC_SELECT = index;
    *(volatile u32 *)IOAPIC_WINDOW = value;
}

/* Waits until the EOI has reached the IOAPIC: an entry must not change while it is awaited. */
static void await_eoi(u32 pin)
{
    *(volatile u32 *)IOAPIC_SELECT = IOAPIC_ENTRY(pin);
    for (u32 turns = 0; *(volatile u32 *)IOAPIC_WINDOW & ENTRY_REMOTE_IRR;)
        relax(&turns);
}

/* At CPL 0. Lowers the line, unless it shall be seen again after the EOI. */
static void lower_line(void)
{
    if (!exact && device_read(DEVICE_LINES) - lines_before == (u32)lowered.value)
        return; /* it is low: the last interrupt, once more */
    if (ignored.value) {
        ignored.value--;
        return;
    }
    device_write(DEVICE_LINE, 0);
    store(&lowered.value, lowered.value + 1);
}

/* Raises the line `count` times towards one CPU; `again` is how often the handler leaves it raised each time. */
static void raise_to(u32 cpu, u32 pin, u64 count, u64 again)
{
    u64 before = count_of(cpu, VECTOR_HOOK);
    ioapic_write(IOAPIC_ENTRY(pin) + 1, cpu << 24);
    ioapic_write(IOAPIC_ENTRY(pin), ENTRY_LEVEL | VECTOR_HOOK);
    for (u64 n = 1; n <= count; n++) {
        store(&ignored.value, again);
        u64 wanted = lowered.value + 1;
        device_write(DEVICE_LINE, 1);
        for (u32 turns = 0; load(&lowered.value) < wanted;)
            relax(&turns);
    }
    await_eoi(pin);
    ioapic_write(IOAPIC_ENTRY(pin), ENTRY_MASKED);
    u64 taken = count_of(cpu, VECTOR_HOOK) - before;
    u64 wanted = count * (1 + again);
    check(exact ? taken == wanted : taken >= wanted, "level: CPU %u took %lu interrupts of %lu", cpu, taken, wanted);
    if (exact)
        print("level: cpu=%u count=%lu again=%lu taken=%lu\n", cpu, count, again, taken);
    else
        print("level: cpu=%u count=%lu again=%lu\n# level: taken=%lu\n", cpu, count, again, taken);
}

void test_level(void)
{
    u64 count = config_number("count", 100);
    exact = config_number("exact", 1);
    u32 pin = (u32)config_number("pin", 20);
    lines_before = device_read(DEVICE_LINES);
    hook.call = lower_line;
    for (u32 cpu = 0; cpu < cpu_count(); cpu++) {
        raise_to(cpu, pin, count, 0);
        raise_to(cpu, pin, count, 2);
    }
    u32 lines = device_read(DEVICE_LINES) - lines_before;
    check(lines == 2 * count * cpu_count(), "level: the device raised its line %u times", lines);
    for (u32 cpu = 0; cpu < cpu_count(); cpu++) /* a storm or a late one would show here */
        check(!exact || count_of(cpu, VECTOR_HOOK) == 4 * count, "level: CPU %u took %lu interrupts", cpu, count_of(cpu, VECTOR_HOOK));
    print("level: lines=%u\n", lines);
}

/* One CPU has the device send MSIs to every CPU in turn. */
static void ask_for_msis(void *argument)
{
    u64 count = *(const u64 *)argument;
    for (u64 n = 0; n < count; n++) {
        for (u32 cpu = 0; cpu < cpu_count(); cpu++) {
            u64 wanted = count_of(cpu, VECTOR_MSI) + 1;
            device_write(DEVICE_RAISE, VECTOR_MSI << 8 | cpu);
            for (u32 turns = 0; count_of(cpu, VECTOR_MSI) < wanted;)
                relax(&turns);
        }
    }
}

void test_msi(void)
{
    u64 count = config_number("count", 100);
    u32 raised = device_read(DEVICE_RAISED);
    for (u32 cpu = 0; cpu < cpu_count(); cpu++)
        run_on(cpu, ask_for_msis, &count);
    raised = device_read(DEVICE_RAISED) - raised;
    u64 wanted = count * cpu_count();
    for (u32 cpu = 0; cpu < cpu_count(); cpu++) {
        u64 taken = count_of(cpu, VECTOR_MSI);
        check(taken == wanted, "msi: CPU %u took %lu of %lu", cpu, taken, wanted);
        print("msi: cpu=%u taken=%lu\n", cpu, taken);
    }
    check(raised == wanted * cpu_count(), "msi: the device sent %u instead of %lu", raised, wanted * cpu_count());
    print("msi: sent=%u\n", raised);
}
