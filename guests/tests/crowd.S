#include "crowd.h"
    .section .data
    .balign 4096
    .globl crowd_code, crowd_source, crowd_target, crowd_stack
crowd_code: .fill 8192
crowd_source: .fill 8192
crowd_target: .fill 8192
crowd_stack: .fill 8192
    .section .note.GNU-stack, "", @progbits
