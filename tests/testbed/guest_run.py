"""Runs the bare-metal guest over two nodes: on Bochs hosts, and here for comparison."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from testbed.bed import prune
from testbed.bochs import BochsHost, BochsResult
from testbed.errors import MissingError, TestbedError
from testbed.kernel import ROOT, checked, directory

TESTS: Final = ("test=smp", "test=ipi count=5")
NODES: Final = 2

Stats = dict[str, Any]
"""What the memory of a node did: `giantvm.Region.stats`."""

_GUEST_MIB: Final = 64
_BUILD_S: Final = 900.0
_HERE_S: Final = 60.0


@dataclass(frozen=True)
class Programs:
    """What runs on the hosts."""

    node: Path
    """`crates/giantvm-node/examples/vm_node`."""
    guest: Path
    """The ELF file of `guests/`."""

    def files(self) -> dict[str, Path]:
        """Under the names that the scripts use."""
        return {"vm_node": self.node, "guest.elf": self.guest}


def build() -> Programs:
    """Brings the build of both up to date."""
    for program in ("cargo", "make", "cc"):
        if shutil.which(program) is None:
            raise MissingError(f"building the guest and its host program needs {program}")
    node, guests = _build_example("vm_node"), directory().parent / "guests"
    _run_build(["make", "--silent", "-C", "guests", f"OUT={guests}"])
    return Programs(node, guests / "guest.elf")


def build_mistaken() -> Path:
    """Brings the build of the host program up to date that can be given a mistake."""
    return _build_example("vm_node_mistaken", "--features", "mutations")


def _build_example(name: str, *options: str) -> Path:
    cargo = ["cargo", "build", "--quiet", "--release", "--locked", "-p", "giantvm-node"]
    _run_build([*cargo, *options, "--example", name])
    return directory().parent / "release" / "examples" / name


def _run_build(command: Sequence[str]) -> None:
    environment = os.environ | {"CARGO_TARGET_DIR": str(directory().parent)}
    what = f"`{' '.join(command)}` failed"
    checked(command, what, cwd=ROOT, env=environment, timeout_s=_BUILD_S)


def script(nodes: Sequence[int], addresses: Sequence[str], tests: Sequence[str] = TESTS) -> str:
    """The commands that run some nodes of a guest, test after test; node 0 prints its console.

    CPU i of the guest is on node i. Each test has addresses of its own: `{test}` in them.
    """
    placement = ",".join(str(index) for index in range(len(addresses)))
    lines = ["set -e"]
    for number, test in enumerate(tests):
        cluster = ",".join(address.format(test=number) for address in addresses)
        guest = f"{placement} {_GUEST_MIB} guest.elf - {shlex.quote(test)}"
        for node in sorted(nodes, reverse=True):
            output = "&1" if node == 0 else "/dev/null"
            lines.append(f"./vm_node {node} {cluster} {guest} >{output} & node{node}=$!")
        lines += [f"wait $node{node}" for node in nodes]
    return "\n".join(lines) + "\n"


def run_here(programs: Programs, work: Path, tests: Sequence[str] = TESTS) -> str:
    """Both nodes on this machine's own /dev/kvm; what the guest printed."""
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        raise MissingError("no /dev/kvm to compare with")
    for name, file in programs.files().items():
        (work / name).symlink_to(file)
    with (work / "nodes").open("wb") as log:
        process = subprocess.Popen(
            ["/bin/sh", "-c", script(range(NODES), _sockets(), tests)],
            cwd=work,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            start_new_session=True,
        )
        try:
            output, _ = process.communicate(timeout=_HERE_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)
            output, _ = process.communicate()
            raise TestbedError(
                f"here: not done after {_HERE_S:g} s; log in {work / 'nodes'}:\n{output}"
            ) from None
    if process.returncode != 0:
        raise TestbedError(
            f"here: ended with {process.returncode}; log in {work / 'nodes'}:\n{output}"
        )
    return output


def run_on_one(
    programs: Programs, logs: Path, timeout_s: float, tests: Sequence[str] = TESTS
) -> BochsResult:
    """Both nodes on one Bochs host."""
    job = script(range(NODES), _sockets(), tests)
    with BochsHost(job, programs.files(), logs=logs) as host:
        return _checked_status(host, host.wait(timeout_s))


def latest_stats(log: str, name: str = "stats:") -> Stats:
    """What a node told last in a whole line that begins like that."""
    lines = log[: log.rfind("\n") + 1]
    line = re.compile(rf"^\[n\d+ [\d.]+\] {name} (?:\{{ .* \}} )?(\{{.*\}})$", re.MULTILINE)
    found: Stats = json.loads(line.findall(lines)[-1])
    return found


def told(output: str) -> str:
    """Of the guest's output, the lines that are to be the same on every run."""
    return "".join(f"{line}\n" for line in output.splitlines() if line and not line.startswith("#"))


def logs_directory() -> Path:
    """A new one, beside those of other hosts."""
    name = f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}-bochs"
    place = directory() / "logs" / name
    place.mkdir(parents=True)
    prune(place.parent, place)
    return place


def _sockets() -> list[str]:
    return [f"unix:./n{index}.{{test}}" for index in range(NODES)]


def _checked_status(host: BochsHost, result: BochsResult) -> BochsResult:
    if result.status != 0:
        raise TestbedError(
            f"{host.name}: the job ended with {result.status}; logs in {host.logs}:\n"
            f"{host.last_words()}"
        )
    return result
