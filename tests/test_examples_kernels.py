"""What the examples compute, on plain arrays: split over nodes, the result is the same."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))

import demo
import heat
import word_count
from giantvm import Config


@pytest.mark.parametrize("nodes", [1, 2, 3, 7, 40])
def test_heat_split_over_nodes_is_heat_in_one_piece(nodes: int) -> None:
    now = heat.initial(33, 20)
    later = now.copy()
    for _ in range(10):
        for index in range(nodes):
            heat.spread(now, later, heat.share(33, nodes, index))
        now, later = later, now
    assert np.array_equal(now, heat.alone(33, 20, 10))


def test_heat_spreads_and_keeps_its_edge() -> None:
    start, end = heat.initial(33, 20), heat.alone(33, 20, 10)
    assert end[1, 1:-1].min() > start[1, 1:-1].max()
    assert np.array_equal(end[[0, -1]], start[[0, -1]])
    assert end.max() <= start.max()


@given(st.integers(0, 500), st.integers(1, 64))
def test_shares_cover_all_rows_once(rows: int, nodes: int) -> None:
    covered = [row for i in range(nodes) for row in range(rows)[heat.share(rows, nodes, i)]]
    assert covered == list(range(rows))


texts = st.text(alphabet="abCZ 09.\né", max_size=300).map(lambda text: text.encode())


@given(texts, st.integers(1, 8))
def test_words_counted_in_parts_are_counted_once(text: bytes, nodes: int) -> None:
    array = np.frombuffer(text, np.uint8)
    parts = [word_count.part(array, nodes, index) for index in range(nodes)]
    assert b"".join(array[part].tobytes() for part in parts) == text
    counts = [word_count.count(array[part].tobytes()) for part in parts]
    assert word_count.merge(counts) == word_count.count(text)


def test_words_are_folded_and_cut() -> None:
    found = word_count.count(b"The the, THE-end\xff " + b"x" * 99)
    assert found == Counter({b"the": 3, b"end": 1, b"x" * 24: 1})


def test_counts_survive_the_shared_table() -> None:
    row = np.zeros(word_count._ENTRIES_MAX, word_count._ENTRY)
    counts = Counter({b"a": 1, b"b" * 24: 2**40})
    word_count.write_counts(row, counts)
    assert word_count.read_counts(row) == counts
    with pytest.raises(ValueError, match="different words"):
        word_count.write_counts(row[:1], counts)


def test_this_machine_has_a_text_to_count() -> None:
    text = word_count.load(1 << 20)
    assert 100_000 < len(text) <= 1 << 20
    assert len(word_count.count(text)) > 1000


def test_the_demo_writes_a_good_cluster_file() -> None:
    config = Config.parse(demo.cluster(Path("/tmp/x")))
    assert [node.name for node in config.nodes] == list(demo.NODES)
    config.check_addresses(insecure=False)
