/* A device that reads and writes memory: it sees what a CPU wrote before, and the CPU what the device wrote. count=20: pages of each CPU. */
#include "tests.h"

static u32 words[1024] __attribute__((aligned(4096)));

static void exchange(void *argument)
{
    u64 count = *(const u64 *)argument;
    for (u32 n = 0; n < count; n++) {
        u32 key = 0x5a5a0000 + n;
        for (u32 i = 0; i < LENGTH(words); i++)
            words[i] = i * 2654435761u + n;
        device_write(DEVICE_PAGE, (u32)((u64)words >> 12));
        device_write(DEVICE_KEY, key);
        for (u32 i = 0; i < LENGTH(words); i++)
            check(words[i] == ((i * 2654435761u + n) ^ key), "dma: round %u word %u is 0x%x", n, i, words[i]);
    }
}

void test_dma(void)
{
    u64 count = config_number("count", 20);
    for (u32 cpu = 0; cpu < cpu_count(); cpu++) {
        run_on(cpu, exchange, &count);
        print("dma: cpu=%u pages=%lu\n", cpu, count);
    }
}
