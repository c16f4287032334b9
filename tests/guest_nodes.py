"""The bare-metal guest over nodes that are processes of `vm_node`, here or in network namespaces.

    with GuestRun(programs, [0, 1, 1], "test=locks") as run:
        assert run.passed() == ...

A node logs what happens with the time of the clock that all processes of a machine share.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final

import numpy as np
import numpy.typing as npt
import pytest

from network import Network
from residency import resident
from testbed import MissingError
from testbed.guest_run import Programs, Stats, build, latest_stats, told

EXIT_LOST: Final = 86
PORT: Final = 7001
"""Where each node of a `Network` listens."""
GUEST_MIB: Final = 64
GUEST_S: Final = 300.0
"""Far more than any guest takes."""
_LOOK_S: Final = 0.01
_EVENT: Final = re.compile(r"\[n(\d+) (\d+\.\d+)\] (.*)")


def built() -> Programs:
    """Guest and host program, brought up to date; skips where guests can't run."""
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        pytest.skip("this machine has no /dev/kvm")
    try:
        return build()
    except MissingError as error:
        pytest.skip(str(error))


@dataclass(frozen=True)
class Happening:
    """A line of a node's log."""

    node: int
    at_s: float
    text: str


class GuestRun:
    """All nodes of one guest; those that still run are killed at the end of the block."""

    def __init__(
        self,
        programs: Programs,
        places: Sequence[int],
        test: str,
        *,
        nodes: int | None = None,
        timeout_ms: int = 10_000,
        network: Network | None = None,
        ram_mib: int = GUEST_MIB,
        share_mib: int | None = None,
        options: Sequence[str] = (),
    ) -> None:
        """CPU i of the guest is on node `places[i]`; the test device is on the last node.

        `share_mib` is what each node gives of its memory; far more than the guest has without.
        """
        self.directory = Path(tempfile.mkdtemp(prefix="gvm-guest-"))
        self.count = nodes or max(places) + 1
        self.result = self.directory / "result"
        addresses = [
            f"unix:{self.directory}/n{index}"
            if network is None
            else f"{network.address(index)}:{PORT}"
            for index in range(self.count)
        ]
        self._processes: list[subprocess.Popen[bytes]] = []
        for index in range(self.count):
            inside = [] if network is None else ["nsenter", f"--net={network.namespace(index)}"]
            command = [
                *inside,
                str(programs.node),
                *(str(index), ",".join(addresses), ",".join(map(str, places)), str(ram_mib)),
                *(str(programs.guest), "-", test),
                f"--device={self.count - 1}",
                f"--result={self.result}",
                f"--heartbeat-ms={timeout_ms // 10}",
                f"--timeout-ms={timeout_ms}",
                *([] if share_mib is None else [f"--share-mib={share_mib}"]),
                *options,
            ]
            with self._console(index).open("wb") as out, self._log(index).open("wb") as log:
                process = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=out, stderr=log
                )
            self._processes.append(process)

    def _console(self, node: int) -> Path:
        return self.directory / f"console{node}"

    def _log(self, node: int) -> Path:
        return self.directory / f"log{node}"

    def console(self) -> str:
        """What the guest has written so far."""
        return self._console(0).read_text(errors="replace")

    def log(self, node: int) -> str:
        """What a node has logged so far."""
        return self._log(node).read_text(errors="replace")

    def logs(self) -> str:
        """All of it, for failures."""
        ends = [process.poll() for process in self._processes]
        texts = [f"== log of node {node}\n{self.log(node)[-6000:]}" for node in range(self.count)]
        return "\n".join([f"statuses {ends}", "== console", self.console()[-4000:], *texts])

    def happenings(self, node: int) -> list[Happening]:
        """A node's log, line by line."""
        found = (_EVENT.fullmatch(line) for line in self.log(node).splitlines())
        return [Happening(int(it[1]), float(it[2]), it[3]) for it in found if it]

    def ended(self, node: int) -> bool:
        """Whether the node's process has ended."""
        return self._processes[node].poll() is not None

    def resident(self, node: int) -> int:
        """Bytes of memory that the guest's RAM takes at a node; 0 where there is none."""
        return resident("vm:", self._processes[node].pid) or 0

    def stats(self, node: int) -> Stats:
        """What the memory of a node that has ended did."""
        return latest_stats(self.log(node))

    def signal(self, node: int, number: signal.Signals) -> float:
        """Sends it to a node; when, by the clock of the logs."""
        now = time.monotonic()
        self._processes[node].send_signal(number)
        return now

    def wait(self, node: int, timeout_s: float = GUEST_S) -> int:
        """The exit status of a node."""
        try:
            return self._processes[node].wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"node {node} does not end\n{self.logs()}") from None

    def wait_for_console(self, text: str, timeout_s: float = GUEST_S) -> None:
        """Waits until the guest has written it."""
        until = time.monotonic() + timeout_s
        while text not in self.console():
            if self._processes[0].poll() is not None or time.monotonic() > until:
                raise AssertionError(f"the guest does not write {text!r}\n{self.logs()}")
            time.sleep(_LOOK_S)

    def passed(self) -> str:
        """Waits for the end; of the guest's lines, those that are the same on every run."""
        statuses = [self.wait(node) for node in range(self.count)]
        assert statuses == [0] * self.count, self.logs()
        assert "result=passed" in self.console(), self.logs()
        return told(self.console())

    def marks(self, node: int) -> list[str]:
        """The memory's statistics at each mark of the guest."""
        lines = (it.text for it in self.happenings(node))
        return [text.partition(": ")[2] for text in lines if text.startswith("mark ")]

    def __enter__(self) -> GuestRun:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for process in self._processes:
            with contextlib.suppress(OSError):
                process.kill()
            process.wait()
        shutil.rmtree(self.directory, ignore_errors=True)


def random_words(seed: int, first: int, count: int) -> npt.NDArray[np.uint64]:
    """`random_at(seed, first)` and those that follow, as guests/lib/random.h makes them."""
    with np.errstate(over="ignore"):
        at = np.arange(first + 1, first + count + 1, dtype=np.uint64)
        z = np.uint64(seed) + at * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ z >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ z >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
        return z ^ z >> np.uint64(31)
