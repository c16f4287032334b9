"""Regions larger than the share of any node: every byte right, memory within the shares, and a
defined end where no node has room.
"""

from __future__ import annotations

import random
import re

import pytest

pytest.importorskip("giantvm._native", reason="the native module is not built")

import numpy as np
import numpy.typing as npt

from cluster import EXIT_LOST, Cluster, Site
from giantvm import PAGE_SIZE
from residency import BEYOND, resident

SHARE = 4 << 20
PAGES = 3 * SHARE // PAGE_SIZE
WORDS = 170
"""Words of a page that each of three nodes writes."""


def words(site: Site) -> npt.NDArray[np.int64]:
    if "words" not in site.kept:
        region = site.node.region("limits", PAGES * PAGE_SIZE)
        site.kept["words"] = region.array((PAGES, 512), np.int64)
    found: npt.NDArray[np.int64] = site.kept["words"]
    return found


def taken() -> int:
    """What the region takes in this process."""
    found = resident("limits")
    assert found is not None, "the region is not in this process"
    return found


def work(site: Site, seed: int, visits: int) -> tuple[list[int], int]:
    """Visits pages in random order: own words are what was written last, and are written anew.

    Returns how often each page was visited, and the most memory that the region took.
    """
    array = words(site)
    counts = [0] * PAGES
    chance = random.Random(seed)
    own = slice(site.node.index * WORDS, (site.node.index + 1) * WORDS)
    most = 0
    for visit in range(visits):
        page = chance.randrange(PAGES) if visit >= PAGES else visit
        found = array[page, own]
        assert (found == counts[page]).all(), f"page {page}: {found}, not {counts[page]}"
        counts[page] += 1
        array[page, own] = counts[page]
        if visit % 64 == 0:
            most = max(most, taken())
    return counts, most


def check_all(site: Site, counts: list[list[int]]) -> int:
    """Every byte of the region has what its writer wrote last. Returns the memory it takes."""
    array = words(site)
    for page in range(PAGES):
        expected = np.repeat([count[page] for count in counts], WORDS)
        assert (array[page, : 3 * WORDS] == expected).all(), f"page {page}"
        assert not array[page, 3 * WORDS :].any(), f"page {page}"
    return taken()


def use_all(visits: int) -> None:
    with Cluster(memory_bytes=SHARE) as cluster:
        answers = [node.begin(work, seed, visits) for seed, node in enumerate(cluster.nodes)]
        results = [answer.result() for answer in answers]
        counts = [counts for counts, _ in results]
        sizes = [most for _, most in results]
        sizes += cluster.each(check_all, counts)
        assert max(sizes) <= SHARE + BEYOND, f"{sizes} bytes, the share is {SHARE}"


def test_nodes_work_on_a_region_that_takes_all_their_shares() -> None:
    use_all(PAGES + 2000)


@pytest.mark.long
def test_nodes_work_on_a_region_that_takes_all_their_shares_for_minutes() -> None:
    use_all(PAGES + 100_000)


def write_all(site: Site) -> None:
    region = site.node.region("too-much", 64 << 20, overcommit=True)
    region.array(region.size, np.uint8)[::PAGE_SIZE] = 1


def test_an_access_that_finds_no_memory_anywhere_ends_like_a_lost_one() -> None:
    cluster = Cluster(nodes=("a", "b"), memory_bytes=2 << 20)
    try:
        cluster.nodes[0].begin(write_all)
        assert cluster.nodes[0].wait() == EXIT_LOST, cluster.nodes[0].log()
        line = (
            r'giantvm: region "too-much" offset 0x[0-9a-f]+: lost with node a \(the memory of all '
            r"nodes is full, raise `memory`: a gives 2097152, b gives 2097152\); see docs/"
        )
        assert re.search(line, cluster.nodes[0].log()), cluster.nodes[0].log()
    finally:
        for node in cluster.nodes:
            node.end()
