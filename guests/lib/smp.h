/* Starting CPUs and giving them work. All CPUs run at CPL 3 except in interrupts. */
#pragma once

#include "cpu.h"

/* The number of CPUs, from fw_cfg; ids are 0 to this, less one. */
u32 cpu_count(void);

/* The first free byte of RAM behind the image, and the end of RAM below 3 GiB. */
u64 heap_start(void);
u64 heap_end(void);

/* Pages for a test's data; never given back. */
void *heap_pages(u64 count);

/* At CPL 0: reads fw_cfg. */
void smp_set_up(void);

/* INIT, SIPI, SIPI. Returns when the CPU runs; the caller may be any CPU but that one. */
void cpu_start(u32 cpu, u32 sipi_vector);

/* Starts all other CPUs, each with a vector of its own choice. */
void cpu_start_all(void);

/* The SIPI vector that cpu_start_all uses for a CPU. */
u32 first_vector(u32 cpu);

/* Hands work to a CPU that waits for some; and waits until it is done, asleep. Only CPU 0 does so. */
void work_begin(u32 cpu, void (*run)(void *), void *argument);
void work_wait(u32 cpu);

/* Runs the same on one, or on all listed CPUs at once, CPU 0 included. */
void run_on(u32 cpu, void (*run)(void *), void *argument);
void run_on_list(const u32 ids[], u32 count, void (*run)(void *), void *argument);
void run_on_all(void (*run)(void *), void *argument);

/* Ends a CPU's life in software: interrupts off and halted until INIT. As the last act of its work. */
_Noreturn void cpu_offline(void);
