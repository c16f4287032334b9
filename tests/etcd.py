"""A real etcd server of a test's own, on loopback or in a namespace."""

from __future__ import annotations

import shutil
import socket
import subprocess
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Final

import pytest

_END_S: Final = 60.0
_CLIENT_PORT: Final = 2379
_PEER_PORT: Final = 2380


class Etcd:
    """A server, for a `with` block; on `host` in the network namespace `namespace`, if given."""

    def __init__(self, host: str | None = None, namespace: str | None = None) -> None:
        if shutil.which("etcd") is None:
            pytest.skip("there is no etcd: install etcd-server")
        self._directory = Path(tempfile.mkdtemp(prefix="giantvm-etcd-"))
        self._namespace = namespace
        if host is None:
            client, peer = _free_port(), _free_port()
        else:
            client, peer = _CLIENT_PORT, _PEER_PORT
        self.address = f"http://{host or '127.0.0.1'}:{client}"
        self._peer = f"http://{host or '127.0.0.1'}:{peer}"
        self.start()

    def start(self) -> None:
        """Starts it, again if it was killed, with the data that it has."""
        inside = [] if self._namespace is None else ["nsenter", f"--net={self._namespace}"]
        with (self._directory / "log").open("ab") as log:
            self._server = subprocess.Popen(
                [
                    *inside,
                    "etcd",
                    f"--data-dir={self._directory}/data",
                    f"--listen-client-urls={self.address}",
                    f"--advertise-client-urls={self.address}",
                    f"--listen-peer-urls={self._peer}",
                    f"--initial-advertise-peer-urls={self._peer}",
                    f"--initial-cluster=default={self._peer}",
                ],
                stdout=log,
                stderr=log,
            )

    def kill(self) -> None:
        """Ends it at once."""
        self._server.kill()
        self._server.wait(_END_S)

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


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
