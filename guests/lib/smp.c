#include "smp.h"

#include "apic.h"
#include "console.h"
#include "fw_cfg.h"
#include "string.h"
#include "sync.h"

#define RAM_BYTES_MIN (64UL << 20)
#define RAM_BYTES_MAX (3UL << 30) /* what page_map maps as memory */

extern const u8 trampoline[], trampoline_end[];
extern u8 image_end[];

static u32 count;
static u64 heap_next, heap_limit;

static _Noreturn void worker(void);

u32 cpu_count(void) { return count; }
u64 heap_start(void) { return heap_next; }
u64 heap_end(void) { return heap_limit; }

void smp_set_up(void)
{
    fw_cfg_set_up();
    count = (u32)fw_cfg_read(FW_CFG_CPUS, 2);
    check(count >= 1 && count <= MAX_CPUS, "fw_cfg tells of %u CPUs; this guest runs 1 to %u", count, MAX_CPUS);
    heap_next = (u64)image_end;
    heap_limit = fw_cfg_read(FW_CFG_RAM_SIZE, 8);
    check(heap_limit >= RAM_BYTES_MIN, "fw_cfg tells of %lu bytes of RAM; 64 MiB is the least", heap_limit);
    if (heap_limit > RAM_BYTES_MAX)
        heap_limit = RAM_BYTES_MAX;
}

void *heap_pages(u64 pages)
{
    u64 start = heap_next;
    check(pages <= (heap_limit - heap_next) / PAGE_SIZE, "the test needs %lu pages; %lu are free", pages,
          (heap_limit - heap_next) / PAGE_SIZE);
    heap_next += pages * PAGE_SIZE;
    return (void *)start;
}

/* Vectors far apart, so that a mistake in passing one on is seen; none where loaders keep their tables. */
u32 first_vector(u32 cpu)
{
    static const u8 vectors[] = {0x30, 0x51, 0x6a, 0x87};
    return vectors[cpu % sizeof vectors];
}

void cpu_start(u32 cpu, u32 sipi_vector)
{
    u64 starts = load(&cpus[cpu].starts);
    memcpy((void *)((u64)sipi_vector << 12), trampoline, (size_t)(trampoline_end - trampoline));
    ipi_send(cpu, ICR_INIT);
    ipi_send(cpu, ICR_STARTUP | sipi_vector);
    ipi_send(cpu, ICR_STARTUP | sipi_vector);
    wait_until(&cpus[cpu].starts, starts + 1);
}

void cpu_start_all(void)
{
    for (u32 cpu = 1; cpu < count; cpu++)
        cpu_start(cpu, first_vector(cpu));
}

void start_other_cpu(u32 sipi_vector)
{
    struct cpu *cpu = this_cpu();
    cpu->id = (u32)(cpu - cpus);
    cpu->sipi_vector = sipi_vector;
    cpu_set_up(cpu);
    cpu->done = cpu->work.number; /* what it had not finished when INIT came is lost */
    store(&cpu->starts, cpu->starts + 1);
    enter_user(worker, (u8 *)cpu + CPU_USER_STACK_TOP - 8);
}

static _Noreturn void worker(void)
{
    struct cpu *cpu = this_cpu();
    for (;;) {
        while (load(&cpu->work.number) == cpu->done)
            wait_while(&cpu->work.number, cpu->done);
        cpu->work.run(cpu->work.argument);
        store(&cpu->done, cpu->done + 1);
        ipi_send(0, ICR_FIXED | VECTOR_WAKE);
    }
}

void work_begin(u32 cpu, void (*run)(void *), void *argument)
{
    struct work *work = &cpus[cpu].work;
    work->run = run;
    work->argument = argument;
    store(&work->number, work->number + 1);
    ipi_send(cpu, ICR_FIXED | VECTOR_WAKE);
}

void work_wait(u32 cpu)
{
    u64 done;
    while ((done = load(&cpus[cpu].done)) != cpus[cpu].work.number)
        wait_while(&cpus[cpu].done, done);
}

void run_on(u32 cpu, void (*run)(void *), void *argument) { run_on_list(&cpu, 1, run, argument); }

void run_on_list(const u32 ids[], u32 listed, void (*run)(void *), void *argument)
{
    bool here = false;
    for (u32 i = 0; i < listed; i++) {
        if (ids[i] == 0)
            here = true;
        else
            work_begin(ids[i], run, argument);
    }
    if (here)
        run(argument);
    for (u32 i = 0; i < listed; i++)
        if (ids[i] != 0)
            work_wait(ids[i]);
}

void run_on_all(void (*run)(void *), void *argument)
{
    u32 ids[MAX_CPUS];
    for (u32 cpu = 0; cpu < count; cpu++)
        ids[cpu] = cpu;
    run_on_list(ids, count, run, argument);
}

void cpu_offline(void) { end_service(SERVICE_OFFLINE); }
