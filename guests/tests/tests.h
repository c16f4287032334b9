/* The tests, one file each. They run at CPL 3 on CPU 0, with all CPUs started, and end by returning or by fail(). */
#pragma once

#include "../lib/apic.h"
#include "../lib/config.h"
#include "../lib/console.h"
#include "../lib/random.h"
#include "../lib/smp.h"
#include "../lib/string.h"
#include "../lib/sync.h"
#include "device.h"

#define LENGTH(array) (sizeof(array) / sizeof((array)[0]))

void test_smp(void);
void test_ipi(void);
void test_locks(void);
void test_io(void);
void test_litmus(void);
void test_level(void);
void test_msi(void);
void test_dma(void);
void test_tsc(void);
void test_hotplug(void);
void test_reset(void);
void test_triplefault(void);
void test_timer(void);
void test_bench(void);
void test_matrix(void);
void test_sort(void);
void test_pages(void);
void test_many(void);
void test_walks(void);
void test_memory(void);
