"""Linux as people start it: a cluster file, and the product's own commands on each host."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from giantvm.stats import FAULT_KINDS
from giantvm.tables import align, quantity
from testbed import Host
from testbed.channel import Process
from testbed.kernel import ROOT

PYTHON: Final = sys.executable
PORT: Final = 7001
JOIN_S: Final = 120
"""How long a node waits for the others: Python takes seconds to start on a host."""
TAP: Final = "tap0"
TAP_ADDRESS: Final = "198.18.7.1"
"""Of the host, on the link to the guest."""

_TAP_UP: Final = (
    f"ip tuntap add dev {TAP} mode tap && "
    f"ip address add {TAP_ADDRESS}/24 dev {TAP} && ip link set {TAP} up"
)
_BUSYBOX: Final = "/bin/busybox"
_FILE: Final = "/tmp/vm.toml"


@dataclass(frozen=True)
class Machine:
    """What a cluster file says of a machine of Linux."""

    nodes: Sequence[tuple[str, str]]
    """The name of each node, and where it listens."""
    kernel: Path
    initrd: Path
    cmdline: str
    vcpus: Sequence[str] = ()
    """The node of each; by default, one on each node."""
    memory_mib: int = 256
    hide: Sequence[str] = ()
    tsc: str = "hosts"
    timeout_ms: int = 20_000
    devices: Sequence[str] = field(default=())
    """Tables of virtio devices."""

    def toml(self) -> str:
        """The file."""
        quoted = json.dumps
        vcpus = list(self.vcpus or [name for name, _ in self.nodes])
        # Each node gives what could be used of the whole, and a little more.
        share = f"{self.memory_mib // len(self.nodes) + 64}MiB"
        lines = [
            "[cluster]",
            'name = "linux"',
            f"heartbeat_ms = {self.timeout_ms // 20}",
            f"timeout_ms = {self.timeout_ms}",
        ]
        for name, listen in self.nodes:
            lines += ["", "[[node]]", f"name = {quoted(name)}", f"listen = {quoted(listen)}"]
            lines.append(f"memory = {quoted(share)}")
        lines += [
            *("", "[vm]", f'memory = "{self.memory_mib}MiB"', f"vcpus = {quoted(vcpus)}"),
            *(f"kernel = {quoted(str(self.kernel))}", f"initrd = {quoted(str(self.initrd))}"),
            *(f"cmdline = {quoted(self.cmdline)}", f"tsc = {quoted(self.tsc)}"),
        ]
        if self.hide:
            lines.append(f"hide = {quoted(list(self.hide))}")
        for device in self.devices:
            lines += ["", device]
        return "\n".join(lines) + "\n"


def disk(name: str, home: str, file: str, *, read_only: bool = False) -> str:
    """The table of a disk."""
    more = "\nread_only = true" if read_only else ""
    return f'[[vm.disk]]\nname = "{name}"\nhome = "{home}"\nfile = "{file}"{more}'


def net(name: str, home: str) -> str:
    """The table of a network interface on the host's tap."""
    return f'[[vm.net]]\nname = "{name}"\nhome = "{home}"\ntap = "{TAP}"'


def addresses(hosts: Sequence[Host]) -> list[tuple[str, str]]:
    """A node on each of the hosts, called like it."""
    return [(host.name, f"{host.address}:{PORT}") for host in hosts]


def start(
    hosts: Sequence[Host], machine: Machine, output: Callable[[bytes], None] | None = None
) -> list[Process]:
    """Starts the node of each host. The first one has the guest's serial port; `output` gets what
    the guest writes there, as it comes.
    """
    node = [PYTHON, "-m", "giantvm.node", "--config", _FILE, "--insecure"]
    node += ["--timeout", str(JOIN_S), "--node"]
    for host in hosts:
        host.run(["/bin/sh", "-c", f"cat >{_FILE}"], stdin=machine.toml().encode())
    nodes = [host.start([*node, host.name], cwd=ROOT) for host in hosts]
    nodes[0].on_output = output
    return nodes


def serving(directory: Path) -> str:
    """A shell's command that makes the tap, and serves a directory to the guest by HTTP."""
    return f"{_TAP_UP} && {_BUSYBOX} httpd -p {TAP_ADDRESS}:80 -h {directory}"


def serve(host: Host, directory: Path) -> None:
    """Does so on a host, which sees a directory that was there before it booted."""
    host.run(["/bin/sh", "-c", f"modprobe tun && {serving(directory)}"])


def stop(nodes: Sequence[Process]) -> None:
    """Leaves nothing running on hosts that others use as well."""
    for node in nodes:
        if node.status is None:
            node.kill()


def status(host: Host) -> dict[str, Any]:
    """What `giantvm status` says on a host: each node's status, by name."""
    command = [PYTHON, "-m", "giantvm", "status", "--config", _FILE, "--json", "--timeout", "20"]
    found: dict[str, Any] = json.loads(host.run(command, cwd=ROOT).stdout)
    return found


def table(reports: dict[str, Any]) -> str:
    """Faults of each node by kind, and its traffic."""
    header = ("node", *(f"{kind} faults" for kind in FAULT_KINDS), "sent", "received")
    rows = []
    for name, report in reports.items():
        for region in report.get("regions", ()):
            traffic = [quantity(region[key]) for key in ("bytes_sent", "bytes_received")]
            rows.append((name, *(region["faults"][kind] for kind in FAULT_KINDS), *traffic))
    return align(header, rows)
