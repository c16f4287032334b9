/* The command line: words `name=value`. Read once, before other CPUs start. */
#pragma once

#include "types.h"

/* At CPL 0: copies the command line away from where the loader put it. */
void config_set_up(void);

/* How this boot came about: "pvh" or "multiboot". */
const char *config_loader(void);

/* The value of a name, or the default. The text stays valid. */
const char *config_text(const char *name, const char *otherwise);

/* The same for decimal and 0x-numbers; anything else is a failure. */
u64 config_number(const char *name, u64 otherwise);

/* The same for a CPU's id, which must be below the number of CPUs. */
u32 config_cpu(const char *name, u32 otherwise);

/* A list of CPUs like "0,2,1"; all in order by default. Returns how many were stored. */
u32 config_cpus(const char *name, u32 ids[]);
