"""Machines of a test's own: network namespaces, each with an address, joined by a bridge.

Nothing of it is to be seen outside, and nothing is left: a namespace lives as long as the process
that holds it, which ends when its standard input does.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import socket
import subprocess
from types import TracebackType
from typing import Final

import pytest

_CLONE_NEWNET: Final = 0x40000000
_COMMAND_S: Final = 30.0


class Network:
    """`count` namespaces whose links can be cut, for a `with` block."""

    def __init__(self, count: int) -> None:
        _skip_without_namespaces()
        self._holders = [_hold() for _ in range(count + 1)]
        try:
            for holder in self._holders:
                # It answers once it is in its namespace.
                holder.stdin.write(b"\n")  # type: ignore[union-attr]
                holder.stdin.flush()  # type: ignore[union-attr]
                assert holder.stdout is not None
                assert holder.stdout.read(1) == b"\n", "a namespace can't be made"
            self._connect(count)
        except BaseException:
            self.close()
            raise

    def _connect(self, count: int) -> None:
        self._ip(0, "link add hub type bridge", "link set hub up")
        for index in range(count):
            holder = self._holders[index + 1]
            self._ip(
                0,
                f"link add port{index} type veth peer name net netns {holder.pid}",
                f"link set port{index} master hub",
                f"link set port{index} up",
            )
            self._ip(
                index + 1,
                "link set lo up",
                f"address add {self.address(index)}/24 dev net",
                "link set net up",
            )

    def address(self, index: int) -> str:
        """The IP address in a namespace."""
        return f"10.213.0.{index + 1}"

    def namespace(self, index: int) -> str:
        """The file of a namespace, for `enter`."""
        return f"/proc/{self._holders[index + 1].pid}/ns/net"

    def cut(self, index: int) -> None:
        """Pulls the cable: nothing gets in or out, and nobody is told."""
        self._ip(0, f"link set port{index} nomaster")

    def mend(self, index: int) -> None:
        """Plugs it in again."""
        self._ip(0, f"link set port{index} master hub")

    def hide(self, index: int, other: int) -> None:
        """Takes from a machine its way to another one: what it sends there is lost."""
        self._ip(index + 1, f"route add blackhole {self.address(other)}/32")

    def show(self, index: int, other: int) -> None:
        """Gives it back."""
        self._ip(index + 1, f"route del blackhole {self.address(other)}/32")

    def _ip(self, holder: int, *commands: str) -> None:
        done = subprocess.run(
            ["nsenter", "-t", str(self._holders[holder].pid), "-n", "ip", "-batch", "-"],
            input="\n".join(commands),
            capture_output=True,
            text=True,
            timeout=_COMMAND_S,
            check=False,
        )
        assert done.returncode == 0, f"{commands}: {done.stderr}"

    def close(self) -> None:
        """Ends the namespaces, and with them all that is in them."""
        for holder in self._holders:
            for pipe in (holder.stdin, holder.stdout):
                if pipe is not None:
                    with contextlib.suppress(OSError):
                        pipe.close()
        for holder in self._holders:
            holder.wait(_COMMAND_S)

    def __enter__(self) -> Network:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def enter(namespace: str) -> None:
    """Moves this thread, and threads that it starts, into a namespace."""
    library = ctypes.CDLL(None, use_errno=True)
    descriptor = os.open(namespace, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if library.setns(descriptor, _CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), f"setns {namespace}")
    finally:
        os.close(descriptor)


def _hold() -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        ["unshare", "--net", "cat"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        bufsize=0,
    )


def free_ports(count: int) -> list[int]:
    """Ports of this machine's loopback that nobody listens on."""
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]


def _skip_without_namespaces() -> None:
    for program in ("ip", "nsenter", "unshare"):
        if shutil.which(program) is None:
            pytest.skip(f"cutting off a node needs `{program}`")
    tried = "link add hub type bridge\nlink add port type veth peer name net\n"
    done = subprocess.run(
        ["unshare", "--net", "ip", "-batch", "-"],
        input=tried,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        pytest.skip(f"cutting off a node needs network namespaces: {done.stderr.strip()}")
