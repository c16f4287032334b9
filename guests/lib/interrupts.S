/*
 * The 256 entries of the IDT, 32 bytes each. At CPL 0 every instruction may be emulated (2 million a second), so
 * an ordinary interrupt does no more than count itself in its CPU's block and end with EOI.
 */
#include "layout.h"

    .macro COUNT vector /* rax has been saved, and is the CPU's block afterwards */
    movq %rsp, %rax
    andq $-CPU_BLOCK_SIZE, %rax
    incq CPU_COUNTS + 8 * \vector(%rax)
    .endm

    .macro EXCEPTION vector
    .if \vector != 8 && (\vector < 10 || \vector > 14) && \vector != 17 && \vector != 21 && \vector != 29 && \vector != 30
    pushq $0 /* no error code */
    .endif
    pushq $\vector
    jmp unexpected
    .endm

    .macro ENTRY vector
    .balign 32
    .if \vector == VECTOR_NMI
    jmp nmi_entry
    .elseif \vector == VECTOR_SERVICE
    jmp service_entry
    .elseif \vector < 0x20
    EXCEPTION \vector
    .elseif \vector == VECTOR_HOOK
    jmp hook_entry
    .elseif \vector == VECTOR_ANSWER
    jmp answer_entry
    .elseif \vector == VECTOR_STAMP
    jmp stamp_entry
    .elseif \vector == VECTOR_SPURIOUS
    jmp spurious_entry
    .else
    pushq %rax
    COUNT \vector
    jmp end_of_interrupt
    .endif
    .endm

    .section .text
    .code64
    .balign 32
    .globl interrupt_entries
interrupt_entries:
    .altmacro
    .set vector, 0
    .rept 256
    ENTRY %vector
    .set vector, vector + 1
    .endr
    .noaltmacro

end_of_interrupt: /* rax is on the stack */
    pushq %rcx
    pushq %rdx
    xorl %eax, %eax
    xorl %edx, %edx
    movl $MSR_X2APIC_EOI, %ecx
    wrmsr
    popq %rdx
    popq %rcx
    popq %rax
    iretq

nmi_entry: /* answers with the IPI in answer_icr, if there is one; NMIs have no EOI */
    pushq %rax
    COUNT VECTOR_NMI
    cmpl $0, CPU_ANSWER_ICR(%rax)
    je 1f
    pushq %rcx
    pushq %rdx
    movq CPU_ANSWER_ICR(%rax), %rdx
    movl %edx, %eax
    shrq $32, %rdx
    movl $MSR_X2APIC_ICR, %ecx
    wrmsr
    popq %rdx
    popq %rcx
1:  popq %rax
    iretq

spurious_entry:
    pushq %rax
    COUNT VECTOR_SPURIOUS
    popq %rax
    iretq

answer_entry: /* EOI first, so that the answer's answer can come at once */
    pushq %rax
    COUNT VECTOR_ANSWER
    pushq %rcx
    pushq %rdx
    pushq CPU_ANSWER_ICR(%rax)
    xorl %eax, %eax
    xorl %edx, %edx
    movl $MSR_X2APIC_EOI, %ecx
    wrmsr
    popq %rax
    movq %rax, %rdx
    shrq $32, %rdx
    movl $MSR_X2APIC_ICR, %ecx
    wrmsr
    popq %rdx
    popq %rcx
    popq %rax
    iretq

stamp_entry:
    pushq %rax
    pushq %rcx
    pushq %rdx
    rdtsc
    movl %eax, %ecx
    COUNT VECTOR_STAMP
    movl %ecx, CPU_ARRIVAL_TSC(%rax)
    movl %edx, CPU_ARRIVAL_TSC + 4(%rax)
    popq %rdx
    popq %rcx
    jmp end_of_interrupt

hook_entry:
    pushq %rax
    COUNT VECTOR_HOOK
    pushq %rcx
    pushq %rdx
    pushq %rsi
    pushq %rdi
    pushq %r8
    pushq %r9
    pushq %r10
    pushq %r11
    cld
    call interrupt_hook
    popq %r11
    popq %r10
    popq %r9
    popq %r8
    popq %rdi
    popq %rsi
    popq %rdx
    popq %rcx
    jmp end_of_interrupt

service_entry: /* the quickest first */
    cmpl $SERVICE_RDMSR, %r8d
    ja 1f
    je 2f
    wrmsr
    iretq
2:  rdmsr
    iretq
1:  cmpl $SERVICE_OFFLINE, %r8d
    je offline_entry
    ja 1f
/* Falls through to SERVICE_WAIT: no interrupt can come between the comparison and the halt. */
    cmpq %rsi, (%rdi)
    jne 2f
    sti
    hlt
2:  iretq
1:  cmpl $SERVICE_PAGE_MAP, %r8d
    jne triple_entry
    movq %rdi, %cr3
    iretq

offline_entry:
    hlt
    jmp offline_entry

triple_entry: /* no IDT: the fault, the double fault and the third have nowhere to go */
    pushq $0
    pushq $0
    lidt 6(%rsp)
    ud2

unexpected: /* vector, error code and the processor's frame are on the stack */
    movq %rsp, %rdi
    cld
    call exception
    ud2

    .section .note.GNU-stack, "", @progbits
