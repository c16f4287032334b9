"""A node is lost under load: every survivor ends in the stated way, and none hangs."""

from __future__ import annotations

import os
import random
import re
import signal
from collections.abc import Callable

import pytest

pytest.importorskip("giantvm._native", reason="the native module is not built")

import numpy as np

import giantvm
from cluster import ANSWER_S, EXIT_LOST, Cluster, NodeProcess, Site
from giantvm import PAGE_SIZE

PAGES = 4096
HOT = 64
LINE = re.compile(
    r'giantvm: region "load" offset 0x[0-9a-f]+: lost with node (a|b|c) \(.+\)(; .+)?'
)


def keep_busy(site: Site, seed: int) -> None:
    """Each word counts the stores of one node; a word that goes back is an old byte."""
    words = site.node.region("load", PAGES * PAGE_SIZE).array((PAGES, 3, 8), np.int64)
    site.node.barrier("load").wait()
    seen = np.zeros((PAGES, 3), np.int64)
    chance = random.Random(seed + site.node.index)
    while True:
        # Contention on a few pages; so many others that no node can come to own them all, and go on
        # alone with memory that it vouches for.
        page = chance.randrange(HOT if chance.random() < 0.9 else PAGES)
        words[page, site.node.index, 0] += 1
        now = words[page, :, 0].copy()
        if (now < seen[page]).any():
            os.write(2, b"old bytes\n")
            os._exit(1)
        seen[page] = now


def load(cluster: Cluster, seed: int) -> None:
    """Starts the load on all nodes, and lets each make progress."""
    for node in cluster.nodes:
        node.begin(keep_busy, seed)


def kill(node: NodeProcess) -> None:
    node.signal(signal.SIGKILL)


def stop(node: NodeProcess) -> None:
    node.signal(signal.SIGSTOP)


def ends_as_stated(node: NodeProcess, lost: str) -> None:
    assert node.wait() == EXIT_LOST, node.log()
    lines = [line for line in node.log().splitlines() if line.startswith("giantvm: region")]
    assert len(lines) == 1, node.log()
    found = LINE.fullmatch(lines[0])
    assert found is not None, lines[0]
    assert found[1] == lost
    # The callback needs Python's lock, which the thread that waits for a page may hold: then the
    # process ends without it.
    told = node._log.parent / f"{node.name}.lost"
    assert not told.exists() or told.read_text() in ("", lost)


@pytest.mark.parametrize("way", [kill, stop])
@pytest.mark.parametrize("victim", [0, 1, 2])
def test_survivors_end_with_one_line_and_the_stated_status(
    way: Callable[[NodeProcess], None], victim: int
) -> None:
    lose_one(way, victim, seed=victim)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(100))
def test_a_hundred_losses_at_random_moments(seed: int) -> None:
    chance = random.Random(seed)
    lose_one(chance.choice([kill, stop]), chance.randrange(3), seed)


def lose_one(way: Callable[[NodeProcess], None], victim: int, seed: int) -> None:
    with Cluster(timeout_ms=1000) as cluster:
        load(cluster, seed)
        # A moment that differs from run to run: the load needs none of them to be exact.
        cluster.nodes[victim].link.poll(0.05 + random.Random(seed).random() * 0.2)
        lost = cluster.nodes[victim]
        way(lost)
        for node in cluster.nodes:
            if node is not lost:
                ends_as_stated(node, lost.name)
        if way is stop:
            # It learns that it is out: it goes on neither with old bytes nor for ever.
            lost.signal(signal.SIGCONT)
            assert lost.wait() == EXIT_LOST, lost.log()
            assert "old bytes" not in lost.log()


def hold_lock(site: Site, kind: str) -> None:
    if kind == "mutex":
        site.node.mutex("wanted").acquire()
    elif kind == "rwlock":
        site.node.rwlock("wanted").write().__enter__()


def wait_for(site: Site, kind: str) -> None:
    if kind == "mutex":
        site.node.mutex("wanted").acquire()
    elif kind == "rwlock":
        site.node.rwlock("wanted").read().__enter__()
    else:
        site.node.barrier("wanted").wait()


@pytest.mark.parametrize("kind", ["mutex", "rwlock", "barrier"])
def test_waiters_learn_of_the_loss(kind: str) -> None:
    with Cluster(timeout_ms=1000) as cluster:
        cluster.call(2, hold_lock, kind)
        waiting = [cluster.nodes[index].begin(wait_for, kind) for index in (0, 1)]
        kill(cluster.nodes[2])
        for answer in waiting:
            with pytest.raises(giantvm.NodeLost, match=r"\bc\b"):
                answer.result()


def own_pages(site: Site) -> None:
    site.kept["load"] = site.node.region("load", PAGES * PAGE_SIZE)
    site.kept["load"].array(PAGES * PAGE_SIZE, np.uint8)[:] = 1


def write_lost_pages(site: Site) -> int:
    """A system call on lost memory fails; the errno."""
    region = site.kept["load"]
    assert site.lost.wait(ANSWER_S), "the node was not told of the loss"
    reader, writer = os.pipe()
    try:
        with memoryview(region) as view:
            os.write(writer, view[:PAGE_SIZE])
    except OSError as error:
        return error.errno or 0
    finally:
        os.close(reader)
        os.close(writer)
    return 0


def open_load(site: Site) -> None:
    site.kept["load"] = site.node.region("load", PAGES * PAGE_SIZE)


def test_a_system_call_on_lost_pages_raises() -> None:
    with Cluster(timeout_ms=1000) as cluster:
        cluster.call(0, open_load)
        cluster.call(2, own_pages)
        answer = cluster.nodes[0].begin(write_lost_pages)
        kill(cluster.nodes[2])
        assert answer.result() != 0


def try_everything(site: Site) -> list[str]:
    assert site.lost.wait(ANSWER_S), "the node was not told of the loss"
    tries: list[Callable[[], object]] = [
        lambda: site.node.region("new", PAGE_SIZE),
        lambda: site.node.counter("x").add(),
        lambda: site.node.mutex("x").acquire(),
        lambda: site.node.barrier("x").wait(),
    ]
    found = []
    for attempt in tries:
        try:
            attempt()
        except giantvm.NodeLost as error:
            found.append(str(error))
    return found


def test_nothing_new_begins_after_a_loss() -> None:
    with Cluster(timeout_ms=1000) as cluster:
        answer = cluster.nodes[1].begin(try_everything)
        kill(cluster.nodes[2])
        errors = answer.result()
        assert len(errors) == 4
        assert all("c" in error for error in errors)


def epoch_and_states(site: Site) -> tuple[int, dict[str, str]]:
    return site.node.epoch, {n["name"]: n["state"] for n in site.node.status()["nodes"]}


def test_a_node_that_leaves_is_no_loss() -> None:
    with Cluster(timeout_ms=1000) as cluster:
        before, _ = cluster.call(0, epoch_and_states)
        cluster.nodes[2].leave()
        assert cluster.nodes[2].wait() == 0
        after, states = cluster.call(0, epoch_and_states)
        assert after > before
        assert states["c"] == "left"
        assert states["b"] == "up"
        assert not (cluster.directory / "a.lost").exists()
