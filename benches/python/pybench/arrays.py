"""Elements of a region's array whose pages are here, beside a plain numpy array."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from pybench.report import Row, row_of
from pybench.sampling import Batches, interleave
from pybench.sites import Group, Site

ELEMENTS: Final = 1 << 17
GOAL: Final = 1.1
"""Pages that are here cost what memory costs; the rest is for noise."""

Array = npt.NDArray[np.float64]


def _read(array: Array, places: range) -> None:
    for place in places:
        array[place]


def _write(array: Array, places: range) -> None:
    for place in places:
        array[place] = 1.0


def _sum(array: Array, _: range) -> None:
    array.sum()


USES: Final[dict[str, tuple[Callable[[Array, range], None], int]]] = {
    "read an element": (_read, 1000),
    "write an element": (_write, 1000),
    "sum 1 MiB": (_sum, 1),
}


def array_access(batches: Batches) -> Iterator[Row]:
    """Access to pages that are at this node; floor: the same on a plain numpy array."""
    with Group(2, "unix") as group:
        group.call(0, _make_arrays)
        for use in USES:
            samplers = [partial(group.call, 0, _use, use, kind) for kind in ("region", "plain")]
            region, plain = interleave(samplers, batches)
            yield row_of("array_access", use, region, floor=plain, goal=GOAL)


def _make_arrays(site: Site) -> None:
    region = site.node.region("array", ELEMENTS * 8)
    site.kept["region"] = region.array((ELEMENTS,), np.float64)
    site.kept["plain"] = np.empty(ELEMENTS)
    for kind in ("region", "plain"):
        site.kept[kind][:] = 1.0


def _use(site: Site, use: str, kind: str, count: int) -> list[float]:
    array: Any = site.kept[kind]
    function, accesses = USES[use]
    places = range(0, ELEMENTS, ELEMENTS // accesses)[:accesses]
    times = []
    for _ in range(count):
        began = time.perf_counter_ns()
        function(array, places)
        times.append((time.perf_counter_ns() - began) / 1000 / accesses)
    return times
