"""A node is lost, and the others go on: with every byte that is left, and knowing what is not.

A node is killed, stopped or cut off under load; the number in a test's name is the seed of its
choices.
"""

from __future__ import annotations

import random
import signal

import pytest

pytest.importorskip("giantvm._native", reason="the native module is not built")

import numpy as np
import numpy.typing as npt

import giantvm
from cluster import ANSWER_S, EXIT_LOST, Answer, Cluster, NodeProcess, Site
from giantvm import PAGE_SIZE
from losing import Way, cut, kill, on_machines, stop
from network import Network

PAGES = 1536
HOT = 48
TIMEOUT_MS = 1000
STEPS_AFTER = 500
"""What a node does after it was told of the loss."""

Counts = npt.NDArray[np.int64]
Words = npt.NDArray[np.int64]


def open_load(site: Site) -> None:
    site.kept["load"] = site.node.region("load", PAGES * PAGE_SIZE)
    # A page each, of which a node uses the word that has its number.
    site.kept["words"] = site.kept["load"].array((PAGES, PAGE_SIZE // 8), np.int64)
    site.kept["mine"] = np.zeros(PAGES, np.int64)


def keep_counting(site: Site, seed: int) -> int:
    """Each word counts the stores of one node; a word that goes back is an old byte.

    A page is held while it is used, so that a lost one is an exception.
    """
    region, words, me = site.kept["load"], site.kept["words"], site.node.index
    mine = site.kept["mine"]
    seen = np.zeros((PAGES, 3), np.int64)
    chance = random.Random(seed * 3 + me)
    lost: set[int] = set()
    after = 0
    while after < STEPS_AFTER:
        after += site.lost.is_set()
        page = chance.randrange(HOT if chance.random() < 0.7 else PAGES)
        try:
            with region.hold(page * PAGE_SIZE, (page + 1) * PAGE_SIZE, "w", 60.0):
                words[page, me] += 1
                now = words[page, :3].copy()
        except giantvm.PagesLost:
            lost.add(page)
            continue
        assert page not in lost, f"page {page} is back"
        mine[page] += 1
        assert now[me] == mine[page], f"page {page}: {now} after {mine[page]} stores"
        assert (now >= seen[page]).all(), f"page {page}: {now} after {seen[page]}"
        seen[page] = now
    return len(lost)


def lost_of(site: Site) -> list[range]:
    lost: list[range] = site.kept["load"].lost()
    return lost


def told_of(site: Site) -> list[tuple[str, bool, list[range]]]:
    return [(it.node, it.ended, it.regions["load"]) for it in site.losses]


def read_left(site: Site) -> tuple[Words, Counts]:
    """The words of all pages but the lost ones, which read as 0; and this node's own counts."""
    words = np.zeros((PAGES, 3), np.int64)
    gone = {page for part in lost_of(site) for page in pages_of(part)}
    for page in range(PAGES):
        if page not in gone:
            words[page] = site.kept["words"][page, :3]
    return words, site.kept["mine"]


def pages_of(part: range) -> range:
    assert part.start % PAGE_SIZE == 0 == part.stop % PAGE_SIZE, part
    return range(part.start // PAGE_SIZE, part.stop // PAGE_SIZE)


def check_survivors(survivors: list[NodeProcess], lost: NodeProcess, answers: list[Answer]) -> None:
    """They agree on what is lost, and each store of theirs to any other page is there."""
    for answer in answers:
        answer.result()
    left = [node.begin(lost_of).result() for node in survivors]
    assert left[0] == left[1]
    for node in survivors:
        assert node.begin(told_of).result() == [(lost.name, False, left[0])]
    gone = [page for part in left[0] for page in pages_of(part)]
    there = np.ones(PAGES, np.bool_)
    there[gone] = False
    for reader in survivors:
        words, _ = reader.begin(read_left).result()
        for writer in survivors:
            _, mine = writer.begin(read_left).result()
            index = "abc".index(writer.name)
            assert (words[there, index] == mine[there]).all()


def finds_out(node: NodeProcess, answer: Answer) -> None:
    """It learns that it is out: by a call that says so, or by memory that has ended."""
    try:
        answer.result()
    except giantvm.NodeLost:
        return
    except AssertionError:
        assert node.wait() == EXIT_LOST, node.log()
        return
    raise AssertionError(f"node {node.name} goes on\n{node.log()}")


def lose_one(way: Way, victim: int, seed: int, network: Network | None) -> None:
    with Cluster(timeout_ms=TIMEOUT_MS, network=network) as cluster:
        cluster.each(open_load)
        answers = [node.begin(keep_counting, seed) for node in cluster.nodes]
        # A moment that differs from run to run: the load needs none of them to be exact.
        cluster.nodes[victim].link.poll(0.05 + random.Random(seed).random() * 0.3)
        way(cluster, victim)
        lost = cluster.nodes[victim]
        survivors = [node for node in cluster.nodes if node is not lost]
        theirs = [answers[index] for index in range(3) if index != victim]
        if victim == 0:
            # The first of the list decides: the cluster ends with it.
            for node, answer in zip(survivors, theirs, strict=True):
                finds_out(node, answer)
        else:
            check_survivors(survivors, lost, theirs)
        if way is kill:
            assert lost.wait() == -signal.SIGKILL
            return
        if way is stop:
            lost.signal(signal.SIGCONT)
        if victim > 0:
            finds_out(lost, answers[victim])
        elif way is cut:
            # It decides, so that it goes on, alone.
            answers[victim].result()


def lose_one_of(way: Way, victim: int, seed: int, request: pytest.FixtureRequest) -> None:
    on_machines(way, victim, request, lambda network: lose_one(way, victim, seed, network))


@pytest.mark.parametrize("way", [kill, stop, cut])
@pytest.mark.parametrize("victim", [0, 1, 2])
def test_survivors_go_on_with_what_is_left(
    way: Way, victim: int, request: pytest.FixtureRequest
) -> None:
    lose_one_of(way, victim, victim, request)


@pytest.mark.parametrize("seed", range(8))
def test_losses_at_random_moments(seed: int, request: pytest.FixtureRequest) -> None:
    chance = random.Random(seed)
    way: Way = chance.choice([kill, stop, cut])
    lose_one_of(way, chance.choice([1, 2]), seed, request)


@pytest.mark.long
@pytest.mark.parametrize("way", [kill, stop, cut])
@pytest.mark.parametrize("seed", range(100))
def test_a_hundred_losses_of_each_way(way: Way, seed: int, request: pytest.FixtureRequest) -> None:
    lose_one_of(way, random.Random(seed).choice([1, 2]), seed, request)


def touch_lost(site: Site) -> int:
    assert site.lost.wait(ANSWER_S), "the node was not told of the loss"
    first = lost_of(site)[0].start
    return int(site.kept["words"][first // PAGE_SIZE, 0])


def write_all(site: Site) -> None:
    site.kept["words"][:, site.node.index] += 1


def lose_the_writer(cluster: Cluster) -> None:
    """The last node has written all pages, and is lost; the others know."""
    cluster.each(open_load)
    cluster.call(2, write_all)
    kill(cluster, 2)
    for index in (0, 1):
        cluster.call(index, wait_for_loss, 1)


def wait_for_loss(site: Site, count: int) -> None:
    while len(site.losses) < count:
        assert site.lost.wait(ANSWER_S), "the node was not told of the loss"
        site.lost.clear()


def test_who_touches_a_lost_page_ends_with_its_place_and_node() -> None:
    with Cluster(timeout_ms=TIMEOUT_MS) as cluster:
        cluster.each(open_load)
        cluster.call(2, write_all)
        kill(cluster, 2)
        answer = cluster.nodes[1].begin(touch_lost)
        assert cluster.nodes[1].wait() == EXIT_LOST, answer
        log = cluster.nodes[1].log()
        assert 'giantvm: region "load" offset 0x' in log
        assert "lost with node c (" in log
        # To the last one, that was the second loss.
        cluster.call(0, wait_for_loss, 2)
        assert [it[0] for it in cluster.call(0, told_of)] == ["c", "b"]


def use_new_region(site: Site) -> int:
    array = site.node.region("new", 4 * PAGE_SIZE).array(4 * PAGE_SIZE, np.uint8)
    array[site.node.index * PAGE_SIZE] = 7
    return int(array[site.node.index * PAGE_SIZE])


def test_two_losses_one_after_the_other() -> None:
    with Cluster(timeout_ms=TIMEOUT_MS) as cluster:
        cluster.each(open_load)
        for index in range(3):
            cluster.call(index, write_all)
        kill(cluster, 1)
        cluster.call(2, wait_for_loss, 1)
        assert cluster.call(0, use_new_region) == 7
        cluster.call(2, write_all)
        kill(cluster, 2)
        cluster.call(0, wait_for_loss, 2)
        assert cluster.call(0, use_new_region) == 7
        # The third node wrote last, and took all of it along.
        assert cluster.call(0, lost_of) == [range(PAGES * PAGE_SIZE)]


def restore(site: Site, where: range, value: int) -> None:
    site.kept["load"].restore(where, np.full(len(where), value, np.uint8))


def read_bytes(site: Site, where: range) -> set[int]:
    with memoryview(site.kept["load"]) as view:
        return set(view[where.start : where.stop])


def test_lost_ranges_get_new_content() -> None:
    with Cluster(timeout_ms=TIMEOUT_MS) as cluster:
        lose_the_writer(cluster)
        whole = cluster.call(0, lost_of)[0]
        first, rest = whole[: 8 * PAGE_SIZE], whole[8 * PAGE_SIZE :]
        cluster.call(0, restore, first, 5)
        assert cluster.call(1, read_bytes, first) == {5}
        with pytest.raises(ValueError, match=rf"page {first.start // PAGE_SIZE} .*not lost"):
            cluster.call(1, restore, first, 6)
        with pytest.raises(ValueError, match="not whole pages"):
            cluster.call(1, restore, range(rest.start + 8, rest.start + 8 + PAGE_SIZE), 6)
        with pytest.raises(ValueError, match="bytes"):
            cluster.call(1, restore, range(rest.start, rest.stop, 2), 6)
        for part in cluster.call(1, lost_of):
            cluster.call(1, restore, part, 7)
        assert cluster.call(0, read_bytes, rest) == {7}
        assert [cluster.call(index, lost_of) for index in (0, 1)] == [[], []]
        # Ordinary memory again.
        cluster.call(1, write_all)
        cluster.call(0, write_all)


def hold_lost(site: Site) -> None:
    where = lost_of(site)[0]
    with site.kept["load"].hold(where.start, where.start + PAGE_SIZE, "r"):
        raise AssertionError("a lost page is held")


def test_a_hold_of_a_lost_page_is_an_error() -> None:
    with Cluster(timeout_ms=TIMEOUT_MS) as cluster:
        lose_the_writer(cluster)
        with pytest.raises(giantvm.PagesLost, match="lost with a node"):
            cluster.call(1, hold_lost)
