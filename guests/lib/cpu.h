/* One CPU's block: everything that only this CPU writes, or that others write for it, page by page. */
#pragma once

#include "layout.h"
#include "types.h"

#define IO_MAP_PORTS 0x1000

/* What a CPU shall run next; written by the CPU that starts the work. */
struct PAGE_ALIGNED work {
    u64 number; /* rises with every piece of work, written last */
    void (*run)(void *argument);
    void *argument;
};

struct __attribute__((packed, aligned(4))) tss {
    u32 reserved;
    u64 kernel_stack;
    u8 unused[90];
    u16 io_map_base;
    u8 io_map[IO_MAP_PORTS / 8]; /* a zero bit opens a port to CPL 3; iretq can't set IOPL 3 on every host */
    u8 io_map_end;               /* all ones */
};
_Static_assert(offsetof(struct tss, io_map) == 104, "SDM 3A, figure 8-11");

struct __attribute__((aligned(CPU_BLOCK_SIZE))) cpu {
    PAGE_ALIGNED u64 counts[256]; /* interrupts taken, by vector */

    PAGE_ALIGNED u64 answer_icr; /* written by others: what VECTOR_ANSWER sends, and an NMI unless it is 0 */
    u64 arrival_tsc;             /* when VECTOR_STAMP came last */

    struct work work;

    PAGE_ALIGNED u64 done; /* the number of the last work that was finished */
    u64 starts;            /* how often this CPU came online */
    u32 id;
    u32 sipi_vector; /* 0 on the first CPU */
    u64 random;

    PAGE_ALIGNED u64 gdt[7];
    struct tss tss;

    PAGE_ALIGNED u8 kernel_stack[CPU_KERNEL_STACK_TOP - 5 * PAGE_SIZE];
    u8 user_stack[CPU_USER_STACK_TOP - CPU_KERNEL_STACK_TOP];
};
_Static_assert(offsetof(struct cpu, counts) == CPU_COUNTS, "layout.h");
_Static_assert(offsetof(struct cpu, answer_icr) == CPU_ANSWER_ICR, "layout.h");
_Static_assert(offsetof(struct cpu, arrival_tsc) == CPU_ARRIVAL_TSC, "layout.h");
_Static_assert(offsetof(struct cpu, user_stack) == CPU_KERNEL_STACK_TOP, "layout.h");
_Static_assert(sizeof(struct cpu) == CPU_BLOCK_SIZE, "layout.h");

extern struct cpu cpus[MAX_CPUS];

/* The block of the CPU that asks, found through its stack. */
static inline struct cpu *this_cpu(void)
{
    u64 stack;
    __asm__ volatile("mov %%rsp, %0" : "=r"(stack));
    return (struct cpu *)(stack & ~(CPU_BLOCK_SIZE - 1UL));
}

/* Interrupts of one vector that a CPU has taken so far. */
static inline u64 count_of(u32 cpu, u32 vector) { return __atomic_load_n(&cpus[cpu].counts[vector], __ATOMIC_ACQUIRE); }

/* At CPL 0: fills the IDT, which all CPUs share. Once, before any other CPU starts. */
void idt_build(void);

/* At CPL 0: own GDT and TSS, the IDT, and the local APIC in x2APIC mode. */
void cpu_set_up(struct cpu *cpu);

/* Halts for some 100 us, by the local APIC's timer. */
void cpu_nap(void);

/* Called at CPL 0 by VECTOR_HOOK before its EOI. */
void interrupt_hook(void);

/* What interrupt_hook calls, where a test has set it; on a page of its own. */
struct PAGE_ALIGNED hook {
    void (*call)(void);
};
extern struct hook hook;

_Noreturn void enter_user(void (*entry)(void), void *stack);
_Noreturn void start_first_cpu(void);
_Noreturn void start_other_cpu(u32 sipi_vector);
