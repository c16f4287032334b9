"""A node is lost while all touch all of a region: all nodes end in the stated way, and none hangs.

The others go on, for good where nothing was lost, or until they touch what was; or until the first
of the list is lost, with which a cluster ends. A node is killed, stopped or cut off; the number in
a test's name is the seed of its choices.
"""

from __future__ import annotations

import os
import random
import re
import signal

import pytest

pytest.importorskip("giantvm._native", reason="the native module is not built")

import numpy as np

from cluster import EXIT_LOST, Answer, Cluster, NodeProcess, Site
from giantvm import PAGE_SIZE
from losing import Way, cut, kill, on_machines, stop
from network import Network

PAGES = 4096
HOT = 64
TIMEOUT_MS = 1000
STEPS_AFTER = 5000
"""What a node does after a loss that it outlives."""
LINE = re.compile(
    r'giantvm: region "load" offset 0x[0-9a-f]+: lost with node ([abc](?: or [abc])?) \(.+\)(; .+)?'
)


def open_load(site: Site) -> None:
    site.kept["load"] = site.node.region("load", PAGES * PAGE_SIZE).array((PAGES, 3, 8), np.int64)


def keep_busy(site: Site, seed: int) -> None:
    """Each word counts the stores of one node; a word that goes back is an old byte."""
    words = site.kept["load"]
    seen = np.zeros((PAGES, 3), np.int64)
    chance = random.Random(seed + site.node.index)
    after = 0
    while after < STEPS_AFTER:
        after += any(not loss.ended for loss in site.losses)
        # Contention on a few pages; so many others that no node can come to own them all, and go on
        # alone with memory that it vouches for.
        page = chance.randrange(HOT if chance.random() < 0.9 else PAGES)
        words[page, site.node.index, 0] += 1
        now = words[page, :, 0].copy()
        if (now < seen[page]).any():
            os.write(2, b"old bytes\n")
            os._exit(1)
        seen[page] = now


def load(cluster: Cluster, seed: int) -> list[Answer]:
    """Starts the load on all nodes."""
    cluster.each(open_load)
    return [node.begin(keep_busy, seed) for node in cluster.nodes]


def ends_as_stated(node: NodeProcess, losable: str) -> None:
    """It ends with the stated status and one line, which names nodes that are `losable`."""
    assert node.wait() == EXIT_LOST, node.log()
    lines = [line for line in node.log().splitlines() if line.startswith("giantvm: region")]
    assert len(lines) == 1, node.log()
    found = LINE.fullmatch(lines[0])
    assert found is not None, lines[0]
    names = found[1].split(" or ")
    assert set(names) <= set(losable), lines[0]
    assert "old bytes" not in node.log()
    # The callback needs Python's lock, which the thread that waits for a page may hold: then the
    # process ends without it, and may have been told of an earlier loss only.
    told = node._log.parent / f"{node.name}.lost"
    assert not told.exists() or set(told.read_text()) <= set(losable)


def ends_or_goes_on(node: NodeProcess, answer: Answer, losable: str) -> None:
    """It ends as stated, or has found all that it touched after the loss."""
    try:
        answer.result()
    except AssertionError:
        ends_as_stated(node, losable)
    else:
        assert 'region "load" goes on' in node.log(), node.log()


def lose_one(way: Way, victim: int, seed: int, network: Network | None) -> None:
    with Cluster(timeout_ms=TIMEOUT_MS, network=network) as cluster:
        answers = load(cluster, seed)
        # A moment that differs from run to run: the load needs none of them to be exact.
        cluster.nodes[victim].link.poll(0.05 + random.Random(seed).random() * 0.2)
        lost = cluster.nodes[victim]
        way(cluster, victim)
        for node, answer in zip(cluster.nodes, answers, strict=True):
            if node is not lost:
                # The one that ends first is lost to the other one.
                ends_or_goes_on(node, answer, "abc".replace(node.name, ""))
        if way is stop:
            # It learns that it is out, from its clock or from the silence that it wakes up to.
            lost.signal(signal.SIGCONT)
            ends_or_goes_on(lost, answers[victim], "abc")
        elif way is cut:
            # It has lost the deciding node, or is that node and goes on without the others.
            ends_or_goes_on(lost, answers[victim], "bc" if victim == 0 else "a")


def lose_one_of(way: Way, victim: int, seed: int, request: pytest.FixtureRequest) -> None:
    on_machines(way, victim, request, lambda network: lose_one(way, victim, seed, network))


@pytest.mark.parametrize("way", [kill, stop, cut])
@pytest.mark.parametrize("victim", [0, 1, 2])
def test_every_node_ends_with_one_line_and_the_stated_status(
    way: Way, victim: int, request: pytest.FixtureRequest
) -> None:
    lose_one_of(way, victim, victim, request)


@pytest.mark.parametrize("seed", range(12))
def test_losses_at_random_moments(seed: int, request: pytest.FixtureRequest) -> None:
    chance = random.Random(seed)
    way: Way = chance.choice([kill, stop, cut])
    lose_one_of(way, chance.randrange(3), seed, request)
