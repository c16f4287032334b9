"""A node is lost while a guest runs: all others end in time and say why, and nobody stays.

In each guest once by each way, at a moment and with a victim that the seed decides. Times are those
that the nodes log.
"""

from __future__ import annotations

import os
import random
import re
import signal
import time
from pathlib import Path
from typing import Final, Literal

import pytest

from guest_nodes import EXIT_LOST, GuestRun, Happening, built
from network import Network
from testbed.guest_run import Programs

TIMEOUT_MS: Final = 2000
PLACES: Final = [0, 1, 2]
GUESTS: Final = {
    "smp": "rounds=100000",
    "ipi": "count=1000000",
    # A million take a fifth of a second where the processors happen to take turns.
    "locks": "count=50000000",
    "io": "count=1000000",
    "litmus": "count=1000000",
    "level": "count=1000000 exact=0",
    "msi": "count=1000000",
    "tsc": "count=1000000",
    "hotplug": "rounds=1000000",
    "reset": "ways=255",
    "matrix": "rounds=1000000",
    "sort": "rounds=1000000",
    "many": "count=1000000",
    "pages": "rounds=1000000",
}
"""Guests, each for longer than the test."""

Way = Literal["kill", "stop", "cut"]

SILENT: Final = rf"(the deciding node `n0` didn't hear it|.* not heard) for {TIMEOUT_MS} ms"


@pytest.fixture(scope="module")
def programs() -> Programs:
    return built()


def only(happenings: list[Happening], pattern: str, run: GuestRun) -> Happening:
    """The one line that matches."""
    found = [it for it in happenings if re.search(pattern, it.text)]
    assert len(found) == 1, f"{len(found)} lines with {pattern!r}\n{run.logs()}"
    return found[0]


def ends_as_stated(run: GuestRun, node: int, losable: str) -> tuple[Happening, Happening]:
    """It ends with the stated status, and names who is lost and why.

    Returns when it learned of it, and when its part of the machine had ended.
    """
    assert run.wait(node) == EXIT_LOST, run.logs()
    lines = run.happenings(node)
    lost = only(lines, r"^ERROR: lost node ", run)
    named = re.fullmatch(rf"ERROR: lost node ({losable}): (.+)", lost.text)
    assert named is not None, f"{lost.text}\n{run.logs()}"
    if loader_touched_lost_memory(run, node, named[1], named[2]):
        return lost, lost
    ended = only(lines, r"^ended: ", run)
    assert ended.text == f'ended: Lost {{ reason: "node {named[1]} is lost: {named[2]}" }}'
    return lost, ended


def loader_touched_lost_memory(run: GuestRun, node: int, name: str, reason: str) -> bool:
    """Whether a node ended while it loaded the guest anew, as who touches lost memory does.

    At a reset a thread of the node writes the guest's memory.
    """
    last = run.log(node).splitlines()[-1]
    found = re.match(r'giantvm: region "vm:example" offset 0x[0-9a-f]+: lost with node ', last)
    assert found is None or f"{name} ({reason})" in last, run.logs()
    return found is not None and "reset: boot=0" in run.console()


def processes_of(directory: Path) -> list[str]:
    """Processes with this directory in their arguments."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and entry.name != str(os.getpid()):
            try:
                words = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if str(directory).encode() in words:
                found.append(f"{entry.name}: {words!r}")
    return found


def lose(run: GuestRun, way: Way, victim: int, network: Network | None) -> float:
    if way == "kill":
        return run.signal(victim, signal.SIGKILL)
    if way == "stop":
        return run.signal(victim, signal.SIGSTOP)
    assert network is not None
    now = time.monotonic()
    network.cut(victim)
    return now


def others_end(run: GuestRun, way: Way, victim: int, lost_s: float) -> None:
    timeout_s = TIMEOUT_MS / 1000
    for node in range(run.count):
        if node == victim:
            continue
        # Whom the first node doesn't hear any more, it names; without it, the others name it.
        learned, ended = ends_as_stated(run, node, f"n{victim}")
        assert ended.at_s - learned.at_s < timeout_s, run.logs()
        if way == "kill":
            assert ended.at_s - lost_s < timeout_s, run.logs()
        else:
            # Silence counts from the last word, which came before.
            assert learned.at_s - lost_s < timeout_s * 1.5, run.logs()


def lose_one(programs: Programs, guest: str, way: Way, seed: int, network: Network | None) -> None:
    chance = random.Random(seed)
    victim, moment_s = chance.randrange(len(PLACES)), chance.random() * 0.5
    print(f"seed {seed}: node {victim}, {moment_s:.3f} s after the guest began")
    with GuestRun(
        programs, PLACES, f"test={guest} {GUESTS[guest]}", timeout_ms=TIMEOUT_MS, network=network
    ) as run:
        run.wait_for_console("# guest:")
        time.sleep(moment_s)
        lost_s = lose(run, way, victim, network)
        others_end(run, way, victim, lost_s)
        if way == "kill":
            assert run.wait(victim) == -signal.SIGKILL
        else:
            if way == "stop":
                run.signal(victim, signal.SIGCONT)
            # It finds out by itself that it is out, by its clock or by the others' silence.
            ends_as_stated(run, victim, r"n\d")
        assert processes_of(run.directory) == []


@pytest.mark.parametrize("way", ["kill", "stop"])
@pytest.mark.parametrize("guest", GUESTS)
def test_node_lost(programs: Programs, guest: str, way: Way) -> None:
    lose_one(programs, guest, way, seed_of(guest, way), None)


@pytest.mark.parametrize("guest", GUESTS)
def test_node_cut_off(programs: Programs, guest: str, network: Network) -> None:
    seed = seed_of(guest, "cut")
    try:
        lose_one(programs, guest, "cut", seed, network)
    finally:
        for node in range(len(PLACES)):
            network.mend(node)


def seed_of(guest: str, way: Way, more: int = 0) -> int:
    """A number that says where to go on from."""
    return more * 1000 + list(GUESTS).index(guest) * 10 + ["kill", "stop", "cut"].index(way)


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("more", range(1, 11))
def test_many_losses(programs: Programs, network: Network, more: int) -> None:
    """With other moments and victims."""
    for guest in GUESTS:
        for way in ("kill", "stop", "cut"):
            try:
                over = network if way == "cut" else None
                lose_one(programs, guest, way, seed_of(guest, way, more), over)
            finally:
                for node in range(len(PLACES)):
                    network.mend(node)
