"""What a region's memory did at this node."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

__all__ = ["FAULT_KINDS", "Latency", "RegionStats"]

FAULT_KINDS: Final = ("read", "write", "upgrade", "first_touch")
"""Faults by what they needed: a copy, the page, the right to write a copy, a page never written."""


@dataclass(frozen=True, slots=True)
class Latency:
    """Time from a fault to its end, in microseconds; 0 where there was none."""

    p50_us: float
    p90_us: float
    p99_us: float


@dataclass(frozen=True, slots=True)
class RegionStats:
    """Counts since the region was opened at this node."""

    faults: Mapping[str, int]
    """Page faults by kind; `FAULT_KINDS` names them."""
    latency: Mapping[str, Latency]
    """How long they took, by kind."""
    pages_sent: int
    """Pages whose bytes went to other nodes."""
    pages_received: int
    """Pages whose bytes came from other nodes."""
    bytes_sent: int
    """Bytes of these pages."""
    bytes_received: int
    """Bytes of these pages."""
    data_free_grants: int
    """Pages that came without their bytes: the frame here still had them."""
    invalidations: int
    """Copies dropped here because another node was to write."""
    pages_evicted: int
    """Frames given back because this node had more than its share."""
    pages_held: int
    """Pages under `Region.hold` now."""
    pages_walk_shared: int
    """Of a guest's memory: page tables that are writable here and at other nodes now."""
    contended: tuple[tuple[int, int], ...]
    """The pages that left this node most often: (page, times), most first, at most ten."""

    @property
    def faults_total(self) -> int:
        """Page faults of all kinds."""
        return sum(self.faults.values())

    def to_json(self) -> str:
        """The same as text, which `from_json` reads."""
        report = asdict(self)
        del report["latency"]
        report["latency_us"] = {
            kind: {"p50": found.p50_us, "p90": found.p90_us, "p99": found.p99_us}
            for kind, found in self.latency.items()
        }
        return json.dumps(report)

    @classmethod
    def from_json(cls, text: str) -> RegionStats:
        """Reads what the native module reports."""
        report: dict[str, Any] = json.loads(text)
        latency = report["latency_us"]
        return cls(
            faults={kind: int(report["faults"][kind]) for kind in FAULT_KINDS},
            latency={
                kind: Latency(*(float(latency[kind][p]) for p in ("p50", "p90", "p99")))
                for kind in FAULT_KINDS
            },
            pages_sent=int(report["pages_sent"]),
            pages_received=int(report["pages_received"]),
            bytes_sent=int(report["bytes_sent"]),
            bytes_received=int(report["bytes_received"]),
            data_free_grants=int(report["data_free_grants"]),
            invalidations=int(report["invalidations"]),
            pages_evicted=int(report["pages_evicted"]),
            pages_held=int(report["pages_held"]),
            pages_walk_shared=int(report["pages_walk_shared"]),
            contended=tuple((int(page), int(count)) for page, count in report["contended"]),
        )
