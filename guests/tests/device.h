/* The registers of the host's test device, as guests/README.md describes them; one state behind ports and memory. */
#pragma once

#include "../lib/x86.h"

#define DEVICE_MEMORY 0xd0000000UL
#define DEVICE_INDEX 0x00
#define DEVICE_DATA 0x04
#define DEVICE_COUNTER 0x08
#define DEVICE_RAISE 0x10
#define DEVICE_RAISED 0x14
#define DEVICE_LINE 0x18
#define DEVICE_LINES 0x1c
#define DEVICE_PAGE 0x20
#define DEVICE_KEY 0x24

#define DEVICE_PORT_INDEX 0x5e0
#define DEVICE_PORT_DATA 0x5e4
#define DEVICE_PORT_COUNTER 0x5ec
#define DEBUG_CONSOLE 0xe9

static inline void device_write8(u32 offset, u8 value)
{
    __asm__ volatile("movb %0, (%1)" ::"q"(value), "r"(DEVICE_MEMORY + offset) : "memory");
}

static inline void device_write16(u32 offset, u16 value)
{
    __asm__ volatile("movw %0, (%1)" ::"r"(value), "r"(DEVICE_MEMORY + offset) : "memory");
}

static inline void device_write(u32 offset, u32 value)
{
    __asm__ volatile("movl %0, (%1)" ::"r"(value), "r"(DEVICE_MEMORY + offset) : "memory");
}

static inline u32 device_read(u32 offset)
{
    u32 value;
    __asm__ volatile("movl (%1), %0" : "=r"(value) : "r"(DEVICE_MEMORY + offset) : "memory");
    return value;
}
