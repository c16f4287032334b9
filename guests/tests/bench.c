/*
 * What benches/ measures of virtual machines. The host asks for batches through a device of its own (the ports below),
 * and gets cycles of the TSC for each sample. A vCPU that waits for the next batch waits in that access, and so uses no
 * processor.
 *
 * kind=ipi: a round trip of interrupts to CPU `to` (1). wait=halted|running: how both wait for them.
 * kind=hop, kind=answer: one side each of the same where no other CPU is in this machine: a write to BENCH_PORT_HOP stands for
 *   the interrupt that is sent, and what it leads to comes as VECTOR_BENCH.
 * kind=read|write: first accesses to pages that CPU 1 has written since. pages= (1024) at= their address, or the heap's.
 * kind=pio|mmio: a read of the register at BENCH_PORT_TARGET or BENCH_TARGET.
 * kind=compute: a product of matrices of side= (256) numbers a side by all CPUs, a band of rows each; its checksum is
 *   written to BENCH_PORT_SUM.
 */
#include "tests.h"

#define BENCH_PORT_NEXT 0x5c0    /* read: samples of the next batch, 0 at the end; waits until the host knows */
#define BENCH_PORT_SAMPLES 0x5c4 /* write: the batch's samples */
#define BENCH_PORT_SUM 0x5c8     /* write: what was computed */
#define BENCH_PORT_HOP 0x5cc
#define BENCH_PORT_TARGET 0x5d0
#define BENCH_TARGET 0xd0002000UL

#define VECTOR_BENCH 0x70
#define SAMPLES_MAX 1024
#define PAGES_MAX 1024
#define SIDE_MAX 1024

/* What is set up once, and then read by all CPUs: nothing that is written meanwhile shares its page. */
static struct PAGE_ALIGNED {
    u32 other;    /* the CPU at the other end */
    bool halts;   /* who waits for an interrupt is halted */
    bool by_port; /* the other end is in another machine */
    bool fetches_to_write;
    volatile u64 *pages;
    u64 page_count;
    u64 side; /* of the matrices */
    u32 *left, *right, *product;
    u64 *sums; /* one a CPU, each on a page of its own */
} set;

static PAGE_ALIGNED u32 samples[SAMPLES_MAX];
static PAGE_ALIGNED u32 order[PAGES_MAX];
static struct page_u64 batch;    /* its length, for the other CPU */
static struct page_u64 answered; /* interrupts that the other CPU has answered since the start */

static u32 cycles_since(u64 start)
{
    u64 cycles = rdtsc() - start;
    return cycles > 0xffffffff ? 0xffffffff : (u32)cycles;
}

/* Interrupts to and fro. */

static void await_one(u64 seen)
{
    const u64 *taken = &this_cpu()->counts[VECTOR_BENCH];
    while (load(taken) == seen)
        if (set.halts)
            wait_while(taken, seen);
        else
            pause();
}

static void send_one(u32 cpu)
{
    if (set.by_port)
        outb(BENCH_PORT_HOP, 0);
    else
        ipi_send(cpu, ICR_FIXED | VECTOR_BENCH);
}

static void answer_all(void *unused)
{
    (void)unused;
    for (u64 n = batch.value; n > 0; n--) {
        await_one(answered.value++);
        send_one(0);
    }
}

static u32 ask_one(void)
{
    u64 seen = count_of(0, VECTOR_BENCH), start = rdtsc();
    send_one(set.other);
    await_one(seen);
    return cycles_since(start);
}

/* The first one is for the pages with which the other CPU begins. Between the batches nobody runs in a loop that waits. */
static void ask_all(u32 count)
{
    batch.value = count + 1;
    if (!set.by_port)
        work_begin(set.other, answer_all, NULL);
    ask_one();
    for (u32 n = 0; n < count; n++)
        samples[n] = ask_one();
    if (!set.by_port)
        work_wait(set.other);
}

static void answer_batch(u32 count)
{
    batch.value = count + 1;
    answer_all(NULL);
}

/* Pages of another CPU. */

static volatile u64 *word_of(u64 page) { return set.pages + page * (PAGE_SIZE / sizeof(u64)); }

/* Neighbours are seldom touched one after the other: there is nothing to guess. */
static void shuffle(void)
{
    for (u32 i = 0; i < set.page_count; i++)
        order[i] = i;
    for (u32 i = (u32)set.page_count - 1; i > 0; i--) {
        u32 j = (u32)(random_at(1, i) % (i + 1)), kept = order[i];
        order[i] = order[j];
        order[j] = kept;
    }
}

static void write_pages(void *unused)
{
    (void)unused;
    for (u64 n = 0; n < batch.value; n++)
        (*word_of(order[n]))++;
}

static void touch_pages(u32 count)
{
    check(count <= set.page_count, "bench: a batch of %u for %lu pages", count, set.page_count);
    batch.value = count;
    if (cpu_count() > 1)
        run_on(1, write_pages, NULL);
    for (u32 n = 0; n < count; n++) {
        volatile u64 *word = word_of(order[n]);
        u64 start = rdtsc();
        if (set.fetches_to_write)
            *word = n;
        else
            (void)*word;
        samples[n] = cycles_since(start);
    }
}

static void set_up_pages(void)
{
    set.page_count = config_number("pages", PAGES_MAX);
    check(set.page_count >= 1 && set.page_count <= PAGES_MAX, "bench: pages=%lu; 1 to %u", set.page_count, PAGES_MAX);
    u64 at = config_number("at", 0);
    set.pages = at ? (volatile u64 *)at : heap_pages(set.page_count);
    shuffle();
}

/* Registers of a device. */

static void read_ports(u32 count)
{
    for (u32 n = 0; n < count; n++) {
        u64 start = rdtsc();
        inl(BENCH_PORT_TARGET);
        samples[n] = cycles_since(start);
    }
}

static void read_memory(u32 count)
{
    for (u32 n = 0; n < count; n++) {
        u64 start = rdtsc();
        u32 value;
        __asm__ volatile("movl (%1), %0" : "=r"(value) : "r"(BENCH_TARGET) : "memory");
        samples[n] = cycles_since(start);
    }
}

/* A parallel computation. */

static u32 *matrix(void) { return heap_pages((set.side * set.side * sizeof(u32) + PAGE_SIZE - 1) / PAGE_SIZE); }

static void multiply_band(void *unused)
{
    (void)unused;
    u64 id = this_cpu()->id, size = set.side, workers = cpu_count(), sum = 0;
    for (u64 row = size * id / workers; row < size * (id + 1) / workers; row++) {
        u32 *to = set.product + row * size;
        memset(to, 0, size * sizeof *to);
        for (u64 k = 0; k < size; k++) {
            u32 factor = set.left[row * size + k];
            const u32 *from = set.right + k * size;
            for (u64 column = 0; column < size; column++)
                to[column] += factor * from[column];
        }
        for (u64 column = 0; column < size; column++)
            sum += (u64)to[column] * (row * size + column + 1);
    }
    set.sums[id * (PAGE_SIZE / sizeof(u64))] = sum;
}

/* Other factors each time: what the CPUs share has to travel again. A sample is in units of 1024 cycles. */
static void multiply(u32 count)
{
    for (u32 n = 0; n < count; n++) {
        for (u64 i = 0; i < set.side * set.side; i++) {
            set.left[i] = (u32)random_at(n, i);
            set.right[i] = (u32)random_at(~(u64)n, i);
        }
        u64 start = rdtsc(), sum = 0;
        run_on_all(multiply_band, NULL);
        u64 took = rdtsc() - start;
        for (u64 cpu = 0; cpu < cpu_count(); cpu++)
            sum += set.sums[cpu * (PAGE_SIZE / sizeof(u64))];
        samples[n] = (u32)(took >> 10);
        outl(BENCH_PORT_SUM, (u32)(sum ^ sum >> 32));
    }
}

static void set_up_matrices(void)
{
    set.side = config_number("side", 256);
    check(set.side >= 1 && set.side <= SIDE_MAX, "bench: side=%lu; 1 to %u", set.side, SIDE_MAX);
    set.left = matrix();
    set.right = matrix();
    set.product = matrix();
    set.sums = heap_pages(cpu_count());
}

static void set_up_interrupts(void)
{
    const char *wait = config_text("wait", "halted");
    set.halts = same(wait, "halted");
    check(set.halts || same(wait, "running"), "bench: wait=%s is not known", wait);
    set.other = set.by_port ? 0 : config_cpu("to", 1);
    check(set.by_port || set.other != 0, "bench: CPU 0 sends interrupts to=%u, itself", set.other);
}

void test_bench(void)
{
    const char *kind = config_text("kind", "ipi");
    void (*run)(u32 count);
    set.by_port = same(kind, "hop") || same(kind, "answer");
    set.fetches_to_write = same(kind, "write");
    if (set.by_port || same(kind, "ipi")) {
        set_up_interrupts();
        run = same(kind, "answer") ? answer_batch : ask_all;
    } else if (same(kind, "read") || set.fetches_to_write) {
        set_up_pages();
        run = touch_pages;
    } else if (same(kind, "pio") || same(kind, "mmio")) {
        run = same(kind, "pio") ? read_ports : read_memory;
    } else if (same(kind, "compute")) {
        set_up_matrices();
        run = multiply;
    } else {
        fail("bench: kind=%s is not known", kind);
    }
    for (u32 count; (count = inl(BENCH_PORT_NEXT)) != 0;) {
        check(count <= SAMPLES_MAX, "bench: a batch of %u; at most %u", count, SAMPLES_MAX);
        run(count);
        outs32(BENCH_PORT_SAMPLES, samples, count);
    }
    print("bench: kind=%s\n", kind);
}
