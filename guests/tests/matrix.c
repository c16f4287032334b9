/*
 * A blocked matrix product by all CPUs: C = A B, of n by n words of 64 bits, modulo 2^64. CPUs take blocks of C from a
 * shared counter, so every page of A and B is read by CPUs of all nodes, and most pages of C are written by several.
 * The host computes the same product, and compares it with the memory that the line `result=` names.
 *
 * n=96: a multiple of block. block=16. seed=1: A and B hold random_at(seed, 0), random_at(seed, 1), ... row by row,
 * first A, then B. rounds=1: how often, with the next seed each time.
 */
#include "tests.h"

#define BLOCK_MAX 32

static u64 n, block, seed;
static u64 *a, *b, *c;
static struct page_u64 next_block;

static void fill(void *unused)
{
    (void)unused;
    for (u64 row = this_cpu()->id; row < n; row += cpu_count())
        for (u64 column = 0; column < n; column++) {
            a[row * n + column] = random_at(seed, row * n + column);
            b[row * n + column] = random_at(seed, n * n + row * n + column);
            c[row * n + column] = 0;
        }
}

/* Adds the product of two blocks to `sum`. */
static void add_product(u64 sum[BLOCK_MAX][BLOCK_MAX], u64 top, u64 left, u64 middle)
{
    for (u64 i = 0; i < block; i++)
        for (u64 k = 0; k < block; k++) {
            u64 factor = a[(top + i) * n + middle + k];
            for (u64 j = 0; j < block; j++)
                sum[i][j] += factor * b[(middle + k) * n + left + j];
        }
}

static void multiply(void *unused)
{
    (void)unused;
    static u64 sums[MAX_CPUS][BLOCK_MAX][BLOCK_MAX] PAGE_ALIGNED;
    u64(*sum)[BLOCK_MAX] = sums[this_cpu()->id];
    u64 blocks = n / block;
    for (;;) {
        u64 number = __atomic_fetch_add(&next_block.value, 1, __ATOMIC_ACQ_REL);
        if (number >= blocks * blocks)
            return;
        u64 top = number / blocks * block, left = number % blocks * block;
        memset(sum, 0, sizeof sums[0]);
        for (u64 middle = 0; middle < n; middle += block)
            add_product(sum, top, left, middle);
        for (u64 i = 0; i < block; i++)
            for (u64 j = 0; j < block; j++)
                c[(top + i) * n + left + j] = sum[i][j];
    }
}

static void run_round(void)
{
    next_block.value = 0;
    run_on_all(fill, NULL);
    run_on_all(multiply, NULL);
    u64 hash = HASH_START;
    for (u64 i = 0; i < n * n; i++)
        hash = hash_word(hash_word(hash, (u32)c[i]), (u32)(c[i] >> 32));
    print("matrix: n=%lu block=%lu seed=%lu hash=0x%lx\n", n, block, seed, hash);
}

void test_matrix(void)
{
    n = config_number("n", 96);
    block = config_number("block", 16);
    u64 first = config_number("seed", 1), rounds = config_number("rounds", 1), bytes = n * n * sizeof(u64);
    check(n && block && block <= BLOCK_MAX && n % block == 0, "matrix: n=%lu in blocks of %lu; blocks of 1 to %u must fill it", n,
          block, BLOCK_MAX);
    a = heap_pages((bytes + PAGE_SIZE - 1) / PAGE_SIZE);
    b = heap_pages((bytes + PAGE_SIZE - 1) / PAGE_SIZE);
    c = heap_pages((bytes + PAGE_SIZE - 1) / PAGE_SIZE);
    for (u64 round = 0; round < rounds; round++) {
        seed = first + round;
        run_round();
    }
    print("matrix: result=0x%lx bytes=%lu\n", (u64)c, bytes);
}
