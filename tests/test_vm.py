"""Guests over one, two and three nodes, each a process, with devices in Python."""

from __future__ import annotations

import pytest

pytest.importorskip("giantvm._native", reason="the native module is not built")

from vm_cluster import VmCluster, places, spec


def both(nodes: int, cmdline: str) -> list[str]:
    """What the guest says that does not vary, over so many nodes."""
    vm = spec(places(nodes), cmdline)
    with VmCluster(nodes, vm) as machine:
        outcomes = machine.run()
        said = machine.said()
    assert outcomes == [("debug-exit", 1)] * nodes, said
    return [line for line in said.splitlines() if not line.startswith("#")]


GUESTS = [
    "test=smp",
    "test=ipi count=20",
    "test=locks count=100",
    "test=io count=20",
    "test=msi count=20",
    "test=dma count=10",
    "test=tsc count=500",
    "test=hotplug rounds=2",
    "test=reset",
    "test=timer count=5",
]


@pytest.mark.parametrize("cmdline", GUESTS)
def test_a_guest_says_the_same_over_one_two_and_three_nodes(cmdline: str) -> None:
    one = both(1, cmdline)
    assert both(2, cmdline) == one
    assert both(3, cmdline) == one
