#include "cpu.h"

#include "apic.h"
#include "console.h"
#include "x86.h"

#define NAP_TICKS 100000 /* of the APIC's clock: 1 GHz under KVM */

struct cpu cpus[MAX_CPUS];
struct hook hook;

extern const u64 boot_gdt[5];
extern const u8 interrupt_entries[256][32];

struct gate {
    u16 offset_low;
    u16 selector;
    u16 attributes;
    u16 offset_middle;
    u32 offset_high;
    u32 reserved;
};

static PAGE_ALIGNED struct gate idt[256];

/* What lgdt and lidt read. */
struct __attribute__((packed)) table_pointer {
    u16 limit;
    u64 base;
};

/* The processor's frame with what the entry pushed below it. */
struct frame {
    u64 vector, error, rip, cs, rflags, rsp, ss;
};

_Noreturn void exception(const struct frame *frame);

void idt_build(void)
{
    const u16 interrupt_gate = 0x8e00, open_to_user = 0x6000;
    for (u32 vector = 0; vector < 256; vector++) {
        u64 entry = (u64)interrupt_entries[vector];
                idt[vector] = (struct gate){
            .offset_low = (u16)entry,
            .selector = SELECTOR_KERNEL_CODE,
            .attributes = vector == VECTOR_SERVICE ? interrupt_gate | open_to_user : interrupt_gate,
            .offset_middle = (u16)(entry >> 16),
            .offset_high = (u32)(entry >> 32),
        };
    }
}

void cpu_set_up(struct cpu *cpu)
{
    u64 tss = (u64)&cpu->tss;
    for (u32 i = 0; i < 5; i++)
        cpu->gdt[i] = boot_gdt[i];
    cpu->tss.kernel_stack = (u64)cpu + CPU_KERNEL_STACK_TOP;
    cpu->tss.io_map_base = offsetof(struct tss, io_map);
    cpu->tss.io_map_end = 0xff;
    cpu->gdt[5] = (sizeof(struct tss) - 1) | (tss & 0xffffff) << 16 | 0x89UL << 40 | (tss >> 24 & 0xff) << 56;
    cpu->gdt[6] = tss >> 32;

    struct table_pointer gdt = {sizeof cpu->gdt - 1, (u64)cpu->gdt};
    struct table_pointer interrupts = {sizeof idt - 1, (u64)idt};
    __asm__ volatile("lgdt %0" ::"m"(gdt));
    __asm__ volatile("ltr %w0" ::"r"(SELECTOR_TSS));
    __asm__ volatile("lidt %0" ::"m"(interrupts));
    apic_set_up();
}

void cpu_nap(void)
{
    const u64 *naps = &this_cpu()->counts[VECTOR_NAP];
    u64 before = __atomic_load_n(naps, __ATOMIC_RELAXED);
    write_msr(MSR_X2APIC_TIMER_INITIAL, NAP_TICKS);
    while (__atomic_load_n(naps, __ATOMIC_RELAXED) == before)
        wait_while(naps, before);
}

void interrupt_hook(void)
{
    if (hook.call)
        hook.call();
}

void exception(const struct frame *frame)
{
    u64 address;
    __asm__ volatile("mov %%cr2, %0" : "=r"(address));
    fail("cpu %u: exception %lu, error code 0x%lx, at %lx:0x%lx, flags 0x%lx, stack 0x%lx, address 0x%lx", this_cpu()->id, frame->vector,
         frame->error, frame->cs, frame->rip, frame->rflags, frame->rsp, address);
}
