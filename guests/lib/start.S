/*
 * Entry of the first CPU, in 32-bit protected mode without paging.
 *
 * By PVH: ebx = hvm_start_info. By Multiboot 1: eax = 0x2badb002, ebx = multiboot_info. Both are told apart later, in C.
 */
#include "layout.h"

#define MULTIBOOT_MAGIC 0x1badb002
#define MULTIBOOT_FLAGS 0x3 /* modules on page borders, memory information */
#define XEN_ELFNOTE_PHYS32_ENTRY 18

/* Loads the data segments and the stack of this CPU's block, by its APIC id. Changes rax, rcx, rdx. */
    .macro USE_OWN_BLOCK
    movl $SELECTOR_KERNEL_DATA, %eax
    movl %eax, %ss
    xorl %eax, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %fs
    movl %eax, %gs
    movl $MSR_X2APIC_ID, %ecx
    rdmsr
    cmpl $MAX_CPUS, %eax
    jae no_such_block
    shlq $CPU_BLOCK_SHIFT, %rax
    leaq cpus + CPU_KERNEL_STACK_TOP(%rax), %rsp
    .endm

    .section .multiboot, "a"
    .balign 4
    .long MULTIBOOT_MAGIC
    .long MULTIBOOT_FLAGS
    .long -(MULTIBOOT_MAGIC + MULTIBOOT_FLAGS)

    .section .note.pvh, "a", @note
    .balign 4
    .long 4 /* the name's size */
    .long 4 /* the entry's size */
    .long XEN_ELFNOTE_PHYS32_ENTRY
    .asciz "Xen"
    .long start

    .section .text
    .code32
    .globl start
start:
    cli
    cld
    movl %eax, boot_magic
    movl %ebx, boot_information
    lgdt boot_gdt_pointer
    movl $page_map, %eax
    movl %eax, %cr3
    movl $CR4_PAE, %eax
    movl %eax, %cr4
    movl $MSR_EFER, %ecx
    rdmsr
    orl $EFER_LME, %eax
    wrmsr
    movl $CR0_LONG, %eax
    movl %eax, %cr0
    ljmpl $SELECTOR_KERNEL_CODE, $start_long

    .code64
start_long:
    USE_OWN_BLOCK
    call start_first_cpu
    ud2

no_such_block: /* more CPUs than blocks: the first CPU finds that out and says so */
    cli
    hlt
    jmp no_such_block

/* void enter_user(void (*entry)(void), void *stack): goes to CPL 3 with interrupts on; never returns. */
    .globl enter_user
enter_user:
    pushq $SELECTOR_USER_DATA
    pushq %rsi
    pushq $RFLAGS_INTERRUPTS
    pushq $SELECTOR_USER_CODE
    pushq %rdi
    xorl %eax, %eax
    iretq

/*
 * What a SIPI starts, copied to the page of its vector: straight from real mode to long mode, since each
 * instruction here is emulated on some hosts. The vector goes on in esi.
 */
    .code16
    .globl trampoline, trampoline_end
trampoline:
    cli
    cld
    movw %cs, %ax
    movw %ax, %ds
    movzwl %ax, %esi
    shrl $8, %esi
    lgdtl trampoline_gdt_pointer - trampoline
    movl $page_map, %eax
    movl %eax, %cr3
    movl $CR4_PAE, %eax
    movl %eax, %cr4
    movl $MSR_EFER, %ecx
    rdmsr
    orl $EFER_LME, %eax
    wrmsr
    movl $CR0_LONG, %eax
    movl %eax, %cr0
    ljmpl $SELECTOR_KERNEL_CODE, $trampoline_long
    .balign 8
trampoline_gdt_pointer:
    .word boot_gdt_end - boot_gdt - 1
    .long boot_gdt
trampoline_end:

    .code64
trampoline_long:
    USE_OWN_BLOCK
    movl %esi, %edi
    call start_other_cpu
    ud2

    .section .rodata
    .balign 8
    .globl boot_gdt
boot_gdt: /* accessed bits are set, so that no load of a selector writes here */
    .quad 0
    .quad 0x00af9b000000ffff
    .quad 0x00cf93000000ffff
    .quad 0x00cff3000000ffff
    .quad 0x00affb000000ffff
boot_gdt_end:
boot_gdt_pointer:
    .word boot_gdt_end - boot_gdt - 1
    .long boot_gdt

    .section .data
    .globl boot_magic, boot_information
    .balign 4
boot_magic:
    .long 0
boot_information:
    .long 0

    .section .note.GNU-stack, "", @progbits
