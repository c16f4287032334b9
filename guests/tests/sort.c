/*
 * A parallel sort by all CPUs. Each sorts a share of the keys; then each gathers, from all shares, the keys of one range
 * of values, and merges them where they belong: every CPU reads what every other CPU wrote. The host sorts the same keys,
 * and compares them with the memory that the line `result=` names.
 *
 * count=20000: keys of 32 bits: the low halves of random_at(seed, 0), random_at(seed, 1), ... seed=1.
 * rounds=1: how often, with the next seed each time.
 */
#include "tests.h"

static u64 count, seed;
static u32 *keys, *sorted;

/* What share a CPU sorts, and what range of values it merges. */
static u64 share_start(u64 cpu) { return count * cpu / cpu_count(); }
static u64 range_start(u64 cpu) { return (1UL << 32) * cpu / cpu_count(); }

/* Restores the heap whose root may be too small. */
static void sift_down(u32 *heap, u64 root, u64 size)
{
    u32 key = heap[root];
    for (u64 child; (child = 2 * root + 1) < size; root = child) {
        if (child + 1 < size && heap[child + 1] > heap[child])
            child++;
        if (heap[child] <= key)
            break;
        heap[root] = heap[child];
    }
    heap[root] = key;
}

static void heap_sort(u32 *from, u64 size)
{
    for (u64 root = size / 2; root-- > 0;)
        sift_down(from, root, size);
    for (u64 left = size; left-- > 1;) {
        u32 largest = from[0];
        from[0] = from[left];
        from[left] = largest;
        sift_down(from, 0, left);
    }
}

static void sort_share(void *unused)
{
    (void)unused;
    u64 start = share_start(this_cpu()->id), end = share_start(this_cpu()->id + 1UL);
    for (u64 i = start; i < end; i++)
        keys[i] = (u32)random_at(seed, i);
    heap_sort(keys + start, end - start);
}

/* The first place in a CPU's sorted share whose key is not below `value`. */
static u64 lower_bound(u64 cpu, u64 value)
{
    u64 low = share_start(cpu), high = share_start(cpu + 1);
    while (low < high) {
        u64 middle = (low + high) / 2;
        if (keys[middle] < value)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

static void merge_range(void *unused)
{
    (void)unused;
    u64 at[MAX_CPUS], end[MAX_CPUS], to = 0, id = this_cpu()->id;
    for (u64 cpu = 0; cpu < cpu_count(); cpu++) {
        at[cpu] = lower_bound(cpu, range_start(id));
        end[cpu] = lower_bound(cpu, range_start(id + 1));
        to += at[cpu] - share_start(cpu); /* the keys below this range come first */
    }
    for (;;) {
        u64 least = cpu_count();
        for (u64 cpu = 0; cpu < cpu_count(); cpu++)
            if (at[cpu] < end[cpu] && (least == cpu_count() || keys[at[cpu]] < keys[at[least]]))
                least = cpu;
        if (least == cpu_count())
            return;
        sorted[to++] = keys[at[least]++];
    }
}

static void run_round(void)
{
    run_on_all(sort_share, NULL);
    run_on_all(merge_range, NULL);
    u64 hash = HASH_START;
    for (u64 i = 0; i < count; i++) {
        check(!i || sorted[i - 1] <= sorted[i], "sort: key %lu is 0x%x, after 0x%x", i, sorted[i], sorted[i - 1]);
        hash = hash_word(hash, sorted[i]);
    }
    print("sort: count=%lu seed=%lu hash=0x%lx\n", count, seed, hash);
}

void test_sort(void)
{
    count = config_number("count", 20000);
    u64 first = config_number("seed", 1), rounds = config_number("rounds", 1), bytes = count * sizeof(u32);
    keys = heap_pages((bytes + PAGE_SIZE - 1) / PAGE_SIZE);
    sorted = heap_pages((bytes + PAGE_SIZE - 1) / PAGE_SIZE);
    for (u64 round = 0; round < rounds; round++) {
        seed = first + round;
        run_round();
    }
    print("sort: result=0x%lx bytes=%lu\n", (u64)sorted, bytes);
}
