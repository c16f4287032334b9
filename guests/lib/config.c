#include "config.h"

#include "console.h"
#include "smp.h"
#include "string.h"

#define MULTIBOOT_BOOTED 0x2badb002
#define MULTIBOOT_HAS_COMMAND_LINE 0x4
#define PVH_MAGIC 0x336ec578
#define LINE_BYTES 2048
#define WORDS 64

extern u32 boot_magic, boot_information;

/* The first fields of Multiboot 1's information and of PVH's start information. */
struct multiboot_information {
    u32 flags, memory_lower, memory_upper, boot_device, command_line;
};
struct pvh_start_information {
    u32 magic, version, flags, modules;
    u64 module_list, command_line;
};

static char line[LINE_BYTES];
static const char *words[WORDS];
static u32 word_count;

/* The command line where the loader left it; empty if there is none. */
static const char *loaders_line(void)
{
    if (boot_magic == MULTIBOOT_BOOTED) {
        const struct multiboot_information *multiboot = (const void *)(u64)boot_information;
        return multiboot->flags & MULTIBOOT_HAS_COMMAND_LINE ? (const char *)(u64)multiboot->command_line : "";
    }
    const struct pvh_start_information *pvh = (const void *)(u64)boot_information;
    check(pvh->magic == PVH_MAGIC, "neither Multiboot (eax 0x%x) nor PVH (0x%x at ebx 0x%x) started this guest", boot_magic,
          pvh->magic, boot_information);
    return pvh->command_line ? (const char *)pvh->command_line : "";
}

void config_set_up(void)
{
    const char *from = loaders_line();
    size_t length = strlen(from);
    check(length < LINE_BYTES, "the command line has %lu characters; at most %u fit", (u64)length, LINE_BYTES - 1);
    memcpy(line, from, length);
    for (char *c = line; *c;) {
        while (*c == ' ')
            *c++ = 0;
        if (!*c)
            break;
        check(word_count < WORDS, "the command line has more than %u words", WORDS);
        words[word_count++] = c;
        while (*c && *c != ' ')
            c++;
    }
}

const char *config_loader(void) { return boot_magic == MULTIBOOT_BOOTED ? "multiboot" : "pvh"; }

const char *config_text(const char *name, const char *otherwise)
{
    for (u32 i = 0; i < word_count; i++) {
        const char *word = words[i], *expected = name;
        while (*expected && *word == *expected) {
            word++;
            expected++;
        }
        if (!*expected && *word == '=')
            return word + 1;
    }
    return otherwise;
}

/* Reads a number, and moves the text on behind it. */
static u64 read_number(const char *name, const char **text)
{
    const char *c = *text;
    u64 base = 10, number = 0;
    if (c[0] == '0' && c[1] == 'x') {
        base = 16;
        c += 2;
    }
    const char *digits = c;
    for (;; c++) {
        u64 digit;
        if (*c >= '0' && *c <= '9')
            digit = (u64)(*c - '0');
        else if (base == 16 && *c >= 'a' && *c <= 'f')
            digit = (u64)(*c - 'a') + 10;
        else
            break;
        number = number * base + digit;
    }
    check(c > digits, "%s=%s on the command line: not a number", name, *text);
    *text = c;
    return number;
}

u64 config_number(const char *name, u64 otherwise)
{
    const char *text = config_text(name, NULL);
    if (!text)
        return otherwise;
    u64 number = read_number(name, &text);
    check(!*text, "%s on the command line: \"%s\" follows the number", name, text);
    return number;
}

u32 config_cpu(const char *name, u32 otherwise)
{
    u64 id = config_number(name, otherwise);
    check(id < cpu_count(), "%s=%lu on the command line: there are %u CPUs", name, id, cpu_count());
    return (u32)id;
}

u32 config_cpus(const char *name, u32 ids[])
{
    const char *text = config_text(name, NULL);
    u32 count = 0;
    if (!text) {
        for (; count < cpu_count(); count++)
            ids[count] = count;
        return count;
    }
    for (;;) {
        u64 id = read_number(name, &text);
        check(id < cpu_count() && count < MAX_CPUS, "%s on the command line: there are %u CPUs", name, cpu_count());
        ids[count++] = (u32)id;
        if (!*text)
            return count;
        check(*text == ',', "%s on the command line: \"%s\" instead of a comma", name, text);
        text++;
    }
}
