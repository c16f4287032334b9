"""Where the guest of a virtual machine waits for pages, and `giantvm top`, which shows it.

With `profile = true` in the file of the virtual machine, each node tells in its status:

    {"faults": 9, "left": 8, "unchanged": 7, "others": 0,
     "sites": [{"address": 4096, "kind": "upgrade", "access": "write", "vcpu": 1, "rip": 1048576,
                "faults": 5}, ...],
     "pages": [{"address": 4096, "left": 4, "unchanged": 3}, ...]}

A *site* is an instruction of a vCPU that waited for a page: `rip` is its virtual address, `address`
the page's physical one, `kind` that of `RegionStats.faults` (`local` for memory that no other node
held), `vcpu` null for other threads of the node, such as devices. `pages` are those that the node
could write and then had to give up; `unchanged` is how often their bytes were then the same as when
they came: page walks of the processor ask to write, but mostly store nothing. `others` counts what
found the tables full.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from giantvm.config import Config
from giantvm.status import Sample, query
from giantvm.symbols import Symbols
from giantvm.tables import align

__all__ = ["dump", "render"]

_KINDS: Final = ("read", "write", "upgrade", "first_touch")


def dump(config: Config, symbols: Symbols, timeout_s: float) -> str:
    """The profile of each node as JSON, with the names of instructions and pages."""
    found = {}
    for sample in query(config, timeout_s):
        vm = (sample.report or {}).get("vm") or {}
        profile = vm.get("profile")
        for site in (profile or {}).get("sites", ()):
            site["instruction"] = symbols.code(site["rip"])
            site["on_page"] = symbols.page(site["address"])
        for page in (profile or {}).get("pages", ()):
            page["on_page"] = symbols.page(page["address"])
        found[sample.node.name] = profile or {"error": sample.error or "no profile"}
    return json.dumps(found, indent=2)


def render(
    before: Sequence[Sample], now: Sequence[Sample], symbols: Symbols, most: int = 20
) -> str:
    """Tables of the nodes, of the hottest places of the guest, and of the pages that move most.

    Counts are since the machine started, rates from `before` to `now`.
    """
    pairs = list(zip(before, now, strict=True))
    parts = [_nodes(pairs)]
    profiles = [
        (last.node.name, last.report["vm"]["profile"])
        for last in now
        if last.report and last.report["vm"] and last.report["vm"]["profile"]
    ]
    if not profiles:
        parts.append(
            "no profile: set `profile = true` in the [vm] table of the file to see where it waits"
        )
        return "\n\n".join(parts)
    parts.append(_sites(profiles, symbols, most))
    parts.append(_pages(profiles, symbols, most))
    return "\n\n".join(parts)


def _nodes(pairs: Sequence[tuple[Sample, Sample]]) -> str:
    header = ("node", "vm", *(f"{kind}/s" for kind in _KINDS), "faults", "unchanged", "clock +- ns")
    return align(header, [_node(first, last) for first, last in pairs])


def _node(first: Sample, last: Sample) -> tuple[object, ...]:
    report = last.report
    if report is None or not report["vm"]:
        state = f"no answer: {last.error}" if report is None else "no virtual machine"
        return (last.node.name, state, *(None,) * (len(_KINDS) + 3))
    vm = report["vm"]
    faults, earlier = _faults(report), _faults(first.report)
    elapsed_s = last.at_s - first.at_s
    rates = (
        (faults[kind] - earlier[kind]) / elapsed_s if earlier and elapsed_s > 0 else None
        for kind in _KINDS
    )
    profile = vm["profile"] or {}
    left = profile.get("left")
    return (
        last.node.name,
        vm["state"],
        *rates,
        sum(faults.values()),
        f"{100 * profile['unchanged'] / left:.0f} %" if left else "-",
        vm["clock_error_ns"],
    )


def _faults(report: Mapping[str, Any] | None) -> dict[str, int]:
    """The faults of the guest's memory, by kind."""
    regions = report["regions"] if report else []
    of_guests = [region["faults"] for region in regions if region["name"].startswith("vm:")]
    return {kind: sum(faults[kind] for faults in of_guests) for kind in _KINDS} if of_guests else {}


def _sites(profiles: Sequence[tuple[str, Mapping[str, Any]]], symbols: Symbols, most: int) -> str:
    sites = [(node, site) for node, profile in profiles for site in profile["sites"]]
    sites.sort(key=lambda it: -it[1]["faults"])
    total = sum(profile["faults"] for _, profile in profiles) or 1
    rows = [
        (
            site["faults"],
            f"{100 * site['faults'] / total:.1f} %",
            node,
            site["vcpu"],
            site["kind"],
            symbols.code(site["rip"]) if site["vcpu"] is not None else "(not the guest)",
            f"{site['address']:#x}",
            symbols.page(site["address"]) or "-",
        )
        for node, site in sites[:most]
    ]
    header = ("faults", "share", "node", "vcpu", "kind", "instruction", "page", "on the page")
    return align(header, rows)


def _pages(profiles: Sequence[tuple[str, Mapping[str, Any]]], symbols: Symbols, most: int) -> str:
    moved: dict[int, list[int]] = {}
    for _, profile in profiles:
        for page in profile["pages"]:
            counts = moved.setdefault(page["address"], [0, 0])
            counts[0] += page["left"]
            counts[1] += page["unchanged"]
    hottest = sorted(moved.items(), key=lambda it: -it[1][0])[:most]
    rows = [
        (
            left,
            f"{100 * unchanged / left:.0f} %",
            f"{address:#x}",
            symbols.page(address) or "-",
        )
        for address, (left, unchanged) in hottest
    ]
    return align(("moved", "unchanged", "page", "on the page"), rows)
