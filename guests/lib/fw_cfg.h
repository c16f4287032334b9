/* The few items of QEMU's fw_cfg that a guest without ACPI needs. */
#pragma once

#include "types.h"

#define FW_CFG_SIGNATURE 0x00
#define FW_CFG_RAM_SIZE 0x03
#define FW_CFG_CPUS 0x05

/* Checks that the interface is there. */
void fw_cfg_set_up(void);

/* Reads an item of up to 8 bytes, little-endian. */
u64 fw_cfg_read(u16 key, u32 bytes);
