/*
 * Ports and memory of a device, by every CPU at once. count=200: rounds of each CPU.
 * The counter adds what is written to it, in each width, by ports, string ports and memory: its sum tells of every lost
 * or doubled access. Index and data are two accesses that belong together: a lock of the guest keeps other CPUs away,
 * so a slot that changes under another's index means that accesses were reordered.
 */
#include "tests.h"

#define SLOTS_PER_CPU 4
#define SLOTS 256

static u64 count;
static struct page_u64 lock;

/* What one round adds to the counter. */
#define ROUND_PORTS (0x01 + 0x0203 + 0x04050607U)
#define ROUND_MEMORY (0x11 + 0x1213 + 0x14151617U)
static const u8 bytes[4] = {0x81, 0x92, 0xa3, 0xb4};
static const u16 words[3] = {0x8182, 0x9293, 0xa4a5};
static const u32 longs[2] = {0x10203040, 0x50607080};
#define ROUND_STRINGS (0x81 + 0x92 + 0xa3 + 0xb4 + 0x8182 + 0x9293 + 0xa4a5 + 0x10203040U + 0x50607080U)

static void write_ports(void *unused)
{
    (void)unused;
    for (u64 n = 0; n < count; n++) {
        outb(DEVICE_PORT_COUNTER, 0x01);
        outw(DEVICE_PORT_COUNTER, 0x0203);
        outl(DEVICE_PORT_COUNTER, 0x04050607);
    }
}

static void write_memory(void *unused)
{
    (void)unused;
    for (u64 n = 0; n < count; n++) {
        device_write8(DEVICE_COUNTER, 0x11);
        device_write16(DEVICE_COUNTER, 0x1213);
        device_write(DEVICE_COUNTER, 0x14151617);
    }
}

static void write_strings(void *unused)
{
    (void)unused;
    for (u64 n = 0; n < count; n++) {
        outs8(DEVICE_PORT_COUNTER, bytes, LENGTH(bytes));
        outs16(DEVICE_PORT_COUNTER, words, LENGTH(words));
        outs32(DEVICE_PORT_COUNTER, longs, LENGTH(longs));
    }
}

static void write_slot(u32 slot, u32 value, bool ports)
{
    spin_lock(&lock.value);
    if (ports) {
        outl(DEVICE_PORT_INDEX, slot);
        outl(DEVICE_PORT_DATA, value);
    } else {
        device_write(DEVICE_INDEX, slot);
        device_write(DEVICE_DATA, value);
    }
    spin_unlock(&lock.value);
}

/* Index and data by different ways: both lead to the same registers. */
static u32 read_slot(u32 slot, bool ports)
{
    spin_lock(&lock.value);
    if (ports)
        outl(DEVICE_PORT_INDEX, slot);
    else
        device_write(DEVICE_INDEX, slot);
    u32 value = ports ? device_read(DEVICE_DATA) : inl(DEVICE_PORT_DATA);
    spin_unlock(&lock.value);
    return value;
}

/* Writes a slot of its own, and reads all of its slots again, by ports in even rounds and by memory in odd ones. */
static void use_slots(void *unused)
{
    (void)unused;
    u32 id = this_cpu()->id, mine[SLOTS_PER_CPU] = {0};
    for (u32 i = 0; i < SLOTS_PER_CPU; i++)
        write_slot(id * SLOTS_PER_CPU + i, 0, true);
    for (u64 n = 0; n < count; n++) {
        u32 which = (u32)random_at(id, n) % SLOTS_PER_CPU, value = (u32)random_at(~(u64)id, n);
        bool ports = !(n & 1);
        mine[which] = value;
        write_slot(id * SLOTS_PER_CPU + which, value, ports);
        for (u32 i = 0; i < SLOTS_PER_CPU; i++) {
            u32 read = read_slot(id * SLOTS_PER_CPU + i, ports);
            check(read == mine[i], "io: CPU %u's slot %u holds 0x%x instead of 0x%x in round %lu", id, i, read, mine[i], n);
        }
    }
}

static void run_counted(const char *name, void (*run)(void *), u32 round)
{
    u32 before = device_read(DEVICE_COUNTER);
    run_on_all(run, NULL);
    u32 sum = device_read(DEVICE_COUNTER) - before, wanted = round * (u32)(count * cpu_count());
    check(sum == wanted, "io: access=%s the counter rose by 0x%x instead of 0x%x", name, sum, wanted);
    check(inl(DEVICE_PORT_COUNTER) - before == sum, "io: the counter reads 0x%x by its port", inl(DEVICE_PORT_COUNTER));
    print("io: access=%s count=%lu sum=0x%x\n", name, count, sum);
}

/* Reads one slot several times with one instruction. */
static void read_string(void)
{
    u32 read[5] = {0};
    outl(DEVICE_PORT_INDEX, SLOTS - 1);
    outl(DEVICE_PORT_DATA, 0x600dda7a);
    ins32(DEVICE_PORT_DATA, read, LENGTH(read));
    for (u32 i = 0; i < LENGTH(read); i++)
        check(read[i] == 0x600dda7a, "io: word %u of rep ins reads 0x%x", i, read[i]);
    print("io: access=string-in words=%u\n", (u32)LENGTH(read));
}

void test_io(void)
{
    static const char text[] = "io: text for the debug console\n";
    count = config_number("count", 200);
    run_counted("ports", write_ports, ROUND_PORTS);
    run_counted("memory", write_memory, ROUND_MEMORY);
    run_counted("string-out", write_strings, ROUND_STRINGS);
    read_string();
    outs8(DEBUG_CONSOLE, (const u8 *)text, sizeof text - 1);
    run_on_all(use_slots, NULL);
    print("io: access=index-data count=%lu slots=%u\n", count, cpu_count() * SLOTS_PER_CPU);
    check(inb(0x2f7) == 0xff && inw(0x2f6) == 0xffff && inl(0x2f4) == 0xffffffff, "io: a port that nothing claims isn't all ones");
    print("io: access=unclaimed value=all-ones\n");
}
