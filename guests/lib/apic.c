#include "apic.h"

#include "console.h"
#include "x86.h"

#define BASE_ENABLED 0x800UL
#define BASE_X2APIC 0x400UL
#define SVR_ENABLED 0x100UL
#define TIMER_DIVIDE_BY_1 0xb

void apic_set_up(void)
{
    if (!(kernel_read_msr(MSR_APIC_BASE) & BASE_ENABLED) || !(kernel_read_msr(MSR_APIC_BASE) & BASE_X2APIC))
        fail("x2APIC is off at the start: IA32_APIC_BASE is 0x%lx", kernel_read_msr(MSR_APIC_BASE));
    kernel_write_msr(MSR_X2APIC_TPR, 0);
    kernel_write_msr(MSR_X2APIC_SVR, SVR_ENABLED | VECTOR_SPURIOUS); /* first: off, the timer stays masked */
    kernel_write_msr(MSR_X2APIC_TIMER_DIVIDE, TIMER_DIVIDE_BY_1);
    kernel_write_msr(MSR_X2APIC_LVT_TIMER, VECTOR_NAP);
}

void ipi_send(u32 destination, u64 command) { write_msr(MSR_X2APIC_ICR, (u64)destination << 32 | ICR_ASSERT | command); }
