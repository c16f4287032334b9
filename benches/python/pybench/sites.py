"""Processes that measure: nodes of a cluster, or none, each with its own CPUs.

`group.call(0, function, 7)` runs `function(site, 7)` in process 0. The processes stand for
machines, so they share no CPU while there are enough: the rule of `benches/src/placement.rs`.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import socket
import tempfile
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from giantvm import Config, Node, NodeSpec

ANSWER_S: Final = 120.0
_SPAWN: Final = multiprocessing.get_context("spawn")
_MEMORY_BYTES: Final = 128 << 20


@dataclass
class Site:
    """What a called function finds in its process."""

    index: int
    count: int
    """Processes in all."""
    transport: str
    """`unix` or `tcp`."""
    directory: Path
    other: Connection | None
    """A pipe between processes 0 and 1, for handshakes."""
    cluster: Node | None
    kept: dict[str, Any] = field(default_factory=dict)
    """Things that one call leaves for the next."""

    @property
    def node(self) -> Node:
        """The node that this process is."""
        assert self.cluster is not None, "these processes are no nodes"
        return self.cluster

    @property
    def pipe(self) -> Connection:
        """The pipe between processes 0 and 1."""
        assert self.other is not None, "only processes 0 and 1 share a pipe"
        return self.other


class Group:
    """Processes that are started together, for a `with` block; nodes of one cluster if `nodes`."""

    def __init__(self, count: int, transport: str, *, nodes: bool = True) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="giantvm-bench-"))
        config = _config(count, transport, self.directory) if nodes else None
        pair = _SPAWN.Pipe()
        self._links: list[Connection] = []
        self._processes = []
        try:
            for index in range(count):
                link, child = _SPAWN.Pipe()
                site = (index, count, transport, self.directory, pair[index] if index < 2 else None)
                process = _SPAWN.Process(target=_serve, args=(child, config, site), daemon=True)
                process.start()
                child.close()
                self._links.append(link)
                self._processes.append(process)
            for link in self._links:
                _result(link)
        except BaseException:
            self._end(kill=True)
            raise
        finally:
            for end in pair:
                end.close()

    def call(self, index: int, function: Callable[..., Any], *args: object) -> Any:
        """Runs `function(site, *args)` in one process."""
        self._links[index].send((function, args))
        return _result(self._links[index])

    def each(self, function: Callable[..., Any], *args: object) -> list[Any]:
        """Runs it in all processes at the same time."""
        for link in self._links:
            link.send((function, args))
        return [_result(link) for link in self._links]

    def __enter__(self) -> Group:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end(kill=error is not None)

    def _end(self, *, kill: bool) -> None:
        for link in self._links:
            link.close()
        for process in self._processes:
            if not kill:
                process.join(10)
            process.kill()
            process.join()
        shutil.rmtree(self.directory, ignore_errors=True)


def _config(count: int, transport: str, directory: Path) -> Config:
    listens = [f"unix:{directory}/{index}.sock" for index in range(count)]
    if transport == "tcp":
        listens = [f"127.0.0.1:{port}" for port in free_ports(count)]
    specs = (NodeSpec(f"n{at}", listen, _MEMORY_BYTES) for at, listen in enumerate(listens))
    return Config("bench", tuple(specs), timeout_ms=10_000)


def free_ports(count: int) -> list[int]:
    """Ports of the loopback that nobody listens on."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    try:
        return [int(each.getsockname()[1]) for each in sockets]
    finally:
        for each in sockets:
            each.close()


def place(index: int, count: int) -> None:
    """Gives this process its share of the CPUs."""
    cpus = sorted(os.sched_getaffinity(0))
    share = max(1, len(cpus) // count)
    first = min(index * share, len(cpus) - share)
    os.sched_setaffinity(0, cpus[first : first + share])


def _result(link: Connection) -> Any:
    if not link.poll(ANSWER_S):
        raise RuntimeError("a process of the benchmark hangs")
    try:
        value, trace = link.recv()
    except EOFError:
        raise RuntimeError("a process of the benchmark ended") from None
    if trace:
        raise RuntimeError(f"in a process of the benchmark:\n{trace}")
    return value


def _serve(
    link: Connection, config: Config | None, about: tuple[int, int, str, Path, Connection | None]
) -> None:
    place(about[0], about[1])
    try:
        node = None if config is None else Node(config, f"n{about[0]}")
    except Exception:
        link.send((None, traceback.format_exc()))
        return
    site = Site(*about, node)
    link.send((None, ""))
    while True:
        try:
            function, args = link.recv()
        except EOFError:
            break
        try:
            link.send((function(site, *args), ""))
        except Exception:
            link.send((None, traceback.format_exc()))
    # The latest first: what came later may be built on what came before.
    while site.kept:
        site.kept.popitem()
    if node is not None:
        node.close(timeout_s=5)
