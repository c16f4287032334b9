"""The status of a cluster, as each of its nodes tells it.

A node's status is a JSON object:

    {"cluster": "demo", "node": "a", "index": 0, "epoch": 3, "state": "up",
     "userfaultfd": "full", "uptime_ms": 5000,
     "nodes": [{"name": "a", "state": "up"}, ...],
     "regions": [{"name": "grid", "size": 1048576, "pages_resident": 12, "pages_held": 0,
                  "faults": {"read": 1, "write": 2, "upgrade": 3, "first_touch": 4},
                  "bytes_sent": 0, "bytes_received": 0}, ...],
     "vm": {"state": "running", "tsc_khz": 2300000, "clock_error_ns": 0.0, "clock_drift_ppm": 0.0,
            "unclaimed_reads": 0, "unclaimed_writes": 0, "profile": null}}

`state` of the node is `up`, or `ended` once a node is lost; of each of `nodes` it is `up`, `absent`
(not joined yet), `left` (of its own will) or `lost`. `userfaultfd` is `full`, `user-mode-only`
(then system calls on a region need `Region.hold`), or `refused` (then this node can't open
regions). `vm` is null on a node without a virtual machine; `giantvm.profile` describes the profile.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from giantvm._native import query_nodes, query_status
from giantvm._time import milliseconds
from giantvm.config import Config, NodeSpec
from giantvm.errors import Error
from giantvm.stats import FAULT_KINDS
from giantvm.tables import align, quantity

__all__ = ["Sample", "find_nodes", "query", "render"]


@dataclass(frozen=True, slots=True)
class Sample:
    """One answer of one node, or why there is none."""

    node: NodeSpec
    """The node that was asked."""
    at_s: float
    """When, on the monotonic clock, in seconds."""
    report: Mapping[str, Any] | None
    """Its status."""
    error: str | None
    """Why it gave none."""


def find_nodes(config: Config, timeout_s: float) -> Config:
    """The cluster with its nodes, which etcd is asked for where it decides; `ClusterError`."""
    if not config.etcd:
        return config
    found = query_nodes(list(config.etcd), config.name, milliseconds(timeout_s))
    return config.with_nodes(NodeSpec(*spec) for spec in found)


def query(config: Config, timeout_s: float) -> list[Sample]:
    """Asks every node of the cluster at once, each for up to `timeout_s` seconds."""

    def ask(node: NodeSpec) -> Sample:
        try:
            text = query_status(node.listen, config.name, milliseconds(timeout_s))
        except Error as error:
            return Sample(node, time.monotonic(), None, str(error))
        return Sample(node, time.monotonic(), json.loads(text), None)

    with ThreadPoolExecutor(max_workers=len(config.nodes)) as pool:
        return list(pool.map(ask, config.nodes))


def render(before: Sequence[Sample], now: Sequence[Sample]) -> str:
    """Tables of the nodes and of the regions at each, with rates from `before` to `now`."""
    parts = [align(("node", "address", "state", "epoch", "userfaultfd"), list(map(_node, now)))]
    rows = [
        _region(first, last, region)
        for first, last in zip(before, now, strict=True)
        if last.report is not None
        for region in last.report["regions"]
    ]
    header = ("region", "node", "size", "pages here", "held", "faults", "faults/s", "in/s", "out/s")
    parts.append(align(header, rows) if rows else "no regions")
    return "\n\n".join(parts)


def _node(sample: Sample) -> tuple[object, ...]:
    spec, report = sample.node, sample.report
    if report is None:
        return spec.name, spec.listen, f"no answer: {sample.error}", None, "-"
    others = [f"{node['name']} {node['state']}" for node in report["nodes"] if _is_news(node)]
    state = ", ".join([report["state"], *others])
    return spec.name, spec.listen, state, report["epoch"], report["userfaultfd"]


def _is_news(node: Mapping[str, str]) -> bool:
    return node["state"] != "up"


def _region(first: Sample, last: Sample, region: Mapping[str, Any]) -> tuple[object, ...]:
    earlier = next(
        (old for old in (first.report or {}).get("regions", ()) if old["name"] == region["name"]),
        None,
    )
    elapsed_s = last.at_s - first.at_s
    faults = sum(region["faults"][kind] for kind in FAULT_KINDS)

    def rate(value: int, old: int | None) -> float | None:
        return None if old is None or elapsed_s <= 0 else (value - old) / elapsed_s

    def flow(key: str) -> str:
        found = rate(region[key], earlier and earlier[key])
        return "-" if found is None else quantity(found)

    old_faults = earlier and sum(earlier["faults"][kind] for kind in FAULT_KINDS)
    return (
        region["name"],
        last.node.name,
        quantity(region["size"]),
        region["pages_resident"],
        region["pages_held"],
        faults,
        rate(faults, old_faults),
        flow("bytes_received"),
        flow("bytes_sent"),
    )
