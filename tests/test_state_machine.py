"""Random operations on three node processes, against a model that runs one after the other."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import pytest

pytest.importorskip("giantvm._native", reason="the native module is not built")

import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from cluster import Cluster, Site
from giantvm import PAGE_SIZE, Region

PAGES = 24
SIZE = PAGES * PAGE_SIZE

nodes = st.integers(0, 2)
lengths = st.one_of(st.integers(1, 64), st.integers(1, 5 * PAGE_SIZE))
# Ends of pages are where mistakes sit.
offsets = st.one_of(
    st.integers(0, SIZE - 1),
    st.builds(
        lambda page, near: page * PAGE_SIZE + near,
        st.integers(1, PAGES - 1),
        st.integers(-8, 8),
    ),
)


def region_of(site: Site) -> Region:
    if "machine" not in site.kept:
        site.kept["machine"] = site.node.region("machine", SIZE)
    region = site.kept["machine"]
    assert isinstance(region, Region)
    return region


def bytes_of(site: Site) -> Any:
    return region_of(site).array(SIZE, np.uint8)


def clear(site: Site) -> None:
    bytes_of(site)[:] = 0
    site.node.counter("machine").set(0)


def write(site: Site, start: int, data: bytes) -> None:
    bytes_of(site)[start : start + len(data)] = np.frombuffer(data, np.uint8)


def read(site: Site, start: int, stop: int) -> bytes:
    found: bytes = bytes_of(site)[start:stop].tobytes()
    return found


def add(site: Site, start: int, stop: int) -> None:
    """Reads, then writes: an upgrade where there is a copy."""
    bytes_of(site)[start:stop] += 1


def copy(site: Site, source: int, target: int, length: int) -> None:
    array = bytes_of(site)
    array[target : target + length] = array[source : source + length].copy()


def prefetch(site: Site, start: int, stop: int) -> None:
    region_of(site).prefetch(start, stop)


def held_add(site: Site, start: int, stop: int) -> None:
    with region_of(site).hold(start, stop, "w"):
        add(site, start, stop)


def count(site: Site, delta: int) -> int:
    return site.node.counter("machine").add(delta)


def exchange(site: Site, expected: int, new: int) -> bool:
    return site.node.counter("machine").compare_exchange(expected, new)


def add_share(site: Site, start: int, stop: int) -> None:
    """One of the three interleaved shares of a range: nodes write to the same pages at once."""
    bytes_of(site)[start:stop][site.node.index :: 3] += 1


class Machine(RuleBasedStateMachine):
    """The model is a numpy array and a number."""

    cluster: ClassVar[Cluster]

    @initialize(node=nodes)
    def begin(self, node: int) -> None:
        self.cluster.call(node, clear)
        self.model = np.zeros(SIZE, np.uint8)
        self.number = 0

    @rule(node=nodes, start=offsets, length=lengths, value=st.integers(0, 255))
    def write(self, node: int, start: int, length: int, value: int) -> None:
        data = bytes((value + i) % 256 for i in range(min(length, SIZE - start)))
        self.cluster.call(node, write, start, data)
        self.model[start : start + len(data)] = np.frombuffer(data, np.uint8)

    @rule(node=nodes, start=offsets, length=lengths)
    def read(self, node: int, start: int, length: int) -> None:
        stop = min(start + length, SIZE)
        assert self.cluster.call(node, read, start, stop) == self.model[start:stop].tobytes()

    @rule(node=nodes, start=offsets, length=lengths)
    def add(self, node: int, start: int, length: int) -> None:
        self.cluster.call(node, add, start, start + length)
        self.model[start : start + length] += 1

    @rule(node=nodes, start=offsets, length=lengths)
    def held_add(self, node: int, start: int, length: int) -> None:
        self.cluster.call(node, held_add, start, min(start + length, SIZE))
        self.model[start : start + length] += 1

    @rule(start=offsets, length=lengths)
    def add_together(self, start: int, length: int) -> None:
        self.cluster.each(add_share, start, start + length)
        self.model[start : start + length] += 1

    @rule(node=nodes, source=offsets, goal=offsets, length=lengths)
    def copy(self, node: int, source: int, goal: int, length: int) -> None:
        length = min(length, SIZE - source, SIZE - goal)
        self.cluster.call(node, copy, source, goal, length)
        self.model[goal : goal + length] = self.model[source : source + length].copy()

    @rule(node=nodes, start=offsets, length=lengths)
    def prefetch(self, node: int, start: int, length: int) -> None:
        self.cluster.call(node, prefetch, start, min(start + length, SIZE))

    @rule(node=nodes, delta=st.integers(-5, 5))
    def count(self, node: int, delta: int) -> None:
        assert self.cluster.call(node, count, delta) == self.number
        self.number += delta

    @rule(node=nodes, expected=st.integers(-5, 5), new=st.integers(-5, 5))
    def exchange(self, node: int, expected: int, new: int) -> None:
        assert self.cluster.call(node, exchange, expected, new) == (self.number == expected)
        if self.number == expected:
            self.number = new

    @rule()
    def all_agree(self) -> None:
        assert self.cluster.each(read, 0, SIZE) == [self.model.tobytes()] * 3


@pytest.fixture
def machine(shared_three: Cluster) -> Iterator[type[Machine]]:
    Machine.cluster = shared_three
    yield Machine
    del Machine.cluster


def explore(machine: type[Machine], examples: int) -> None:
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            print_blob=True,
        ),
    )


@pytest.mark.timeout(600)
def test_random_operations_agree_with_the_model(machine: type[Machine]) -> None:
    explore(machine, 60)


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_many_random_operations_agree_with_the_model(machine: type[Machine]) -> None:
    explore(machine, 2000)
