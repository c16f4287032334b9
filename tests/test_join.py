"""Nodes join a cluster that runs: for the first time, or again after they left or were lost."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator, Sequence
from typing import Final

import pytest

pytest.importorskip("giantvm._native", reason="the native module is not built")

import numpy as np

import giantvm
from cluster import NAMES, Cluster, NodeProcess, Site
from etcd import Etcd
from giantvm import PAGE_SIZE
from losing import Way, kill, stop
from test_etcd import wait_until
from test_lost_recovered import wait_for_loss

TIMEOUT_MS: Final = 1000
ETCD_TIMEOUT_MS: Final = 3000
PAGES = 1536
SIZE = PAGES * PAGE_SIZE


@pytest.fixture(params=["list", "etcd"])
def server(request: pytest.FixtureRequest) -> Iterator[Etcd | None]:
    """What decides who belongs to the cluster; `None` is the first node of the list."""
    if request.param == "list":
        yield None
        return
    with Etcd() as etcd:
        yield etcd


def start(
    server: Etcd | None,
    nodes: Sequence[str] = NAMES,
    late: Sequence[str] = (),
    memory_bytes: int = 64 << 20,
) -> Cluster:
    timeout_ms = ETCD_TIMEOUT_MS if server else TIMEOUT_MS
    return Cluster(nodes, late=late, memory_bytes=memory_bytes, timeout_ms=timeout_ms, etcd=server)


def use(site: Site, size: int | None = SIZE) -> None:
    """The region; who joins gives no size, to be sure that it is the one that is there."""
    site.kept["load"] = site.node.region("load", size)
    site.kept["words"] = site.kept["load"].array((PAGES, PAGE_SIZE // 8), np.int64)


def write(site: Site, pages: range, value: int) -> None:
    site.kept["words"][pages.start : pages.stop, site.node.index] = value


def read(site: Site, pages: range, column: int) -> set[int]:
    return set(site.kept["words"][pages.start : pages.stop, column].tolist())


def lost_pages(site: Site) -> int:
    lost: list[range] = site.kept["load"].lost()
    return sum(len(part) for part in lost) // PAGE_SIZE


def states(site: Site) -> list[str]:
    return [node["state"] for node in site.node.status()["nodes"]]


def count_up(site: Site) -> int:
    value: int = site.node.counter("visits").add(1)
    return value


def knows_all(cluster: Cluster, index: int) -> None:
    """With etcd, a node may hear of who has joined a moment later."""
    wait_until("it knows all", lambda: cluster.call(index, states) == ["up", "up", "up"])


def reset(site: Site) -> None:
    """A counter whose home was lost has no value."""
    site.node.counter("visits").set(0)


def meet(site: Site) -> None:
    site.node.barrier("all").wait()


def lock_and_keep(site: Site) -> None:
    site.kept["mutex"] = site.node.mutex("mine")
    site.kept["mutex"].acquire()


def take(site: Site) -> str | None:
    mutex = site.node.mutex("mine")
    with mutex:
        return mutex.abandoned_by


def test_a_node_that_was_killed_comes_back(server: Etcd | None) -> None:
    with start(server) as cluster:
        cluster.each(use)
        for index in range(3):
            cluster.call(index, write, range(index * 512, index * 512 + 512), 1 + index)
        # Copies of what is to be lost, of some of it.
        assert cluster.call(0, read, range(1024, 1124), 2) == {3}
        cluster.call(2, lock_and_keep)
        kill(cluster, 2)
        for index in (0, 1):
            cluster.call(index, wait_for_loss, 1)
        assert cluster.call(0, states) == ["up", "up", "lost"]
        lost = cluster.call(1, lost_pages)
        assert 0 < lost <= 412
        cluster.start(2)
        for index in range(3):
            knows_all(cluster, index)
        cluster.call(2, use, None)
        assert cluster.call(2, lost_pages) == lost
        # What others have, what outlived the first process, and what it writes itself.
        assert cluster.call(2, read, range(512), 0) == {1}
        assert cluster.call(2, read, range(1024, 1124), 2) == {3}
        cluster.call(2, write, range(1124), 7)
        assert cluster.call(0, read, range(1124), 2) == {7}
        assert cluster.call(1, read, range(512), 0) == {1}
        # Locks, barriers and counters.
        assert cluster.call(2, take) == "c"
        assert cluster.call(1, take) is None
        cluster.each(meet)
        cluster.call(0, reset)
        assert sorted(cluster.each(count_up)) == [0, 1, 2]


def new_region(site: Site, size: int, name: str = "new") -> int:
    array = site.node.region(name, size).array(size, np.uint8)
    array[site.node.index * PAGE_SIZE] = 7
    return int(array[: 4 * PAGE_SIZE].max())


def test_a_new_node_joins_and_takes_its_share(server: Etcd | None) -> None:
    with start(server, ("a", "b"), ("c",), 16 << 20) as cluster:
        cluster.each(use)
        cluster.call(0, write, range(PAGES), 5)
        with pytest.raises(giantvm.ClusterError, match="the nodes together give 33554432"):
            cluster.call(0, new_region, 34 << 20)
        assert cluster.call(0, states) == ["up", "up", "absent"][: 2 if server else 3]
        cluster.start(2)
        cluster.call(2, use, None)
        assert cluster.call(2, read, range(PAGES), 0) == {5}
        cluster.call(2, write, range(PAGES), 6)
        assert cluster.call(1, read, range(PAGES), 2) == {6}
        # More than the first two have.
        assert cluster.each(new_region, 34 << 20) == [7, 7, 7]
        # It has pages that the others had, and is lost with them.
        kill(cluster, 2)
        cluster.call(1, wait_for_loss, 1)
        assert cluster.call(0, read, range(8), 0) == {5}


def go(site: Site) -> None:
    site.kept.clear()
    site.node.close(wait=False)


def close(site: Site) -> None:
    site.kept.clear()
    site.node.close()


def leave(cluster: Cluster, index: int) -> None:
    cluster.call(index, go)
    cluster.nodes[index].leave()
    assert cluster.nodes[index].wait() == 0


@pytest.mark.parametrize("uses", [False, True])
def test_a_node_that_left_comes_back(server: Etcd | None, uses: bool) -> None:
    with start(server) as cluster:
        if uses:
            cluster.each(use)
        leave(cluster, 1)
        if not uses:
            cluster.nodes[0].begin(use)
            cluster.call(2, use)
        cluster.call(0, write, range(8), 5)
        cluster.start(1)
        cluster.call(1, use, None)
        assert cluster.call(1, read, range(8), 0) == {5}
        knows_all(cluster, 2)
        cluster.each(meet)
        # Who saw it leave still waits for the others at its own end.
        cluster.call(2, write, range(8), 9)
        cluster.nodes[2].begin(close)
        assert not cluster.nodes[2].link.poll(0.5), "it does not wait"
        assert cluster.call(0, read, range(8), 2) == {9}


def named(site: Site, name: str, value: int | None = None) -> int:
    """The first word of a named array, which is written if a value is given. The array has its own
    lease block: no array is lost with a node that has touched another one.
    """
    block = 512 * PAGE_SIZE
    array = site.node.region("named", 16 * block).array(block // 8, np.int64, name=name)
    if value is not None:
        array[0] = value
    return int(array[0])


@pytest.mark.parametrize("way", [kill, leave])
def test_with_etcd_no_node_is_needed_to_open_regions_and_to_join(way: Way) -> None:
    """Who kept the list of regions goes, twice; the others know it, and take newcomers in."""
    with Etcd() as etcd, start(etcd) as cluster:
        cluster.each(use)
        for index, name in enumerate("xyz"):
            assert cluster.call(index, named, name, 10 + index) == 10 + index
        assert cluster.call(1, named, "x") == 10
        for gone, left in ((0, (1, 2)), (1, (2, 0))):
            way(cluster, gone)
            for index in left:
                knows_two(cluster, index)
            # What is there is found, and what is new has room of its own.
            assert cluster.call(left[0], named, "z") == 12
            assert cluster.call(left[1], named, f"new {gone}", 20 + gone) == 20 + gone
            assert cluster.call(left[0], named, f"new {gone}") == 20 + gone
            assert cluster.call(left[0], named, "z") == 12
            region = (4 * PAGE_SIZE, f"new {gone}")
            answers = [cluster.nodes[index].begin(new_region, *region) for index in left]
            assert [answer.result() for answer in answers] == [7, 7]
            cluster.start(gone)
            cluster.call(gone, use, None)
            assert cluster.call(gone, new_region, *region) == 7
            assert cluster.call(gone, named, f"new {gone}") == 20 + gone
            for index in range(3):
                knows_all(cluster, index)
        cluster.each(meet)


def knows_two(cluster: Cluster, index: int) -> None:
    wait_until("one is gone", lambda: cluster.call(index, states).count("up") == 2)


def test_with_etcd_what_was_asked_of_a_node_that_is_lost_is_asked_again() -> None:
    with Etcd() as etcd, start(etcd) as cluster:
        cluster.each(use)
        stop(cluster, 0)
        answers = [cluster.nodes[index].begin(new_region, 4 * PAGE_SIZE) for index in (1, 2)]
        assert not cluster.nodes[1].link.poll(0.5), "it was answered by a node that is stopped"
        assert [answer.result() for answer in answers] == [7, 7]
        assert cluster.call(1, states) == ["lost", "up", "up"]
        kill(cluster, 0)


def keep_counting(site: Site, seed: int) -> int:
    """Each word counts the stores of one process of a node; it ends when it is told to.

    A page is held while it is used, so that a lost one is an exception. Who comes back begins with
    what it finds.
    """
    region, words, me = site.kept["load"], site.kept["words"], site.node.index
    chance = random.Random(seed * 3 + me)
    stop: threading.Event = site.kept["stop"]
    mine: dict[int, int] = {}
    seen = np.zeros((PAGES, 3), np.int64)
    while not stop.is_set():
        page = chance.randrange(48 if chance.random() < 0.7 else PAGES)
        try:
            with region.hold(page * PAGE_SIZE, (page + 1) * PAGE_SIZE, "w", 60.0):
                before = int(words[page, me])
                words[page, me] += 1
                now = words[page, :3].copy()
        except giantvm.PagesLost:
            mine.pop(page, None)
            continue
        assert mine.get(page, before) == before, f"page {page}: {before}, not {mine[page]}"
        mine[page] = before + 1
        assert (now >= seen[page]).all(), f"page {page}: {now} after {seen[page]}"
        seen[page] = now
    return len(mine)


def begin_counting(site: Site, seed: int) -> None:
    """In a thread, so that the node answers other calls."""
    site.kept["stop"] = threading.Event()

    def count() -> None:
        try:
            site.kept["counted"] = keep_counting(site, seed)
        except Exception as error:
            site.kept["error"] = error

    site.kept["thread"] = threading.Thread(target=count)
    site.kept["thread"].start()


def end_counting(site: Site) -> int:
    site.kept["stop"].set()
    site.kept["thread"].join()
    if "error" in site.kept:
        raise site.kept["error"]
    counted: int = site.kept["counted"]
    return counted


def come_and_go(server: Etcd | None, rounds: int, seed: int) -> None:
    chance = random.Random(seed)
    with start(server) as cluster:
        cluster.each(use)
        cluster.each(begin_counting, seed)
        for number in range(1, rounds + 1):
            victim: NodeProcess = cluster.nodes[2]
            # A moment that differs from run to run: the load needs none of them to be exact.
            cluster.nodes[0].link.poll(0.05 + chance.random() * 0.3)
            victim.kill()
            cluster.start(2)
            cluster.call(2, use, None)
            cluster.call(2, begin_counting, seed + number)
            for index in (0, 1):
                cluster.call(index, wait_for_loss, number)
        # The last process may have had no time.
        assert all(counted > 0 for counted in cluster.each(end_counting)[:2])


@pytest.mark.parametrize("seed", range(2))
def test_a_node_comes_and_goes_under_load(server: Etcd | None, seed: int) -> None:
    come_and_go(server, 3, seed)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(10))
def test_a_node_comes_and_goes_ten_times(server: Etcd | None, seed: int) -> None:
    come_and_go(server, 10, 100 + seed)
