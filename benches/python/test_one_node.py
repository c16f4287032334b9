"""What one node's Python code pays for regions and locks: pytest-benchmark, beside plain numpy.

Run by `make bench`, or alone: `python -m pytest benches/python --benchmark-only`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import giantvm

pytest.importorskip("pytest_benchmark", reason="only `make bench` installs pytest-benchmark")

ITEMS = 1 << 17

Array = npt.NDArray[np.int64]


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[giantvm.Node]:
    place: Path = tmp_path_factory.mktemp("node")
    nodes = [giantvm.NodeSpec("a", f"unix:{place}/a.sock", memory_bytes=1 << 24)]
    with giantvm.Node(nodes=nodes) as node:
        yield node


@pytest.fixture(params=["region", "plain numpy"])
def array(request: pytest.FixtureRequest, node: giantvm.Node) -> Array:
    if request.param == "region":
        found = node.region("bench", ITEMS * 8).array(ITEMS, np.int64)
    else:
        found = np.zeros(ITEMS, np.int64)
    found[:] = 1
    return found


@pytest.mark.benchmark(group="read an element")
def test_read_an_element(benchmark: Any, array: Array) -> None:
    assert benchmark(array.item, 1000) == 1


@pytest.mark.benchmark(group="write an element")
def test_write_an_element(benchmark: Any, array: Array) -> None:
    benchmark(array.__setitem__, 1000, 1)


@pytest.mark.benchmark(group="sum 1 MiB")
def test_sum(benchmark: Any, array: Array) -> None:
    assert benchmark(array.sum) == ITEMS


@pytest.mark.benchmark(group="locks")
def test_mutex(benchmark: Any, node: giantvm.Node) -> None:
    mutex = node.mutex("bench")

    def lock_and_unlock() -> None:
        with mutex:
            pass

    benchmark(lock_and_unlock)


@pytest.mark.benchmark(group="locks")
def test_counter(benchmark: Any, node: giantvm.Node) -> None:
    benchmark(node.counter("count").add)
