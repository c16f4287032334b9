/* Short names for the fixed widths, and what aligns data to pages. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef uint8_t u8;
typedef uint16_t u16;
typedef uint32_t u32;
typedef uint64_t u64;

#define PAGE_SIZE 4096UL
#define PAGE_ALIGNED __attribute__((aligned(4096)))

/* A variable that has its page to itself: CPUs of different nodes write it. */
struct PAGE_ALIGNED page_u64 {
    u64 value;
};
_Static_assert(sizeof(struct page_u64) == PAGE_SIZE, "a page each");
