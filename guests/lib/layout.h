/* Constants that both C and the assembler need: selectors, vectors, and where things are in a CPU's block. */
#pragma once

#define MAX_CPUS 32

/* A CPU's block (struct cpu) is aligned to its size, so that the stack pointer alone leads to it, at any privilege level. */
#define CPU_BLOCK_SHIFT 16
#define CPU_BLOCK_SIZE (1 << CPU_BLOCK_SHIFT)
#define CPU_COUNTS 0x0000
#define CPU_ANSWER_ICR 0x1000
#define CPU_ARRIVAL_TSC 0x1008
#define CPU_KERNEL_STACK_TOP 0x8000
#define CPU_USER_STACK_TOP 0x10000

#define SELECTOR_KERNEL_CODE 0x08
#define SELECTOR_KERNEL_DATA 0x10
#define SELECTOR_USER_DATA 0x1b
#define SELECTOR_USER_CODE 0x23
#define SELECTOR_TSS 0x28

/* Vectors with a behaviour of their own; all others from 0x20 on are counted and end with EOI. */
#define VECTOR_NMI 0x02
#define VECTOR_HOOK 0x60   /* calls interrupt_hook in C, then EOI */
#define VECTOR_ANSWER 0x61 /* answers with the IPI in the receiver's answer_icr */
#define VECTOR_STAMP 0x62  /* keeps the time of arrival in the receiver's arrival_tsc */
#define VECTOR_SPURIOUS 0xff

/*
 * Services of CPL 0, called by CPL 3 with int3 and the service in r8: the one software interrupt that works on
 * every host, since hosts without VMX and SVM take other gates for their own.
 */
#define VECTOR_SERVICE 0x03
#define SERVICE_WRMSR 0
#define SERVICE_RDMSR 1
#define SERVICE_WAIT 2    /* halts until an interrupt if the word at rdi is still rsi */
#define SERVICE_OFFLINE 3 /* cli; hlt, for ever: only INIT ends it */
#define SERVICE_TRIPLE 4  /* a triple fault */
#define SERVICE_PAGE_MAP 5 /* loads CR3 with rdi */

/* Ordinary vectors of the runtime and of the tests. */
#define VECTOR_WAKE 0x40
#define VECTOR_NAP 0x41
#define VECTOR_TIMER 0x42
#define VECTOR_MSI 0x50
#define VECTOR_ANSWERED 0x51 /* what receivers of NMIs answer with */
#define VECTOR_IPI_FIRST 0x90 /* a share for each sender, up to VECTOR_IPI_END */
#define VECTOR_IPI_END 0xf0

/* Page tables, with the marks set beforehand that walks would set. */
#define TABLE_ENTRIES 512
#define ENTRY_TABLE 0x27 /* accessed, user, writable, present */
#define ENTRY_PAGE 0x67  /* the same, dirty */

#define MSR_EFER 0xc0000080
#define MSR_APIC_BASE 0x1b
#define MSR_TSC_DEADLINE 0x6e0
#define MSR_X2APIC_ID 0x802
#define MSR_X2APIC_TPR 0x808
#define MSR_X2APIC_EOI 0x80b
#define MSR_X2APIC_LDR 0x80d
#define MSR_X2APIC_SVR 0x80f
#define MSR_X2APIC_ICR 0x830
#define MSR_X2APIC_LVT_TIMER 0x832
#define MSR_X2APIC_TIMER_INITIAL 0x838
#define MSR_X2APIC_TIMER_DIVIDE 0x83e
#define MSR_X2APIC_SELF_IPI 0x83f

#define RFLAGS_INTERRUPTS 0x202
#define EFER_LME 0x100
#define CR4_PAE 0x20
#define CR0_LONG 0x80010033 /* PG WP NE ET MP PE */
