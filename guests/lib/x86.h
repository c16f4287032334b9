/* Single instructions, and the services of CPL 0. All of it is called at CPL 3 unless it says otherwise. */
#pragma once

#include "layout.h"
#include "types.h"

static inline void outb(u16 port, u8 value) { __asm__ volatile("outb %0, %1" ::"a"(value), "Nd"(port) : "memory"); }
static inline void outw(u16 port, u16 value) { __asm__ volatile("outw %0, %1" ::"a"(value), "Nd"(port) : "memory"); }
static inline void outl(u16 port, u32 value) { __asm__ volatile("outl %0, %1" ::"a"(value), "Nd"(port) : "memory"); }

static inline u8 inb(u16 port)
{
    u8 value;
    __asm__ volatile("inb %1, %0" : "=a"(value) : "Nd"(port) : "memory");
    return value;
}

static inline u16 inw(u16 port)
{
    u16 value;
    __asm__ volatile("inw %1, %0" : "=a"(value) : "Nd"(port) : "memory");
    return value;
}

static inline u32 inl(u16 port)
{
    u32 value;
    __asm__ volatile("inl %1, %0" : "=a"(value) : "Nd"(port) : "memory");
    return value;
}

static inline void outs8(u16 port, const u8 *data, u64 count)
{
    __asm__ volatile("rep outsb" : "+S"(data), "+c"(count) : "d"(port) : "memory");
}

static inline void outs16(u16 port, const u16 *data, u64 count)
{
    __asm__ volatile("rep outsw" : "+S"(data), "+c"(count) : "d"(port) : "memory");
}

static inline void outs32(u16 port, const u32 *data, u64 count)
{
    __asm__ volatile("rep outsl" : "+S"(data), "+c"(count) : "d"(port) : "memory");
}

static inline void ins32(u16 port, u32 *data, u64 count)
{
    __asm__ volatile("rep insl" : "+D"(data), "+c"(count) : "d"(port) : "memory");
}

static inline u64 rdtsc(void)
{
    u32 low, high;
    __asm__ volatile("lfence; rdtsc; lfence" : "=a"(low), "=d"(high)::"memory");
    return (u64)high << 32 | low;
}

static inline void pause(void) { __asm__ volatile("pause" ::: "memory"); }

static inline void cpuid(u32 leaf, u32 *a, u32 *b, u32 *c, u32 *d)
{
    __asm__ volatile("cpuid" : "=a"(*a), "=b"(*b), "=c"(*c), "=d"(*d) : "a"(leaf), "c"(0));
}

/* Calls a service of CPL 0 that takes what wrmsr or rdmsr take. */
static inline u64 msr_service(u32 service, u32 msr, u64 value)
{
    register u64 number __asm__("r8") = service;
    u32 low = (u32)value, high = (u32)(value >> 32);
    __asm__ volatile("int3" : "+a"(low), "+d"(high) : "c"(msr), "r"(number) : "memory");
    return (u64)high << 32 | low;
}

static inline void write_msr(u32 msr, u64 value) { msr_service(SERVICE_WRMSR, msr, value); }
static inline u64 read_msr(u32 msr) { return msr_service(SERVICE_RDMSR, msr, 0); }

/* Halts until an interrupt, if the variable still has this value. It may return early: check again. */
static inline void wait_while(const u64 *variable, u64 value)
{
    register u64 number __asm__("r8") = SERVICE_WAIT;
    __asm__ volatile("int3" ::"D"(variable), "S"(value), "r"(number) : "memory");
}

/* The page tables that all CPUs start with. */
extern u64 page_map[TABLE_ENTRIES];

/* Makes this CPU use other page tables, which must map everything that it uses now as it is mapped now. */
static inline void use_page_map(const void *tables)
{
    register u64 number __asm__("r8") = SERVICE_PAGE_MAP;
    __asm__ volatile("int3" ::"D"(tables), "r"(number) : "memory");
}

/* Never returns: SERVICE_OFFLINE or SERVICE_TRIPLE. */
static inline _Noreturn void end_service(u32 service)
{
    register u64 number __asm__("r8") = service;
    __asm__ volatile("int3" ::"r"(number) : "memory");
    __builtin_unreachable();
}

/* The same two registers when already at CPL 0. */
static inline void kernel_write_msr(u32 msr, u64 value)
{
    __asm__ volatile("wrmsr" ::"c"(msr), "a"((u32)value), "d"((u32)(value >> 32)) : "memory");
}

static inline u64 kernel_read_msr(u32 msr)
{
    u32 low, high;
    __asm__ volatile("rdmsr" : "=a"(low), "=d"(high) : "c"(msr) : "memory");
    return (u64)high << 32 | low;
}
