"""Locks, barriers and counters when nodes are lost: the others go on.

Many names are used, so that each node is the home of some. No region is: what a loss does to those
is another matter.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("giantvm._native", reason="the native module is not built")

import giantvm
from cluster import Cluster, NodeProcess, Site

TIMEOUT_MS = 1000
NAMES = [f"object {number}" for number in range(24)]


def take_all(site: Site) -> None:
    for name in NAMES:
        site.node.mutex(name).acquire()
        site.node.rwlock(f"read {name}").read().__enter__()
        site.node.rwlock(f"write {name}").write().__enter__()


def take_twice(site: Site) -> list[list[str | None]]:
    """What two holders of each lock are told, one after the other."""
    found: list[list[str | None]] = []
    for _ in range(2):
        for name in NAMES:
            mutex = site.node.mutex(name)
            with mutex, site.node.rwlock(f"read {name}").write() as read:
                with site.node.rwlock(f"write {name}").read() as first:
                    pass
                with site.node.rwlock(f"write {name}").write() as second:
                    told = [mutex.abandoned_by, first.abandoned_by, second.abandoned_by]
                    found.append([read.abandoned_by, *told])
    return found


@pytest.mark.parametrize("way", [NodeProcess.kill, NodeProcess.stop])
def test_locks_of_a_lost_node_are_had_by_those_who_wait(
    way: Callable[[NodeProcess], None],
) -> None:
    with Cluster(timeout_ms=TIMEOUT_MS) as cluster:
        cluster.call(2, take_all)
        waits = cluster.nodes[1].begin(take_twice)
        way(cluster.nodes[2])
        found = waits.result()
        assert [told for _, *told in found[: len(NAMES)]] == [["c"] * 3] * len(NAMES)
        assert found[len(NAMES) :] == [[None] * 4] * len(NAMES)
        # Lost readers leave nothing half done, but a lost home can't tell that there were only
        # readers.
        readers = {told for told, *_ in found[: len(NAMES)]}
        assert readers == {None, "c"}
        assert cluster.call(0, take_twice) == [[None] * 4] * (2 * len(NAMES))
        if way is NodeProcess.stop:
            cluster.nodes[2].kill()


def try_all(site: Site) -> list[float]:
    """How long an attempt of a tenth of a second takes, for each lock that is held."""
    took = []
    for name in NAMES:
        begun = time.monotonic()
        try:
            site.node.mutex(name).acquire(timeout_s=0.1)
        except giantvm.TimeoutError:
            took.append(time.monotonic() - begun)
    return took


def test_who_gives_up_while_a_home_is_silent_is_late_but_not_stuck() -> None:
    with Cluster(timeout_ms=TIMEOUT_MS) as cluster:
        cluster.call(0, hold_all)
        cluster.nodes[2].stop()
        took = cluster.call(1, try_all)
        cluster.nodes[2].kill()
        cluster.call(0, release_all)
        assert cluster.call(1, take_each) == [None] * len(NAMES)
    assert len(took) == len(NAMES)
    # Its cancellation waits until the loss is certain, at most.
    assert 0.5 < max(took) < 2 * TIMEOUT_MS / 1000 + 1


def hold_all(site: Site) -> None:
    for name in NAMES:
        site.kept[name] = site.node.mutex(name)
        site.kept[name].acquire()


def release_all(site: Site) -> None:
    for name in NAMES:
        site.kept.pop(name).release()


def take_each(site: Site) -> list[str | None]:
    """Takes all in threads of their own, in any order; what each is told."""
    mutexes = [site.node.mutex(name) for name in NAMES]
    threads = [threading.Thread(target=mutex.acquire) for mutex in mutexes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for mutex in mutexes:
        mutex.release()
    return [mutex.abandoned_by for mutex in mutexes]


def cant_take(site: Site) -> int:
    refused = 0
    for name in NAMES:
        try:
            site.node.mutex(name).acquire(timeout_s=0.05)
        except giantvm.TimeoutError:
            refused += 1
    return refused


def test_a_survivor_keeps_its_locks_though_their_homes_are_lost() -> None:
    with Cluster(timeout_ms=TIMEOUT_MS) as cluster:
        cluster.call(0, hold_all)
        waits = cluster.nodes[1].begin(take_each)
        cluster.nodes[2].kill()
        assert cluster.call(0, cant_take) == len(NAMES)
        cluster.call(0, release_all)
        assert waits.result() == [None] * len(NAMES)


def meet_all(site: Site) -> int:
    """Waits at each barrier until it is passed; how many meetings were broken."""
    broken = 0
    for name in NAMES:
        while True:
            try:
                site.node.barrier(name).wait(30)
            except giantvm.BarrierBroken as error:
                assert "node c is lost" in str(error)
                broken += 1
            else:
                break
    return broken


def test_a_meeting_is_broken_once_and_the_others_meet_again() -> None:
    with Cluster(timeout_ms=TIMEOUT_MS) as cluster:
        waits = [cluster.nodes[index].begin(meet_all) for index in (0, 1)]
        cluster.nodes[2].link.poll(0.3)
        cluster.nodes[2].kill()
        # The second may come when all know of the loss.
        assert max(answer.result() for answer in waits) == 1


def count(site: Site) -> list[int]:
    return [site.node.counter(name).add(1) for name in NAMES]


def count_on(site: Site) -> list[str]:
    """Adds to each, sets those whose value is lost, and adds again: what was found."""
    found = []
    for name in NAMES:
        counter = site.node.counter(name)
        try:
            found.append(str(counter.add(1)))
        except giantvm.CounterLost as error:
            assert "with node c" in str(error)
            found.append("lost")
            counter.set(2)
        assert counter.add(1) == 2
        assert counter.compare_exchange(3, 0)
        assert counter.value() == 0
    return found


def test_counters_are_kept_but_those_of_the_lost_node() -> None:
    with Cluster(timeout_ms=TIMEOUT_MS) as cluster:
        assert cluster.call(2, count) == [0] * len(NAMES)
        cluster.nodes[2].kill()
        assert set(cluster.call(1, count_on)) == {"1", "lost"}
        assert cluster.call(0, count) == [0] * len(NAMES)


def use_for_ever(site: Site, stop: str) -> int:
    """Holds locks, each with a file that only the holder has made; how many were abandoned."""
    abandoned = 0
    while not (site.directory / stop).exists():
        for name in NAMES[:8]:
            mutex = site.node.mutex(name)
            with mutex:
                mark = site.directory / name
                if mutex.abandoned_by is not None:
                    abandoned += 1
                    mark.unlink(missing_ok=True)
                os.close(os.open(mark, os.O_CREAT | os.O_EXCL))
                mark.unlink()
    return abandoned


def finish(directory: Path, stop: str) -> None:
    (directory / stop).touch()


@pytest.mark.parametrize("seed", range(5))
def test_two_losses_under_load(seed: int) -> None:
    with Cluster(("a", "b", "c", "d")) as cluster:
        running = [node.begin(use_for_ever, "stop") for node in cluster.nodes]
        for victim in (2, 3):
            cluster.nodes[victim].link.poll(0.3 + 0.2 * seed)
            cluster.nodes[victim].kill()
        cluster.nodes[0].link.poll(4)
        finish(cluster.directory, "stop")
        assert sum(answer.result() for answer in running[:2]) > 0


def test_closing_waits_for_those_that_are_left() -> None:
    with Cluster(timeout_ms=TIMEOUT_MS) as cluster:
        cluster.nodes[0].leave()
        cluster.nodes[1].link.poll(0.3)
        cluster.nodes[2].kill()
        # The end of the block has the other one leave, and both end well.
