"""Debian's kernel as one machine of two processors, on one host of the testbed and on two; with
walk-shared page tables and without, and with the second host's processor from the start.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import linux_run
from linux_guest import scheduling
from pybench.report import Row, row_of
from pybench.sampling import QUICK, Batches
from testbed import Testbed, TestbedError

ROUNDS: Final = 3
"""A boot takes half a minute to minutes."""

WORK: Final = (1_000_000, 2000, 10, 0, 0)
"""As the prototype's guest: busy loops, a shared counter, and forks, on both processors."""

SLOWER: Final = 96
"""How much slower the guest's clock runs. A fault between emulated hosts takes some 5 ms, by the
guest's clock then some 50 us, as between real hosts: as many ticks come meanwhile as there.
"""

PROTOTYPE_FAULTS: Final = 751 + 1678 + 1853
"""Read, write and upgrade faults of the prototype's node 0 until the end of the work."""

KINDS: Final = ("first_touch", "read", "write", "upgrade")


@dataclass(frozen=True)
class Machine:
    """Where the nodes are, and how they run."""

    places: Sequence[int]
    node_options: Sequence[str] = ()
    late: bool = True
    """Whether the guest's init lets the other processors in: until then, nothing is shared."""


MACHINES: Final = {
    "one host": Machine(linux_run.PLACES["one-node"]),
    "two hosts": Machine(linux_run.PLACES["two-hosts"]),
    "two hosts, not walk-shared": Machine(linux_run.PLACES["two-hosts"], ["--walk-shared=0"]),
    "two hosts, both from the start": Machine(linux_run.PLACES["two-hosts"], late=False),
}


@dataclass
class Boot:
    """What one boot showed."""

    init_s: float
    work_s: float
    faults_to_init: dict[str, int]
    """By kind, of all nodes."""
    faults_first_node: int
    """Of the first node until the end, but for first touches."""
    came_back: float
    """Of a hundred pages sent, how many came back as they went."""
    unchanged: float
    """The same with pages that were not sent, but lost their other copies to be written."""


def linux_boot(batches: Batches) -> Iterator[Row]:
    """Linux over two hosts against one: boot, and work on both processors."""
    rounds = 1 if batches == QUICK else ROUNDS
    boots: dict[str, list[Boot]] = {name: [] for name in MACHINES}
    for number in range(rounds):
        names = list(MACHINES)
        for name in names[::-1] if number % 2 else names:
            try:
                boots[name].append(boot(MACHINES[name]))
            except TestbedError as error:
                print(f"linux_boot: {name} skipped: {error}", file=sys.stderr)
                return
    floor = boots.pop("one host")
    yield row("one host, to init", "s", [it.init_s for it in floor])
    yield row("one host, work", "s", [it.work_s for it in floor])
    for name, taken in boots.items():
        yield from over_two_hosts(name, taken, floor)


def over_two_hosts(name: str, boots: Sequence[Boot], floor: Sequence[Boot]) -> Iterator[Row]:
    """What boots over two hosts took and moved, against those on one."""

    def goal(value: float) -> float | None:
        # For what is so by default.
        return value if name == "two hosts" else None

    init, work = [it.init_s for it in boots], [it.work_s for it in boots]
    one_init, one_work = [it.init_s for it in floor], [it.work_s for it in floor]
    yield row(f"{name}, to init", "s", init, floor=one_init, goal=goal(2.0))
    yield row(f"{name}, work", "s", work, floor=one_work)
    for kind in KINDS:
        counts = [it.faults_to_init[kind] for it in boots]
        yield row(f"{name}, {kind} to init", "faults", counts)
    faults = [it.faults_first_node for it in boots]
    yield row(f"{name}, node 0 in all", "faults", faults, goal=goal(PROTOTYPE_FAULTS / 2))
    came_back, unchanged = [it.came_back for it in boots], [it.unchanged for it in boots]
    yield row(f"{name}, came back unchanged", "%", came_back, goal=goal(5.0))
    yield row(f"{name}, left unchanged", "%", unchanged)


def row(
    variant: str,
    unit: str,
    samples: Sequence[float],
    floor: Sequence[float] | None = None,
    goal: float | None = None,
) -> Row:
    """A row of this benchmark; the floor is what the same takes on one host."""
    return row_of("linux_boot", variant, samples, unit=unit, floor=floor, goal=goal)


def boot(machine: Machine) -> Boot:
    """Boots new hosts, and the guest on them."""
    with tempfile.TemporaryDirectory() as work, Testbed(max(machine.places) + 1) as bed:
        linux_run.put(bed.hosts, Path(work))
        ran = linux_run.run(
            bed.hosts,
            machine.places,
            f"{scheduling(linux_run.CPUS)} HURRY=1",
            late=machine.late,
            slower=SLOWER,
            work=WORK,
            node_options=["--report-ms=500", *machine.node_options],
        )
    if not all(node.powered_off() for node in ran.nodes):
        raise TestbedError(f"the guest did not power off:\n{ran.console[-2000:]}")
    stats = [node.stats() for node in ran.nodes]
    faults = stats[0]["faults"]

    def of_sent(counter: str) -> float:
        sent = sum(it["counters"]["pages_sent"] for it in stats)
        return 100 * sum(it["counters"][counter] for it in stats) / sent if sent else 0.0

    return Boot(
        init_s=ran.times["init"],
        work_s=ran.times["done"] - ran.times["init"],
        faults_to_init={kind: sum(it["faults"][kind] for it in ran.at_init) for kind in KINDS},
        faults_first_node=sum(faults[kind] for kind in KINDS if kind != "first_touch"),
        came_back=of_sent("came_back_unchanged"),
        unchanged=of_sent("left_unchanged"),
    )
