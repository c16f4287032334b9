#include "fw_cfg.h"

#include "console.h"
#include "x86.h"

#define SELECTOR_PORT 0x510
#define DATA_PORT 0x511
#define SIGNATURE 0x554d4551 /* "QEMU" */

u64 fw_cfg_read(u16 key, u32 bytes)
{
    u64 value = 0;
    outw(SELECTOR_PORT, key);
    for (u32 i = 0; i < bytes; i++)
        value |= (u64)inb(DATA_PORT) << (8 * i);
    return value;
}

void fw_cfg_set_up(void)
{
    u64 signature = fw_cfg_read(FW_CFG_SIGNATURE, 4);
    check(signature == SIGNATURE, "no fw_cfg at port 0x510: its signature reads 0x%lx", signature);
}
