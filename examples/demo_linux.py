"""Linux as one machine over two hosts: `make demo`.

With hardware virtualization both nodes are processes of this machine. Otherwise they are on two
emulated hosts with kernels of their own, as in the tests (docs/testbed.md). The guest shows itself,
works, and gives a shell, which is yours if this runs in a terminal.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import select
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from giantvm._terminal import ESCAPE, RawTerminal, is_foreground_terminal
from linux_guest import ext4, initramfs
from linux_machine import table
from linux_places import DISK, EmulatedHosts, Place, ThisMachine, can_run_linux
from testbed import TestbedError

LIMIT_S: Final = 280.0
"""What the session may take; five minutes are promised."""
PRIMES_BELOW: Final = 400_000
PROMPT: Final = "guest# "

_MODULES: Final = ("virtio_blk", "virtio_net")
_APPLETS: Final = (
    *("uname", "grep", "sha256sum", "umount", "ping", "wget", "setsid", "cttyhack", "nproc"),
    *("taskset", "ps", "top", "df", "free", "head", "tail", "vi", "dmesg", "rm"),
)
_FILE_BYTES: Final = 1 << 20
_DISK_BYTES: Final = 16 << 20


class Console:
    """The guest's serial port: shown as it comes, and kept."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._text = ""
        self._ended = False

    def show(self, data: bytes) -> None:
        """Takes what the guest wrote."""
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
        with self._changed:
            self._text += data.decode(errors="replace").replace("\r", "")
            self._changed.notify_all()

    def end(self) -> None:
        """Nothing more will come."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def wait_for(self, text: str, deadline: float) -> bool:
        """Waits until the guest has written `text`; false if it has not by then."""
        with self._changed:
            self._changed.wait_for(
                lambda: text in self._text or self._ended, max(deadline - time.monotonic(), 0.0)
            )
            return text in self._text

    def printed(self, command: str) -> str:
        """What the session's command that begins like that printed."""
        with self._changed:
            found = re.search(
                rf"^\$ {re.escape(command)}.*\n((?:(?!\$ |==).*\n)*)", self._text, re.MULTILINE
            )
        return found[1] if found else ""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the demonstration; 0 if all was as it must be."""
    parser = argparse.ArgumentParser(prog="make demo", description="Linux over two hosts.")
    parser.add_argument(
        "--here", action="store_true", help="two nodes on this machine, whatever its processor"
    )
    parser.add_argument("--hide", default="", help="features of the processor: see docs/linux.md")
    parser.add_argument("--options", default="", help="more for the kernel's command line")
    options = parser.parse_args(argv)
    begin = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="giantvm-demo-") as name:
        work = Path(name)
        try:
            here = options.here or can_run_linux()
            digest = _prepare(work)
            place = ThisMachine(work, options.hide) if here else EmulatedHosts(work)
            with place:
                problems = _session(place, options.options, digest, begin)
        except TestbedError as error:
            problems = [str(error)]
    took_s = time.monotonic() - begin
    for problem in problems:
        print(f"FAIL: {problem}")
    if not problems:
        print(f"PASS: Linux worked as one machine over two hosts ({took_s:.0f} s)")
    return 1 if problems else 0


def _prepare(work: Path) -> str:
    """Makes what the machine starts with; the digest of the file on its disk and on the net."""
    initramfs(work, "demo.sh", _MODULES, "primes", tools=["lscpu"], applets=_APPLETS)
    content = os.urandom(_FILE_BYTES)
    (work / "www").mkdir()
    (work / "www" / "file").write_bytes(content)
    ext4(work / DISK, _DISK_BYTES, work / "www")
    return hashlib.sha256(content).hexdigest()


def _session(place: Place, options: str, digest: str, begin: float) -> list[str]:
    """Starts the machine and sees its session through; what was wrong."""
    deadline = begin + LIMIT_S
    console = Console()
    started = time.monotonic()
    print(f"{place.describe()}\nLinux boots ...", flush=True)
    place.start(console.show, f"quiet LIMIT={PRIMES_BELOW} {options}".rstrip())
    ends = threading.Thread(target=_watch, args=(place, console), daemon=True)
    ends.start()
    for text, what in (("== Linux is up", "start its init"), (PROMPT, "end its session")):
        if not console.wait_for(text, deadline):
            return [f"Linux did not {what} within {LIMIT_S:g} s; {place.where_to_look()}"]
        if text != PROMPT:
            print(f"(init after {time.monotonic() - started:.0f} s)", end="", flush=True)
    reports = place.status()
    print(f"\n\n== what the memory did meanwhile\n{table(reports)}\n", flush=True)
    problems = [*_check(console, digest), *_check_memory(reports)]
    if not problems and is_foreground_terminal(0):
        print("All is as it must be. The shell is yours; its end, or Ctrl-], ends the machine.")
        _relay(place, ends)
    else:
        place.write(b"exit\n")
    status = place.wait(max(deadline - time.monotonic(), 30.0))
    if status != 0:
        problems.append(f"a node ended with status {status}; {place.where_to_look()}")
    if not problems and place.disk_digest("copy") != digest:
        problems.append("the disk does not hold what the guest wrote to it")
    return problems


def _watch(place: Place, console: Console) -> None:
    place.wait(None)
    console.end()


def _relay(place: Place, ends: threading.Thread) -> None:
    """Gives the keyboard to the guest until that ends, or Ctrl-]."""
    with RawTerminal(0):
        place.write(b"\n")
        while ends.is_alive():
            if not select.select([0], [], [], 0.2)[0]:
                continue
            keys = os.read(0, 4096)
            if not keys or ESCAPE in keys:
                place.stop()
                return
            place.write(keys)


def _check(console: Console, digest: str) -> list[str]:
    """What the guest should have shown, and did not."""
    lscpu, memory = console.printed("lscpu"), console.printed("grep MemTotal")
    threads = console.printed("primes")
    primes = _primes(PRIMES_BELOW)
    wanted = (
        ("lscpu shows two CPUs", r"^CPU\(s\): +2$", lscpu),
        ("lscpu shows two NUMA nodes", r"^ *NUMA node\(s\): +2$", lscpu),
        ("CPU 0 is on NUMA node 0", r"^ *NUMA node0 CPU\(s\): +0$", lscpu),
        ("CPU 1 is on NUMA node 1", r"^ *NUMA node1 CPU\(s\): +1$", lscpu),
        *(
            (f"node {node} gives memory", rf"node{node}/.*MemTotal: +[1-9]\d+ kB", memory)
            for node in range(2)
        ),
        *(
            (f"a thread ran on CPU {cpu}", rf"^thread {cpu} on CPU {cpu}, NUMA node {cpu}", threads)
            for cpu in range(2)
        ),
        ("the threads count all primes", rf": {primes} primes below {PRIMES_BELOW}$", threads),
        ("the disk gives what is on it", digest, console.printed("mount")),
        ("the disk takes a copy", digest, console.printed("cp")),
        # It waits no more than a second of the guest for the answer to its last packet.
        ("packets come back", "[34] packets received", console.printed("ping")),
        ("HTTP brings the file", digest, console.printed("wget")),
    )
    return [
        f"it is not so that {what}"
        for what, pattern, text in wanted
        if not re.search(pattern, text, re.MULTILINE)
    ]


def _check_memory(reports: dict[str, Any]) -> list[str]:
    return [
        f"node {name} does not share memory: {report.get('error', 'no faults')}"
        for name, report in reports.items()
        if not report.get("regions") or not sum(report["regions"][0]["faults"].values())
    ]


def _primes(limit: int) -> int:
    """How many there are below."""
    prime = bytearray([1]) * limit
    prime[:2] = b"\0\0"
    for factor in range(2, int(limit**0.5) + 1):
        if prime[factor]:
            prime[factor * factor :: factor] = bytes(len(range(factor * factor, limit, factor)))
    return sum(prime)


if __name__ == "__main__":
    sys.exit(main())
