"""Locks, barriers and counters over three node processes."""

from __future__ import annotations

import threading

import pytest

pytest.importorskip("giantvm._native", reason="the native module is not built")

import numpy as np

import giantvm
from cluster import Cluster, Site
from giantvm import PAGE_SIZE


def increment(site: Site, threads: int, rounds: int) -> None:
    """Adds to one shared number under a mutex: without it, updates are lost."""
    number = site.node.region("sum", PAGE_SIZE).array(1, np.int64)

    def work() -> None:
        mutex = site.node.mutex("sum")
        for _ in range(rounds):
            with mutex:
                number[0] += 1

    running = [threading.Thread(target=work) for _ in range(threads)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    site.node.barrier("summed").wait()


def total(site: Site) -> int:
    return int(site.node.region("sum").array(1, np.int64)[0])


def test_a_mutex_lets_one_thread_in(shared_three: Cluster) -> None:
    shared_three.each(increment, 2, 50)
    assert shared_three.each(total) == [300] * 3


def hold_mutex(site: Site, name: str) -> None:
    site.kept[name] = site.node.mutex(name)
    site.kept[name].acquire()


def try_mutex(site: Site, name: str) -> None:
    mutex = site.node.mutex(name)
    mutex.acquire(timeout_s=0.1)
    mutex.release()


def release_mutex(site: Site, name: str) -> None:
    site.kept[name].release()


def test_a_mutex_that_is_held_times_out_and_can_be_had_later(shared_three: Cluster) -> None:
    shared_three.call(2, hold_mutex, "busy")
    with pytest.raises(giantvm.TimeoutError):
        shared_three.call(1, try_mutex, "busy")
    shared_three.call(2, release_mutex, "busy")
    shared_three.call(1, try_mutex, "busy")


def test_only_what_is_held_can_be_released(shared_three: Cluster) -> None:
    shared_three.call(0, hold_mutex, "once")
    shared_three.call(0, release_mutex, "once")
    with pytest.raises(RuntimeError, match="once"):
        shared_three.call(0, release_mutex, "once")


def read_together(site: Site) -> None:
    with site.node.rwlock("shared").read():
        # All three are inside at once, or this never ends.
        site.node.barrier("inside").wait(30)


def write_fails_while_read(site: Site) -> bool:
    barrier = site.node.barrier("reading")
    if site.node.index != 0:
        with site.node.rwlock("shared").read():
            barrier.wait(30)
            barrier.wait(30)
        return True
    barrier.wait(30)
    try:
        with site.node.rwlock("shared").write(timeout_s=0.1):
            return False
    except giantvm.TimeoutError:
        return True
    finally:
        barrier.wait(30)


def read_fails_while_written(site: Site) -> bool:
    barrier = site.node.barrier("writing")
    if site.node.index == 0:
        with site.node.rwlock("shared").write():
            barrier.wait(30)
            barrier.wait(30)
        return True
    barrier.wait(30)
    try:
        with site.node.rwlock("shared").read(timeout_s=0.1):
            return False
    except giantvm.TimeoutError:
        return True
    finally:
        barrier.wait(30)


def test_a_read_write_lock_lets_all_readers_or_one_writer_in(shared_three: Cluster) -> None:
    shared_three.each(read_together)
    assert all(shared_three.each(write_fails_while_read))
    assert all(shared_three.each(read_fails_while_written))
    shared_three.each(read_together)


def phases(site: Site, rounds: int) -> None:
    """No node may begin a phase before all have ended the one before."""
    marks = site.node.region("phases", PAGE_SIZE * 3).array((3, PAGE_SIZE // 8), np.int64)
    barrier = site.node.barrier("phase")
    for phase in range(1, rounds + 1):
        marks[site.node.index, 0] = phase
        barrier.wait()
        assert marks[:, 0].tolist() == [phase] * 3
        barrier.wait()


def test_a_barrier_separates_phases(shared_three: Cluster) -> None:
    shared_three.each(phases, 50)


def wait_barrier(site: Site, name: str, parties: int, timeout_s: float) -> None:
    site.node.barrier(name, parties).wait(timeout_s)


def test_who_gives_up_at_a_barrier_is_not_counted(shared_three: Cluster) -> None:
    with pytest.raises(giantvm.TimeoutError):
        shared_three.call(0, wait_barrier, "pair", 2, 0.1)
    with pytest.raises(giantvm.TimeoutError):
        shared_three.call(1, wait_barrier, "pair", 2, 0.1)
    together = shared_three.nodes[0].begin(wait_barrier, "pair", 2, 30)
    shared_three.call(1, wait_barrier, "pair", 2, 30)
    together.result()


def mismatch(site: Site) -> bool:
    """Nodes 0 and 1 disagree about the number of parties: the second to come is refused."""
    try:
        site.node.barrier("odd", 2 + site.node.index).wait(1)
    except ValueError:
        return True
    except giantvm.TimeoutError:
        return False
    raise AssertionError("nobody else waits for the same number")


def test_parties_must_agree_on_their_number(shared_three: Cluster) -> None:
    first = shared_three.nodes[0].begin(mismatch)
    second = shared_three.call(1, mismatch)
    assert [first.result(), second].count(True) == 1


def take_numbers(site: Site, count: int) -> list[int]:
    counter = site.node.counter("tickets")
    return [counter.add() for _ in range(count)]


def counter_value(site: Site, name: str) -> int:
    return site.node.counter(name).value()


def test_a_counter_gives_every_number_once(shared_three: Cluster) -> None:
    taken = shared_three.each(take_numbers, 100)
    assert sorted(number for numbers in taken for number in numbers) == list(range(300))
    assert all(numbers == sorted(numbers) for numbers in taken)
    assert shared_three.each(counter_value, "tickets") == [300] * 3


def add_by_exchange(site: Site, count: int) -> None:
    counter = site.node.counter("exchange")
    for _ in range(count):
        while True:
            seen = counter.value()
            if counter.compare_exchange(seen, seen + 1):
                break


def test_compare_exchange_loses_nothing(shared_three: Cluster) -> None:
    shared_three.each(add_by_exchange, 50)
    assert shared_three.call(0, counter_value, "exchange") == 150


def counter_edges(site: Site) -> list[int]:
    counter = site.node.counter("edges")
    counter.set(2**63 - 1)
    before = counter.add(1)
    return [before, counter.value()]


def test_a_counter_wraps_around(shared_three: Cluster) -> None:
    assert shared_three.call(1, counter_edges) == [2**63 - 1, -(2**63)]
    assert shared_three.call(2, counter_value, "edges") == -(2**63)


def hold_all(site: Site, names: list[str]) -> None:
    for name in names:
        site.kept[name] = site.node.mutex(name)
        site.kept[name].acquire()
        site.node.rwlock(f"rw {name}").write().__enter__()


def leave(site: Site) -> None:
    site.kept.clear()
    site.node.close(wait=False)


def who_abandoned(site: Site, names: list[str]) -> list[list[str | None]]:
    """What the next two holders are told."""
    found = []
    for name in names:
        mutex, rwlock = site.node.mutex(name), site.node.rwlock(f"rw {name}")
        told: list[str | None] = []
        for _ in range(2):
            with mutex:
                told.append(mutex.abandoned_by)
            with rwlock.read() as read, rwlock.read() as again:
                told += [read.abandoned_by, again.abandoned_by]
            with rwlock.write() as write:
                told.append(write.abandoned_by)
        found.append(told)
    return found


def test_who_takes_an_abandoned_lock_is_told() -> None:
    names = [f"lock {number}" for number in range(12)]
    with Cluster() as cluster:
        cluster.call(2, hold_all, names)
        cluster.call(2, leave)
        found = cluster.call(0, who_abandoned, names)
    # Wherever they are kept, also by the node that left.
    assert found == [["c", "c", "c", "c", None, None, None, None]] * len(names)
