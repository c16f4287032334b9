/* The first CPU's way from the loader to the test that the command line names. */
#include "lib/config.h"
#include "lib/console.h"
#include "lib/smp.h"
#include "lib/string.h"
#include "tests/tests.h"

static const struct {
    const char *name;
    void (*run)(void);
} tests[] = {
    {"smp", test_smp},
    {"ipi", test_ipi},
    {"locks", test_locks},
    {"io", test_io},
    {"litmus", test_litmus},
    {"level", test_level},
    {"msi", test_msi},
    {"dma", test_dma},
    {"tsc", test_tsc},
    {"hotplug", test_hotplug},
    {"reset", test_reset},
    {"triplefault", test_triplefault},
    {"timer", test_timer},
    {"bench", test_bench},
    {"matrix", test_matrix},
    {"sort", test_sort},
    {"pages", test_pages},
    {"many", test_many},
    {"walks", test_walks},
    {"memory", test_memory},
};

/* At CPL 3 on CPU 0. */
static _Noreturn void run_test(void)
{
    const char *name = config_text("test", "smp");
    print("# guest: loader=%s cpus=%u\n", config_loader(), cpu_count());
    for (u32 i = 0; i < sizeof tests / sizeof tests[0]; i++) {
        if (!same(name, tests[i].name))
            continue;
        cpu_start_all();
        tests[i].run();
        print("end: test=%s result=passed\n", name);
        pass();
    }
    fail("test=%s on the command line: there is no such test", name);
}

void start_first_cpu(void)
{
    struct cpu *cpu = this_cpu();
    console_set_up();
    idt_build();
    cpu_set_up(cpu);
    config_set_up();
    smp_set_up();
    cpu->starts = 1;
    enter_user(run_test, (u8 *)cpu + CPU_USER_STACK_TOP - 8);
}
