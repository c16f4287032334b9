/* The local APIC in x2APIC mode, by its registers as MSRs only. SDM 3A, chapter 11. */
#pragma once

#include "types.h"

/* Delivery modes and destinations of the interrupt command register. */
#define ICR_FIXED 0x000UL
#define ICR_LOWEST 0x100UL
#define ICR_NMI 0x400UL
#define ICR_INIT 0x500UL
#define ICR_STARTUP 0x600UL
#define ICR_ASSERT 0x4000UL
#define ICR_LOGICAL 0x800UL
#define ICR_SELF 0x40000UL
#define ICR_ALL 0x80000UL
#define ICR_OTHERS 0xc0000UL

/* At CPL 0: switches the APIC on. */
void apic_set_up(void);

/* Sends to one destination: a physical id, or a logical one with ICR_LOGICAL. No wait: x2APIC has no delivery status. */
void ipi_send(u32 destination, u64 command);

/* The logical id that x2APIC derives from a CPU's id: cluster << 16 | bit in the cluster. */
static inline u32 logical_id(u32 cpu) { return (cpu >> 4) << 16 | 1U << (cpu & 15); }
