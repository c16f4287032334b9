"""Real etcd servers of a test's own, on loopback or in a namespace."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Final

import pytest

from network import free_ports

_END_S: Final = 60.0
_CLIENT_PORT: Final = 2379
_PEER_PORT: Final = 2380


class Etcd:
    """A server, or one of several members, for a `with` block; on `host` in the network namespace
    `namespace`, if given.
    """

    def __init__(
        self, host: str | None = None, namespace: str | None = None, members: int = 1
    ) -> None:
        if shutil.which("etcd") is None:
            pytest.skip("there is no etcd: install etcd-server")
        self._directory = Path(tempfile.mkdtemp(prefix="giantvm-etcd-"))
        self._namespace = namespace
        name = host or "127.0.0.1"
        if host is None:
            ports = free_ports(2 * members)
        else:
            ports = [_CLIENT_PORT, _PEER_PORT, *range(_PEER_PORT + 1, _PEER_PORT + 2 * members - 1)]
        urls = [f"http://{name}:{port}" for port in ports]
        # Where each member listens for clients.
        self.addresses, self._peers = urls[::2], urls[1::2]
        self._servers: list[subprocess.Popen[bytes]] = []
        self.start()

    @property
    def address(self) -> str:
        """Where the first one listens for clients."""
        return self.addresses[0]

    def start(self) -> None:
        """Starts all, again if they were killed, with the data that they have."""
        self._servers = [self._start(member) for member in range(len(self.addresses))]

    def _start(self, member: int) -> subprocess.Popen[bytes]:
        inside = [] if self._namespace is None else ["nsenter", f"--net={self._namespace}"]
        client, peer = self.addresses[member], self._peers[member]
        initial = ",".join(f"m{index}={url}" for index, url in enumerate(self._peers))
        with (self._directory / f"log{member}").open("ab") as log:
            return subprocess.Popen(
                [
                    *inside,
                    "etcd",
                    f"--name=m{member}",
                    f"--data-dir={self._directory}/data{member}",
                    f"--listen-client-urls={client}",
                    f"--advertise-client-urls={client}",
                    f"--listen-peer-urls={peer}",
                    f"--initial-advertise-peer-urls={peer}",
                    f"--initial-cluster={initial}",
                ],
                stdout=log,
                stderr=log,
            )

    def kill(self, *members: int) -> None:
        """Ends these at once; all without a number."""
        for member in members or range(len(self._servers)):
            self._servers[member].kill()
            self._servers[member].wait(_END_S)

    def __enter__(self) -> Etcd:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.kill()
        shutil.rmtree(self._directory, ignore_errors=True)
