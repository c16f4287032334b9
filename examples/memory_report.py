"""What the memory did in an example, for all nodes: gathered in shared memory, shown by one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from giantvm import PAGE_SIZE, Node, Region, RegionStats
from giantvm.stats import FAULT_KINDS
from giantvm.tables import align, quantity

_REPORT_BYTES: Final = PAGE_SIZE
_CONTENDED_SHOWN: Final = 10


def gather(node: Node, region: Region) -> Report | None:
    """Collects the statistics of all nodes, which all call this; the first node gets them."""
    text = region.stats().to_json().encode()
    reports = region.array((len(node.nodes), _REPORT_BYTES), np.uint8, name="memory-report")
    if len(text) > _REPORT_BYTES:
        raise ValueError(f"a report of {len(text)} bytes does not fit in {_REPORT_BYTES}")
    reports[node.index, : len(text)] = np.frombuffer(text, np.uint8)
    gathered = node.barrier(f"memory-report/{region.name}")
    gathered.wait()
    found = None
    if node.index == 0:
        texts = [row.tobytes().rstrip(b"\0").decode() for row in reports]
        stats = dict(zip(node.nodes, map(RegionStats.from_json, texts), strict=True))
        found = Report(stats, np.frombuffer(memoryview(region), np.uint8).ctypes.data)
    # The others' memory stays in use until the first node has looked.
    gathered.wait()
    return found


@dataclass(frozen=True)
class Report:
    """Statistics of a region by node."""

    stats: Mapping[str, RegionStats]
    base: int
    """Address of the region in this process, which tells in which array a page is."""

    def show(self, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        """Prints tables of faults, latencies and the most contended pages."""
        print(self._traffic(), self._latency(), self._contended(arrays), sep="\n\n", end="\n\n")

    def _traffic(self) -> str:
        header = ["node", *(kind.replace("_", " ") for kind in FAULT_KINDS)]
        header += ["data-free", "invalidated", "pages in", "pages out", "bytes in", "bytes out"]
        rows = [
            [
                node,
                *(stats.faults[kind] for kind in FAULT_KINDS),
                stats.data_free_grants,
                stats.invalidations,
                stats.pages_received,
                stats.pages_sent,
                quantity(stats.bytes_received),
                quantity(stats.bytes_sent),
            ]
            for node, stats in self.stats.items()
        ]
        return align(header, rows)

    def _latency(self) -> str:
        rows = [
            [node, kind, stats.faults[kind], taken.p50_us, taken.p90_us, taken.p99_us]
            for node, stats in self.stats.items()
            for kind, taken in stats.latency.items()
            if stats.faults[kind]
        ]
        return align(("node", "fault", "count", "p50 us", "p90 us", "p99 us"), rows)

    def _contended(self, arrays: Mapping[str, npt.NDArray[Any]]) -> str:
        left: Counter[int] = Counter()
        for stats in self.stats.values():
            left.update(dict(stats.contended))
        rows = [
            [page, f"{page * PAGE_SIZE:#x}", self._place(page, arrays), count]
            for page, count in left.most_common(_CONTENDED_SHOWN)
        ]
        return align(("contended page", "offset", "array", "times it left"), rows)

    def _place(self, page: int, arrays: Mapping[str, npt.NDArray[Any]]) -> str:
        for name, array in arrays.items():
            inside = self.base + page * PAGE_SIZE - array.ctypes.data
            if 0 <= inside < array.nbytes:
                return f"{name} row {inside // array.strides[0]}" if array.ndim > 1 else name
        return "-"
