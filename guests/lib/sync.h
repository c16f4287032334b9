/* Locks, atomics and a barrier on shared pages, for CPL 3. */
#pragma once

#include "cpu.h"
#include "x86.h"

#define TURNS_UNTIL_NAP 4000

static inline u64 load(const u64 *from) { return __atomic_load_n(from, __ATOMIC_ACQUIRE); }
static inline void store(u64 *to, u64 value) { __atomic_store_n(to, value, __ATOMIC_RELEASE); }

/*
 * One turn of a loop that waits. Now and then it sleeps: where the host has fewer cores than the guest has CPUs, the
 * one that is waited for may need this core.
 */
static inline void relax(u32 *turns)
{
    if (++*turns % TURNS_UNTIL_NAP)
        pause();
    else
        cpu_nap();
}

static inline void wait_until(const u64 *variable, u64 value)
{
    for (u32 turns = 0; load(variable) != value;)
        relax(&turns);
}

/* Test and test-and-set: waiters read, and so don't take the page from its holder. */
static inline void spin_lock(u64 *lock)
{
    for (u32 turns = 0; __atomic_exchange_n(lock, 1, __ATOMIC_ACQUIRE);)
        while (load(lock))
            relax(&turns);
}

static inline void spin_unlock(u64 *lock) { store(lock, 0); }

/* A ticket lock whose two halves have a page each. */
struct ticket_lock {
    struct page_u64 next;
    struct page_u64 serving;
};

static inline void ticket_lock(struct ticket_lock *lock)
{
    wait_until(&lock->serving.value, __atomic_fetch_add(&lock->next.value, 1, __ATOMIC_ACQUIRE));
}

static inline void ticket_unlock(struct ticket_lock *lock) { store(&lock->serving.value, lock->serving.value + 1); }

/* A barrier that any number of rounds may use: `arrived` counts on, round by round. */
struct barrier {
    struct page_u64 arrived;
    struct page_u64 released;
};

static inline void barrier_wait(struct barrier *barrier, u64 members)
{
    u64 arrival = __atomic_add_fetch(&barrier->arrived.value, 1, __ATOMIC_ACQ_REL);
    u64 round = (arrival - 1) / members + 1;
    if (arrival == round * members)
        store(&barrier->released.value, round);
    else
        for (u32 turns = 0; load(&barrier->released.value) < round;)
            relax(&turns);
}
