"""Where a machine of Linux over two nodes can run: on this machine, or on emulated hosts."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any, Final, Self

import giantvm.status
from giantvm.config import Config
from linux_guest import CMDLINE, HIDE, LATE, SCHEDULING, command_line
from linux_machine import (
    Machine,
    addresses,
    disk,
    net,
    serve,
    serving,
    start,
    status,
    stop,
)
from testbed import GUEST_PACKAGE, Testbed, kernel
from testbed.channel import Process
from testbed.kernel import ROOT, checked

DISK: Final = "disk"
"""The file of the guest's disk, in the directory of a place."""

Output = Callable[[bytes], None]


def can_run_linux() -> bool:
    """Whether KVM of this machine is one of the processor's own: others lack instructions that
    Linux needs.
    """
    features = Path("/proc/cpuinfo").read_text().partition("\nflags")[2].partition("\n")[0].split()
    return bool({"vmx", "svm"} & set(features)) and os.access("/dev/kvm", os.R_OK | os.W_OK)


class Place(ExitStack, ABC):
    """Two nodes with a guest, for a `with` block. The first one has its processor 0, its serial
    port and its network; the second its processor 1 and its disk.
    """

    def __init__(self, work: Path) -> None:
        super().__init__()
        self._work = work

    @abstractmethod
    def describe(self) -> str:
        """What this is, for people."""

    @abstractmethod
    def where_to_look(self) -> str:
        """Where more is to be found out if it fails."""

    @abstractmethod
    def start(self, output: Output, options: str) -> None:
        """Starts the machine, with more for its command line; `output` gets what it writes."""

    @abstractmethod
    def write(self, data: bytes) -> None:
        """Input for the guest."""

    @abstractmethod
    def stop(self) -> None:
        """Ends the machine in good order."""

    @abstractmethod
    def wait(self, timeout_s: float | None) -> int:
        """Waits for its end; the largest exit status of its processes."""

    @abstractmethod
    def status(self) -> dict[str, Any]:
        """Each node's status, by name."""

    @abstractmethod
    def disk_digest(self, name: str) -> str:
        """The SHA-256 of a file on the disk, when the machine has ended."""


class EmulatedHosts(Place):
    """Two hosts of the testbed."""

    def __init__(self, work: Path) -> None:
        super().__init__(work)
        self._bed = Testbed(2)
        self._nodes: list[Process] = []

    def describe(self) -> str:
        hosts = self._bed.hosts
        names = ", ".join(f"{host.name} ({host.address}, Linux {host.kernel})" for host in hosts)
        return (
            "No hardware virtualization here: the hosts are emulated, and slow.\n"
            f"{names}: up in {self._bed.boot_s:.0f} s"
        )

    def where_to_look(self) -> str:
        told = "".join(f"\n{node.stderr[-1000:]}" for node in self._nodes)
        return f"logs: {self._bed.logs}{told}"

    def start(self, output: Output, options: str) -> None:
        first, second = self._bed.hosts
        serve(first, self._work / "www")
        # What the guest writes must not depend on the host's view of a file of this machine.
        second.run(["/bin/cp", self._work / DISK, f"/tmp/{DISK}"])
        machine = Machine(
            addresses(self._bed.hosts),
            kernel(GUEST_PACKAGE).image,
            self._work / "guest.cpio",
            command_line(first, SCHEDULING, LATE, options),
            hide=HIDE.split(),
            # Both hosts count this machine's time.
            tsc="shared",
            devices=[net("net", first.name), disk(DISK, second.name, f"/tmp/{DISK}")],
        )
        self._nodes = start(self._bed.hosts, machine, output)

    def write(self, data: bytes) -> None:
        self._nodes[0].write(data)

    def stop(self) -> None:
        self._nodes[0].signal(signal.SIGTERM)

    def wait(self, timeout_s: float | None) -> int:
        patience_s = threading.TIMEOUT_MAX if timeout_s is None else timeout_s
        return max(abs(node.wait(patience_s).status) for node in self._nodes)

    def status(self) -> dict[str, Any]:
        return status(self._bed.hosts[0])

    def disk_digest(self, name: str) -> str:
        return (
            self._bed.hosts[1].run(["/bin/sh", "-c", _digest(name, f"/tmp/{DISK}")]).stdout.strip()
        )

    def __enter__(self) -> Self:
        print("Two emulated hosts boot ...", flush=True)
        self.enter_context(self._bed)
        self.callback(lambda: stop(self._nodes))
        return super().__enter__()


class ThisMachine(Place):
    """Two nodes by `giantvm run`, in a network namespace of their own."""

    def __init__(self, work: Path, hide: str = "") -> None:
        super().__init__(work)
        self._hide = hide.split()
        self._file = work / "vm.toml"
        self._process: subprocess.Popen[bytes] | None = None

    def describe(self) -> str:
        return "Two nodes on this machine: python -m giantvm run vm.toml"

    def where_to_look(self) -> str:
        return "what the nodes said is above"

    def start(self, output: Output, options: str) -> None:
        places = [(name, f"unix:{self._work}/{name}.sock") for name in ("a", "b")]
        machine = Machine(
            places,
            kernel(GUEST_PACKAGE).image,
            self._work / "guest.cpio",
            f"{CMDLINE} {SCHEDULING} {options}",
            hide=self._hide,
            devices=[net("net", "a"), disk(DISK, "b", str(self._work / DISK))],
        )
        self._file.write_text(machine.toml())
        script = f'ip link set lo up && {serving(self._work / "www")} && exec "$@"'
        # The namespace of processes ends all of them with the first.
        space = ["unshare", "--net", "--pid", "--fork", "--kill-child"]
        space += [] if os.geteuid() == 0 else ["--map-root-user"]
        command = [*space, "/bin/sh", "-c", script, "sh"]
        command += [sys.executable, "-m", "giantvm", "run", str(self._file)]
        self._process = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
        )
        self.enter_context(self._process)
        # Of one that has ended, nothing is left to kill.
        self.callback(self._process.kill)
        assert self._process.stdout is not None
        copies = threading.Thread(target=_copy, args=(self._process.stdout, output), daemon=True)
        copies.start()

    def write(self, data: bytes) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.write(data)

    def stop(self) -> None:
        # The command's own process is the first of its namespace, and has no number here.
        assert self._process is not None
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children")
        for child in children.read_text().split():
            os.kill(int(child), signal.SIGTERM)

    def wait(self, timeout_s: float | None) -> int:
        assert self._process is not None
        status = self._process.wait(timeout_s)
        # A signal asked for the end.
        return 0 if status == 128 + signal.SIGTERM else status

    def status(self) -> dict[str, Any]:
        samples = giantvm.status.query(Config.load(self._file), 20.0)
        return {it.node.name: it.report or {"error": it.error} for it in samples}

    def disk_digest(self, name: str) -> str:
        return checked(["/bin/sh", "-c", _digest(name, str(self._work / DISK))], "no disk").strip()


def _copy(source: IO[bytes], output: Output) -> None:
    while data := source.read(4096):
        output(data)


def _digest(name: str, disk: str) -> str:
    """A command that prints the SHA-256 of a file in an ext4 image."""
    sum_of = f"/sbin/debugfs -R 'cat /{name}' {disk} 2>/dev/null | sha256sum"
    return f"{sum_of} | cut -d ' ' -f 1"
