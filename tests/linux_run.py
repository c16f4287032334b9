"""Runs Debian's kernel as one machine of two or three CPUs over hosts of the testbed.

`python -m linux_run` prints the table of docs/linux.md.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from linux_guest import (
    HIDE,
    LATE,
    PATIENCE_S,
    SLOWER,
    checksum,
    command_line,
    image,
    initramfs,
    scheduling,
)
from linux_machine import stop
from testbed import GUEST_PACKAGE, Host, Testbed, TestbedError
from testbed.guest_run import Stats, build, latest_stats

CPUS: Final = 2

WORK: Final = (1_000_000, 1000, 5, 20, 144 << 10)
"""Loops, increments, forks and turns of the token for each CPU, and bytes for all."""

PLACES: Final = {
    "one-node": (0,),
    "one-host": (0, 0),
    "two-hosts": (0, 1),
    "three-hosts": (0, 1, 2),
}
"""The host of each node. CPUs are placed on nodes in turn, one at least on each."""

BAD: Final = re.compile(r".*(unstable|soft lockup|detected stall|Kernel panic|BUG:|Oops|FAILED).*")
"""Lines that a guest's console must not have."""

MEMORY_MIB: Final = 192
_PORT: Final = 7300


@dataclass
class Node:
    """How a node did."""

    status: int
    stderr: str

    def stats(self) -> Stats:
        """What its memory did, as it told at its end."""
        return latest_stats(self.stderr)

    def powered_off(self) -> bool:
        """Whether its machine ended as the guest wished."""
        ended = re.search(r"^\[n\d+ [\d.]+\] ended: PowerOff$", self.stderr, re.MULTILINE)
        return self.status == 0 and ended is not None


@dataclass
class Run:
    """What came of a guest."""

    console: str
    nodes: list[Node]
    times: dict[str, float] = field(default_factory=dict)
    """Seconds from the start of the nodes until the console said `init` and `done`."""
    at_init: list[Stats] = field(default_factory=list)
    """What the memory of each node had done at `init`, or up to a report before."""


def put(
    hosts: Sequence[Host],
    work: Path,
    script: str = "init",
    modules: Sequence[str] = (),
    package: str = GUEST_PACKAGE,
) -> None:
    """Brings a Debian package's kernel, its initramfs and the node's program to the hosts."""
    packed = initramfs(work, script, modules, "worker", package=package)
    files = [image(work, package), packed, build().node]
    for host in hosts:
        for source in files:
            host.copy_in(source, f"/tmp/{source.name}")


def run(
    hosts: Sequence[Host],
    places: Sequence[int],
    options: str | None = None,
    *,
    late: bool = False,
    slower: int = SLOWER,
    work: Sequence[int] = WORK,
    node_options: Sequence[str] = (),
) -> Run:
    """Starts a node on each of the places, and waits until the guest has switched off.

    `options` are for the guest's kernel, by default `scheduling`; `late` has its init let the other
    processors in, see `LATE`; its clock is `slower` than the hosts'; `work` is what it does, see
    `WORK`; `node_options` are for `vm_node`.
    """
    count = cpus_of(places)
    options = scheduling(count) if options is None else options
    options = f"{options} {LATE}" if late else options
    if len(set(places)) == 1:
        addresses = [f"unix:/tmp/linux-n{index}" for index in range(len(places))]
    else:
        addresses = [f"{hosts[place].address}:{_PORT}" for place in places]
    cpus = ",".join(str(cpu % len(places)) for cpu in range(count))
    words = command_line(hosts[0], "nokaslr", options, worker(count, work), slower=slower)
    start = time.monotonic()
    nodes = [
        hosts[place].start(
            [
                *("/tmp/vm_node", str(index), ",".join(addresses), cpus, str(MEMORY_MIB)),
                *("/tmp/image", "/tmp/guest.cpio", words, HIDE, "--tsc=shared"),
                *node_options,
            ]
        )
        for index, place in enumerate(places)
    ]
    times: dict[str, float] = {}
    at_init: list[Stats] = []
    try:
        for name, text in (("init", "init: kernel"), ("done", "init: done")):
            nodes[0].wait_for(text, PATIENCE_S)
            times[name] = time.monotonic() - start
            at_init = at_init or [latest_stats(node.stderr, "VmReport") for node in nodes]
        ended = [node.wait(PATIENCE_S) for node in nodes]
    finally:
        stop(nodes)
    done = [Node(node.status, node.stderr) for node in ended]
    return Run(ended[0].stdout, done, times, at_init)


def worker(cpus: int, work: Sequence[int] = WORK) -> str:
    """A word for the kernel's command line: what so many processors do."""
    return f"WORK={','.join(map(str, (cpus, *work)))}"


def cpus_of(places: Sequence[int]) -> int:
    """How many processors a machine on these places has."""
    return max(CPUS, len(places))


def check_console(console: str, cpus: int) -> None:
    """Each processor did its part of `WORK`, and Linux had nothing to complain about."""
    said = [line.strip() for line in console.splitlines()]
    loops, increments, forks, turns, size = WORK
    for line in (
        f"init: cpus 0-{cpus - 1}",
        *(f"busy: cpu={cpu} loops={loops}" for cpu in range(cpus)),
        f"count: counter={cpus * increments}",
        f"forks: cpus={cpus} each={forks}",
        f"tokens: turns={cpus * turns}",
        *(
            f"checksum: cpu={cpu} bytes={size} sum={checksum(cpus, size):016x}"
            for cpu in range(cpus)
        ),
        "init: the worker is content",
        "init: power off",
    ):
        assert line in said, f"{line!r} is not in:\n{console[-8000:]}"
    # Not tsc-early: with that, idle processors have ticks, and timers no high resolution.
    clocks = [line for line in said if line.startswith("init: clocksource ")]
    assert clocks[-1] == "init: clocksource tsc", clocks
    assert not [line for line in said if BAD.fullmatch(line)]
    for cpu in range(1, cpus):
        assert re.search(rf"node +#{cpu}, CPUs: +#{cpu}", console), f"no NUMA node of CPU {cpu}"


def row(name: str, index: int, ran: Run) -> str:
    """One node's row of the table."""
    told = ran.nodes[index].stats()
    faults, counters = told["faults"], told["counters"]
    sent, unchanged = counters["pages_sent"], counters["came_back_unchanged"]
    cells = (
        *(name, f"n{index}", f"{ran.times['init']:.0f}", f"{ran.times['done']:.0f}"),
        *(faults["first_touch"], faults["read"], faults["write"], faults["upgrade"]),
        *(sent, counters["sent_without_data"], unchanged),
    )
    return "| " + " | ".join(str(cell) for cell in cells) + " |"


HEADER: Final = (
    "| machine | node | init after (s) | done after (s) | first touch | read | write | upgrade "
    "| pages sent | of these without data | came back unchanged |\n"
    "|---|---|---|---|---|---|---|---|---|---|---|"
)


def amounts(text: str) -> tuple[int, ...]:
    """As `WORK`, from the command line."""
    words = text.split(",")
    if len(words) != len(WORK) or not all(word.isdecimal() for word in words):
        raise argparse.ArgumentTypeError(f"{text!r} is not {len(WORK)} numbers with commas")
    return tuple(int(word) for word in words)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the machines that are asked for, each on new hosts; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m linux_run", description=__doc__)
    parser.add_argument("machines", nargs="*", help=f"of {', '.join(PLACES)}; all by default")
    parser.add_argument("--options", help="for the guest's kernel, instead of isolcpus= and such")
    late = "the other processors come in when the guest's init lets them"
    parser.add_argument("--late", action="store_true", help=late)
    slower = f"how much slower than the hosts' the guest's clock runs; {SLOWER} by default"
    parser.add_argument("--slower", type=int, default=SLOWER, metavar="TIMES", help=slower)
    numbers = ",".join(map(str, WORK))
    work = f"what the guest does, see WORK; {numbers} by default"
    parser.add_argument("--work", type=amounts, default=numbers, metavar="NUMBERS", help=work)
    parser.add_argument("--kernel", default=GUEST_PACKAGE, help="the Debian package of the guest's")
    parser.add_argument("--walk-shared", choices=("0", "1"), help="page tables are; else as found")
    options = parser.parse_args(argv)
    names = options.machines or list(PLACES)
    if unknown := [name for name in names if name not in PLACES]:
        parser.error(f"{', '.join(unknown)}: known are {', '.join(PLACES)}")
    shared = options.walk_shared
    node_options = [] if shared is None else [f"--walk-shared={shared}"]
    print(HEADER, flush=True)
    for name in names:
        places = PLACES[name]
        try:
            with tempfile.TemporaryDirectory() as files, Testbed(max(places) + 1) as bed:
                put(bed.hosts, Path(files), package=options.kernel)
                ran = run(
                    bed.hosts,
                    places,
                    options.options,
                    late=options.late,
                    slower=options.slower,
                    work=options.work,
                    node_options=node_options,
                )
        except TestbedError as error:
            print(f"{name}: {error}", file=sys.stderr)
            return 1
        if not all(node.powered_off() for node in ran.nodes):
            print(f"{name} did not end as it should:\n{ran.console[-4000:]}", file=sys.stderr)
            return 1
        for index in range(len(places)):
            print(row(name, index, ran), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
