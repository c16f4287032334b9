/*
 * Resets, counted in CMOS RAM, which is all that survives them: by the keyboard controller from CPU 0, the same from
 * the last CPU, and by the reset control register. Every boot starts all CPUs. ways=3: how many resets, 255 at most, by
 * these ways in turn.
 */
#include "tests.h"

#define CMOS_INDEX 0x70
#define CMOS_DATA 0x71
#define CMOS_BOOTS 0x40 /* in the part that is no clock */
#define KEYBOARD_COMMAND 0x64
#define KEYBOARD_RESET 0xfe
#define RESET_CONTROL 0xcf9
#define RESET_CONTROL_HARD 0x06

static u8 boots(void)
{
    outb(CMOS_INDEX, CMOS_BOOTS);
    return inb(CMOS_DATA);
}

static void set_boots(u8 value)
{
    outb(CMOS_INDEX, CMOS_BOOTS);
    outb(CMOS_DATA, value);
}

static void by_keyboard(void *unused)
{
    (void)unused;
    outb(KEYBOARD_COMMAND, KEYBOARD_RESET);
    for (;;)
        pause();
}

static void by_control(void *unused)
{
    (void)unused;
    outb(RESET_CONTROL, RESET_CONTROL_HARD);
    for (;;)
        pause();
}

void test_reset(void)
{
    u8 boot = boots(), ways = (u8)config_number("ways", 3);
    for (u32 cpu = 0; cpu < cpu_count(); cpu++)
        check(cpus[cpu].starts == 1, "reset: CPU %u has started %lu times in boot %u", cpu, cpus[cpu].starts, boot);
    print("reset: boot=%u cpus=%u\n", boot, cpu_count());
    if (boot >= ways) {
        check(boot == ways, "reset: CMOS byte 0x40 holds %u; it is zero when a VM starts", boot);
        set_boots(0);
        return;
    }
    set_boots((u8)(boot + 1));
    if (boot % 3 == 0)
        by_keyboard(NULL);
    else if (boot % 3 == 1)
        run_on(cpu_count() - 1, by_keyboard, NULL);
    else
        by_control(NULL);
}

/* The end that the host must report with the registers, instead of a reset. */
void test_triplefault(void)
{
    print("triplefault: now\n");
    end_service(SERVICE_TRIPLE);
}
