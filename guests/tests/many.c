/*
 * An instruction that needs many pages at once: a push of memory whose own bytes, whose operand and whose stack each lie
 * on two pages, which page tables of their own map, three levels each: 16 pages, all of which CPUs of all nodes write
 * between two such instructions. It retires only when all of them are there together; one CPU must not keep another from
 * that for ever. Who pushes finds the operand on the stack.
 *
 * count=100: such instructions on each CPU. on=0,1: the CPUs; all by default.
 * Lines with # tell how far each CPU was when another had done a quarter more.
 */
#include "tests.h"

#define OPERAND 0x600dda7a5eed1234
#define WORD_OF(cpu) (64 + (cpu)) /* each CPU's word in pages that all write */

enum part { CODE, DATA, STACK, PARTS };

/* Each part's two pages, and the tables that lead to them from an entry of their own in the first table. */
struct part_pages {
    u64 pointers[TABLE_ENTRIES], directory[TABLE_ENTRIES], table[TABLE_ENTRIES], page[2][TABLE_ENTRIES];
};

extern const u8 many_step[], many_step_push[], many_step_end[];

static u64 count;
static u64 (*map)[TABLE_ENTRIES];
static struct part_pages *parts;
static struct page_u64 done[MAX_CPUS];

/* Where a part's two pages are for the CPUs that use `map`: in the 512 GiB of its own entry. */
static u64 address_of(enum part part) { return (part + 1UL) << 39; }

/* The page tables are complete before any CPU uses them; later only words of absent entries change. */
static void build(void)
{
    map = heap_pages(1);
    parts = heap_pages(PARTS * sizeof(struct part_pages) / PAGE_SIZE);
    memset(map, 0, PAGE_SIZE);
    memset(parts, 0, PARTS * sizeof(struct part_pages));
    (*map)[0] = page_map[0];
    for (enum part part = CODE; part < PARTS; part++) {
        struct part_pages *it = &parts[part];
        (*map)[part + 1] = (u64)it->pointers | ENTRY_TABLE;
        it->pointers[0] = (u64)it->directory | ENTRY_TABLE;
        it->directory[0] = (u64)it->table | ENTRY_TABLE;
        it->table[0] = (u64)it->page[0] | ENTRY_PAGE;
        it->table[1] = (u64)it->page[1] | ENTRY_PAGE;
    }
    u8 *code = (u8 *)parts[CODE].page[1] - (many_step_push - many_step) - 1;
    memcpy(code, many_step, (size_t)(many_step_end - many_step));
    u64 operand = OPERAND;
    memcpy((u8 *)parts[DATA].page[1] - 4, &operand, sizeof operand);
}

/* An absent entry's word, or a free one of a page: changed by this CPU alone. Bit 0 stays clear. */
static void touch(u64 page[TABLE_ENTRIES]) { *(volatile u64 *)&page[WORD_OF(this_cpu()->id)] += 2; }

static void touch_all(void)
{
    touch(*map);
    for (enum part part = CODE; part < PARTS; part++) {
        touch(parts[part].pointers);
        touch(parts[part].directory);
        touch(parts[part].table);
        touch(parts[part].page[0]);
        touch(parts[part].page[1]);
    }
}

static void check_words(u64 page[TABLE_ENTRIES], u64 wanted, const char *what)
{
    for (u32 cpu = 0; cpu < cpu_count(); cpu++)
        check(page[WORD_OF(cpu)] == 2 * wanted * (done[cpu].value != 0), "many: CPU %u's word in the %s is %lu instead of %lu", cpu,
              what, page[WORD_OF(cpu)], 2 * wanted);
}

static void tell_progress(u64 instructions)
{
    if (instructions % ((count + 3) / 4))
        return;
    for (u32 cpu = 0; cpu < cpu_count(); cpu++)
        print("# many: when cpu=%u has done %lu cpu=%u has done %lu\n", this_cpu()->id, instructions, cpu, load(&done[cpu].value));
}

static void run_many(void *unused)
{
    (void)unused;
    u64 (*step)(const u64 *, u64 *) =
        (void *)(address_of(CODE) + PAGE_SIZE - (u64)(many_step_push - many_step) - 1);
    const u64 *operand = (const u64 *)(address_of(DATA) + PAGE_SIZE - 4);
    u64 *stack_top = (u64 *)(address_of(STACK) + PAGE_SIZE + 4);
    u32 id = this_cpu()->id;
    use_page_map(map);
    for (u64 n = 1; n <= count; n++) {
        touch_all();
        u64 found = step(operand, stack_top);
        check(found == OPERAND, "many: CPU %u pushed 0x%lx instead of 0x%lx at instruction %lu", id, found, OPERAND, n);
        store(&done[id].value, n);
        tell_progress(n);
    }
    use_page_map(page_map);
}

void test_many(void)
{
    u32 ids[MAX_CPUS], listed = config_cpus("on", ids);
    count = config_number("count", 100);
    build();
    run_on_list(ids, listed, run_many, NULL);
    for (u32 i = 0; i < listed; i++) {
        check(done[ids[i]].value == count, "many: CPU %u did %lu of %lu", ids[i], done[ids[i]].value, count);
        print("many: cpu=%u instructions=%lu\n", ids[i], done[ids[i]].value);
    }
    check_words(*map, count, "first table");
    for (enum part part = CODE; part < PARTS; part++) {
        check_words(parts[part].pointers, count, "page-directory pointers");
        check_words(parts[part].directory, count, "page directory");
        check_words(parts[part].table, count, "page table");
        check_words(parts[part].page[0], count, "first page");
        check_words(parts[part].page[1], count, "second page");
    }
    print("many: pages=%lu cpus=%u\n", 1 + PARTS * sizeof(struct part_pages) / PAGE_SIZE, listed);
}
