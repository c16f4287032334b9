/* The part of the C library that the compiler expects, and what the command line needs. */
#pragma once

#include "types.h"

void *memcpy(void *restrict to, const void *restrict from, size_t bytes);
void *memset(void *to, int value, size_t bytes);
size_t strlen(const char *text);
bool same(const char *a, const char *b);
