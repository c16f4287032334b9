#include "console.h"

#include <stdarg.h>

#include "sync.h"
#include "x86.h"

#define COM1 0x3f8
#define COM1_FIFO_CONTROL (COM1 + 2)
#define COM1_LINE_CONTROL (COM1 + 3)
#define COM1_LINE_STATUS (COM1 + 5)
#define TRANSMITTER_EMPTY 0x20
#define FIFO_BYTES 16
#define DEBUG_EXIT 0xf4
#define EXIT_PASS 0
#define EXIT_FAIL 1

static struct page_u64 console_lock;

/* Text on its way out: the line status is read once for as many bytes as the FIFO takes. */
struct output {
    u32 room;
};

void console_set_up(void)
{
    outb(COM1_LINE_CONTROL, 0x03); /* 8 bits, no parity, one stop bit */
    outb(COM1_FIFO_CONTROL, 0x07); /* on, and cleared */
}

static void put(struct output *output, char c)
{
    if (!output->room) {
        while (!(inb(COM1_LINE_STATUS) & TRANSMITTER_EMPTY))
            pause();
        output->room = FIFO_BYTES;
    }
    outb(COM1, (u8)c);
    output->room--;
}

static void put_number(struct output *output, u64 number, u32 base)
{
    char digits[20];
    u32 length = 0;
    do {
        digits[length++] = "0123456789abcdef"[number % base];
        number /= base;
    } while (number);
    while (length)
        put(output, digits[--length]);
}

static void print_arguments(struct output *output, const char *format, va_list *arguments)
{
    for (const char *c = format; *c; c++) {
        if (*c != '%') {
            put(output, *c);
            continue;
        }
        c++;
        bool is_long = *c == 'l';
        if (is_long)
            c++;
        if (*c == 'u' || *c == 'x') {
            u64 number = is_long ? va_arg(*arguments, u64) : va_arg(*arguments, u32);
            put_number(output, number, *c == 'x' ? 16 : 10);
        } else if (*c == 's') {
            for (const char *text = va_arg(*arguments, const char *); *text; text++)
                put(output, *text);
        } else {
            put(output, *c);
        }
    }
}

void print(const char *format, ...)
{
    va_list arguments;
    struct output output = {0};
    va_start(arguments, format);
    spin_lock(&console_lock.value);
    print_arguments(&output, format, &arguments);
    spin_unlock(&console_lock.value);
    va_end(arguments);
}

static _Noreturn void end(u32 value)
{
    for (;;)
        outl(DEBUG_EXIT, value);
}

void pass(void) { end(EXIT_PASS); }

void fail(const char *format, ...)
{
    va_list arguments;
    struct output output = {0};
    va_start(arguments, format);
    /* Without the lock: the CPU that holds it may be the one that fails. */
    put(&output, '\n');
    print_arguments(&output, "FAILED: ", &arguments);
    print_arguments(&output, format, &arguments);
    put(&output, '\n');
    va_end(arguments);
    end(EXIT_FAIL);
}
