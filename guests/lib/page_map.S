/*
 * The page tables of all CPUs, laid down by the assembler: nothing writes them at run time. Accessed and dirty bits
 * are set beforehand, so that page walks have nothing to store either.
 *
 * 0 to 4 GiB are mapped one to one with 2 MiB pages, for CPL 3 too. The last of these GiB holds devices: uncached.
 */
#include "layout.h"

#define LARGE 0xe7        /* 2 MiB, dirty, accessed, user, writable, present */
#define LARGE_DEVICE 0xff /* the same, uncached */

    .section .data.page_map, "aw"
    .balign 4096
    .globl page_map
page_map:
    .quad page_pointers + ENTRY_TABLE
    .fill 511, 8, 0
page_pointers:
    .set index, 0
    .rept 4
    .quad page_directories + ENTRY_TABLE + index * 4096
    .set index, index + 1
    .endr
    .fill 508, 8, 0
page_directories:
    .set address, 0
    .rept 3 * 512
    .quad address + LARGE
    .set address, address + 0x200000
    .endr
    .rept 512
    .quad address + LARGE_DEVICE
    .set address, address + 0x200000
    .endr

    .section .note.GNU-stack, "", @progbits
