/*
 * The page tables of all CPUs, laid down by the assembler: nothing writes them at run time. Accessed and dirty bits
 * are set beforehand, so that page walks have nothing to store either.
 *
 * 0 to 4 GiB are mapped one to one with 2 MiB pages, for CPL 3 too. The last of these GiB holds devices: uncached.
 * From CROWD_BASE on come the windows of the crowd test (tests/crowd.h).
 */
#include "../tests/crowd.h"

#define TABLE 0x27        /* accessed, user, writable, present */
#define LARGE 0xe7        /* 2 MiB, dirty, accessed, user, writable, present */
#define LARGE_DEVICE 0xff /* the same, uncached */
#define SMALL 0x67        /* dirty, accessed, user, writable, present */

    .section .data.page_map, "aw"
    .balign 4096
    .globl page_map
page_map:
    .quad page_pointers + TABLE
    .quad crowd_pointers + TABLE
    .fill 510, 8, 0
page_pointers:
    .set index, 0
    .rept 4
    .quad page_directories + TABLE + index * 4096
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

/*
 * Window w has one page on each side of the border between GiB 2w and GiB 2w + 1 of CROWD_BASE. So an operand across the border needs two page tables and two directories, beside its own two pages.
 */
    .macro WINDOW_DIRECTORIES w
    .fill 511, 8, 0
    .quad crowd_tables + TABLE + \w * 8192
    .quad crowd_tables + TABLE + \w * 8192 + 4096
    .fill 511, 8, 0
    .endm
    .macro WINDOW_TABLES first, second
    .fill 511, 8, 0
    .quad \first + SMALL
    .quad \second + SMALL
    .fill 511, 8, 0
    .endm

crowd_pointers:
    .set index, 0
    .rept 2 * CROWD_WINDOWS
    .quad crowd_directories + TABLE + index * 4096
    .set index, index + 1
    .endr
    .fill 512 - 2 * CROWD_WINDOWS, 8, 0
crowd_directories:
    .set window, 0
    .rept CROWD_WINDOWS
    WINDOW_DIRECTORIES window
    .set window, window + 1
    .endr
crowd_tables: /* the second CPU sees the same pages in the other order */
    WINDOW_TABLES crowd_code, crowd_code + 4096
    WINDOW_TABLES crowd_source, crowd_source + 4096
    WINDOW_TABLES crowd_target, crowd_target + 4096
    WINDOW_TABLES crowd_stack, crowd_stack + 4096
    WINDOW_TABLES crowd_source + 4096, crowd_source
    WINDOW_TABLES crowd_target + 4096, crowd_target
    WINDOW_TABLES crowd_stack + 4096, crowd_stack

    .section .note.GNU-stack, "", @progbits
