"""Regions over three node processes: what one writes, all read."""

from __future__ import annotations

import threading
from typing import Any

import pytest

pytest.importorskip("giantvm._native", reason="the native module is not built")

import numpy as np

import giantvm
from cluster import Cluster, Site
from giantvm import PAGE_SIZE, Region

MIB = 1 << 20


def keep(site: Site, name: str, size: int | None) -> Region:
    region = site.kept.get(name)
    if region is None:
        region = site.kept[name] = site.node.region(name, size)
    assert isinstance(region, Region)
    return region


def fill(site: Site, name: str, value: int) -> None:
    keep(site, name, MIB).array(MIB, np.uint8)[:] = value


def values(site: Site, name: str) -> list[int]:
    found: list[int] = np.unique(keep(site, name, MIB).array(MIB, np.uint8)).tolist()
    return found


def test_untouched_memory_is_zero_everywhere(shared_three: Cluster) -> None:
    assert shared_three.each(values, "zero") == [[0]] * 3


def test_what_one_node_writes_all_read(shared_three: Cluster) -> None:
    for writer in (0, 2, 1, 0):
        shared_three.call(writer, fill, "turns", writer + 10)
        assert shared_three.each(values, "turns") == [[writer + 10]] * 3


def interleave(site: Site, rounds: int) -> None:
    """Writes every third byte of four pages, while the other nodes write theirs."""
    mine = keep(site, "mixed", MIB).array(4 * PAGE_SIZE, np.uint8)[site.node.index :: 3]
    site.node.barrier("mixed").wait()
    for turn in range(1, rounds + 1):
        mine[:] = turn
        assert (mine == turn).all(), "another node's store undid this one's"
    site.node.barrier("mixed").wait()


def first_pages(site: Site, name: str) -> list[int]:
    found: list[int] = np.unique(keep(site, name, MIB).array(4 * PAGE_SIZE, np.uint8)).tolist()
    return found


def test_nodes_that_write_to_the_same_pages_lose_nothing(shared_three: Cluster) -> None:
    shared_three.each(interleave, 100)
    assert shared_three.each(first_pages, "mixed") == [[100]] * 3


def threads_write(site: Site, threads: int, rounds: int) -> None:
    array = keep(site, "threads", MIB).array((3, threads, 64), np.int64)

    def work(thread: int) -> None:
        for _ in range(rounds):
            array[site.node.index, thread] += 1

    running = [threading.Thread(target=work, args=(n,)) for n in range(threads)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    site.node.barrier("threads").wait()


def thread_sums(site: Site) -> list[int]:
    found: list[int] = np.unique(keep(site, "threads", MIB).array((3, 4, 64), np.int64)).tolist()
    return found


def test_threads_of_all_nodes_write_side_by_side(shared_three: Cluster) -> None:
    shared_three.each(threads_write, 4, 100)
    assert shared_three.each(thread_sums) == [[100]] * 3


def block(site: Site, name: str, size: int) -> int:
    return keep(site, "blocks", MIB).allocate(name, size, PAGE_SIZE)


def test_a_named_block_has_one_place_and_pages_of_its_own(shared_three: Cluster) -> None:
    first = shared_three.each(block, "first", 100)
    second = shared_three.each(block, "second", 100)
    assert len(set(first)) == len(set(second)) == 1
    assert first[0] % PAGE_SIZE == second[0] % PAGE_SIZE == 0
    assert abs(first[0] - second[0]) >= PAGE_SIZE


def test_a_named_block_keeps_its_size(shared_three: Cluster) -> None:
    shared_three.call(0, block, "sized", 100)
    with pytest.raises(ValueError, match="sized"):
        shared_three.call(1, block, "sized", 200)


def test_a_block_beyond_the_region_is_refused(shared_three: Cluster) -> None:
    with pytest.raises(MemoryError):
        shared_three.call(2, block, "huge", 2 * MIB)


def open_size(site: Site, name: str, size: int | None, overcommit: bool) -> int:
    region = site.node.region(name, size, overcommit=overcommit, timeout_s=0.2)
    try:
        return region.size
    finally:
        region.close()


def test_a_region_opens_without_its_size_once_it_exists(shared_three: Cluster) -> None:
    with pytest.raises(giantvm.TimeoutError):
        shared_three.call(1, open_size, "later", None, False)
    shared_three.call(0, fill, "later", 1)
    assert shared_three.call(1, open_size, "later", None, False) == MIB


def test_another_size_is_refused(shared_three: Cluster) -> None:
    shared_three.call(0, fill, "size", 1)
    with pytest.raises(ValueError, match="size"):
        shared_three.call(1, open_size, "size", 2 * MIB, False)


def test_more_than_the_nodes_hold_needs_overcommit(shared_three: Cluster) -> None:
    with pytest.raises(giantvm.ClusterError):
        shared_three.call(0, open_size, "terabyte", 1 << 40, False)
    assert shared_three.each(open_size, "terabyte-over", 1 << 40, True) == [1 << 40] * 3


def ends_of_terabyte(site: Site, value: int | None) -> list[int]:
    region = site.node.region("sparse", 1 << 40, overcommit=True)
    array = region.array(1 << 40, np.uint8)
    if value is not None:
        array[0] = array[-1] = value
    return [int(array[0]), int(array[1 << 39]), int(array[-1])]


def test_a_terabyte_can_be_touched_at_both_ends(shared_three: Cluster) -> None:
    shared_three.call(2, ends_of_terabyte, 9)
    assert shared_three.call(0, ends_of_terabyte, None) == [9, 0, 9]


def bad_array(site: Site, *args: Any, **options: Any) -> None:
    keep(site, "arrays", MIB).array(*args, **options)


@pytest.mark.parametrize(
    ("shape", "dtype", "reason"),
    [
        (MIB + 1, "u1", "not in region"),
        ((2, -1), "u1", "negative"),
        (4, "O", "Python objects"),
        (4, "S", "no size"),
    ],
)
def test_an_array_that_makes_no_sense_is_refused(
    shared_three: Cluster, shape: Any, dtype: str, reason: str
) -> None:
    with pytest.raises(ValueError, match=reason):
        shared_three.call(0, bad_array, shape, dtype)


def array_at(site: Site, offset: int, name: str | None) -> int:
    region = keep(site, "arrays", MIB)
    array = region.array((2, 3), np.int64, offset=offset, name=name)
    assert array.shape == (2, 3)
    assert array.flags.c_contiguous
    assert array.flags.writeable
    return int(array.ctypes.data - np.frombuffer(memoryview(region), np.uint8).ctypes.data)


def test_an_array_begins_at_its_offset(shared_three: Cluster) -> None:
    assert shared_three.call(0, array_at, 8, None) == 8
    with pytest.raises(ValueError, match="multiple of 8"):
        shared_three.call(0, array_at, 9, None)
    with pytest.raises(ValueError, match="not both"):
        shared_three.call(0, array_at, 8, "name")


def buffer_facts(site: Site) -> tuple[int, int, bool, str]:
    region = keep(site, "buffer", MIB)
    with memoryview(region) as view:
        view[5] = 200
        return len(region), view.nbytes, view.readonly, view.format


def test_a_region_is_a_writable_buffer_of_bytes(shared_three: Cluster) -> None:
    assert shared_three.call(1, buffer_facts) == (MIB, MIB, False, "B")


def reads_cost(site: Site, name: str, hold: bool) -> tuple[int, int]:
    """Faults of the first and of the second reading of sixteen pages."""
    region = keep(site, name, MIB)
    array = region.array(16 * PAGE_SIZE, np.uint8)

    def faults() -> int:
        before = region.stats().faults_total
        array.sum()
        return region.stats().faults_total - before

    if hold:
        with region.hold(0, 16 * PAGE_SIZE):
            return faults(), faults()
    return faults(), faults()


def test_a_page_is_fetched_once(shared_three: Cluster) -> None:
    shared_three.call(0, fill, "once", 3)
    first, second = shared_three.call(1, reads_cost, "once", False)
    assert first >= 1
    assert second == 0


def test_held_pages_are_read_without_a_fault(shared_three: Cluster) -> None:
    shared_three.call(0, fill, "held", 3)
    assert shared_three.call(1, reads_cost, "held", True) == (0, 0)


def received(site: Site, name: str) -> tuple[int, int, int]:
    stats = keep(site, name, MIB).stats()
    return stats.pages_received, stats.bytes_received, stats.pages_held


def test_statistics_count_what_moved(shared_three: Cluster) -> None:
    shared_three.call(0, fill, "counted", 3)
    shared_three.call(1, values, "counted")
    pages, size, held = shared_three.call(1, received, "counted")
    assert pages >= MIB // PAGE_SIZE
    assert size >= MIB
    assert held == 0


def hold_and_wait(site: Site, name: str) -> None:
    with keep(site, name, MIB).hold(0, PAGE_SIZE, "w"):
        site.node.barrier("holding", 2).wait()
        site.node.barrier("tried", 2).wait()


def hold_in_vain(site: Site, name: str) -> bool:
    site.node.barrier("holding", 2).wait()
    try:
        with keep(site, name, MIB).hold(0, PAGE_SIZE, "w", timeout_s=0.1):
            return False
    except giantvm.TimeoutError:
        return True
    finally:
        site.node.barrier("tried", 2).wait()


def test_a_held_page_stays_where_it_is(shared_three: Cluster) -> None:
    shared_three.each(keep_only, "stay")
    holding = shared_three.nodes[0].begin(hold_and_wait, "stay")
    assert shared_three.call(1, hold_in_vain, "stay")
    holding.result()
    shared_three.call(1, fill, "stay", 1)


def keep_only(site: Site, name: str) -> None:
    keep(site, name, MIB)


def advised_sum(site: Site, name: str, advice: Any) -> int:
    region = keep(site, name, MIB)
    region.advise(advice)
    region.prefetch(0, MIB // 2)
    return int(region.array(MIB, np.uint8).sum(dtype=np.int64))


@pytest.mark.parametrize("advice", ["sequential", "random", "normal"])
def test_advice_and_prefetch_change_no_byte(shared_three: Cluster, advice: str) -> None:
    shared_three.call(0, fill, "advised", 7)
    assert shared_three.call(2, advised_sum, "advised", advice) == 7 * MIB


def test_unknown_advice_is_refused(shared_three: Cluster) -> None:
    with pytest.raises(ValueError, match="advice 'soon'"):
        shared_three.call(2, advised_sum, "advised", "soon")
