/* Text on COM1, and the end of the guest through the debug-exit port. At CPL 0 or 3. */
#pragma once

#include "types.h"

void console_set_up(void);

/* Conversions: %u %x (32 bits), %lu %lx (64 bits), %s, %%. One call is one unbroken piece of output. */
void print(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* Ends the VM: with status 1. */
_Noreturn void pass(void);

/* Says what failed and ends the VM with status 3. */
_Noreturn void fail(const char *format, ...) __attribute__((format(printf, 1, 2)));

#define check(condition, ...) \
    do {                      \
        if (!(condition))     \
            fail(__VA_ARGS__); \
    } while (0)
