/*
 * u64 many_step(const u64 *operand, u64 *stack_top): pushes the word at `operand` on another stack and pops it again.
 * The caller copies this so that the push begins on one page and ends on the next.
 */
    .section .text
    .code64
    .globl many_step, many_step_push, many_step_end
many_step:
    xchgq %rsp, %rsi
    .balign 1
many_step_push:
    pushq (%rdi)
    popq %rax
    xchgq %rsp, %rsi
    ret
many_step_end:

    .section .note.GNU-stack, "", @progbits
