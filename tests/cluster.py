"""Nodes as processes that do what a test says: one process a node, on Unix sockets.

A test calls a function of its module on a node: `cluster.call(1, fill, 7)` runs `fill(site, 7)` in
the process of node 1, and returns what it returns, or raises what it raises.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import multiprocessing.connection
import os
import platform
import shutil
import signal
import tempfile
import threading
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Final

import pytest

import giantvm
from etcd import Etcd
from giantvm import Config, Lost, Node, NodeSpec
from network import Network, enter

NAMES: Final = ("a", "b", "c")
ANSWER_S: Final = 60.0
"""Far more than any answer takes: a node that needs it hangs."""

EXIT_LOST: Final = 86
PORT: Final = 7001
"""Where each node of a `Network` listens."""

_SPAWN: Final = multiprocessing.get_context("spawn")
_KERNEL_MIN: Final = (6, 6)


def skip_without_kernel() -> None:
    """Skips a test where the kernel is too old for regions."""
    release = platform.release()
    if tuple(int(part) for part in release.split("-")[0].split(".")[:2]) < _KERNEL_MIN:
        pytest.skip(f"regions need Linux 6.6 or newer, this is {release}")


@dataclass
class Site:
    """What a called function finds in the process of its node."""

    node: Node
    directory: Path
    kept: dict[str, Any] = field(default_factory=dict)
    """Things that one call leaves for the next."""
    lost: threading.Event = field(default_factory=threading.Event)
    """Set when the node is told of a loss."""
    losses: list[Lost] = field(default_factory=list)
    """What it was told."""


class Answer:
    """The result, still to come, of a call on a node."""

    def __init__(self, process: NodeProcess, number: int) -> None:
        self._process = process
        self._number = number

    def result(self) -> Any:
        """What the function returned; raises what it raised."""
        number, good, value, trace = self._process.receive()
        # Answers that a failed test did not wait for are not the answer of the next one.
        while number != self._number:
            number, good, value, trace = self._process.receive()
        if not good:
            value.add_note(f"on node {self._process.name}:\n{trace}")
            raise value
        return value


class NodeProcess:
    """The process of one node."""

    def __init__(
        self,
        config: Config,
        name: str,
        directory: Path,
        namespace: str | None = None,
        own: NodeSpec | None = None,
    ) -> None:
        self.name = name
        self._log = directory / f"{name}.log"
        self.link: multiprocessing.connection.Connection
        self.link, child = _SPAWN.Pipe()
        self._process = _SPAWN.Process(
            target=_serve, args=(config, own or name, directory, namespace, child)
        )
        self._process.start()
        self._calls = 0
        child.close()

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    def begin(self, function: Callable[..., Any], *args: object) -> Answer:
        """Starts `function(site, *args)` there."""
        self._calls += 1
        self.link.send((self._calls, function, args))
        return Answer(self, self._calls)

    def receive(self) -> tuple[int, bool, Any, str]:
        """The next answer: its number, whether it is good, its value, and the trace if not."""
        if not self.link.poll(ANSWER_S):
            raise AssertionError(f"node {self.name} hangs\n{self.log()}")
        try:
            answer: tuple[int, bool, Any, str] = self.link.recv()
        except (EOFError, ConnectionResetError):
            raise AssertionError(
                f"node {self.name} ended with {self.wait()}\n{self.log()}"
            ) from None
        return answer

    def signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        """Ends it, and waits for that: it must not be asked to leave at the end of the test."""
        self.signal(signal.SIGKILL)
        self.wait()

    def stop(self) -> None:
        """Stops it; at the end of the test it must run again, or have been killed."""
        self.signal(signal.SIGSTOP)

    def wait(self) -> int:
        """Its exit status, negative for a signal; an error if it does not end."""
        self._process.join(ANSWER_S)
        status = self._process.exitcode
        if status is None:
            raise AssertionError(f"node {self.name} does not end\n{self.log()}")
        return status

    def log(self) -> str:
        """What it wrote to stderr."""
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    def leave(self) -> None:
        """Asks it to close its node and end."""
        with contextlib.suppress(OSError):
            self.link.send(None)

    def end(self) -> None:
        """Ends it whatever it does."""
        if self._process.is_alive():
            self._process.kill()
        self._process.join()
        self._process.close()
        self.link.close()


class Cluster:
    """Nodes that are started together, for a `with` block: on Unix sockets, or on a network.

    Those of `late` are last in the list, and started by `start`.

    At its end each node that is still there leaves, and must end with status 0.
    """

    def __init__(
        self,
        nodes: Sequence[str] = NAMES,
        *,
        late: Sequence[str] = (),
        memory_bytes: int = 64 << 20,
        heartbeat_ms: int = 100,
        timeout_ms: int = 2000,
        network: Network | None = None,
        etcd: Etcd | None = None,
    ) -> None:
        skip_without_kernel()
        self.network, self.etcd = network, etcd
        self.directory = Path(tempfile.mkdtemp(prefix="giantvm-"))
        specs = tuple(
            NodeSpec(name, self._address(index, name), memory_bytes, name in late)
            for index, name in enumerate([*nodes, *late])
        )
        self.specs = specs
        self.config = Config(
            "test",
            () if etcd else specs,
            heartbeat_ms=heartbeat_ms,
            timeout_ms=timeout_ms,
            etcd=tuple(etcd.addresses) if etcd else (),
            node_count=len(nodes) if etcd else None,
        )
        self.nodes = [self._process(index) for index in range(len(nodes))]
        try:
            for node in self.nodes:
                Answer(node, 0).result()
        except BaseException:
            self._end()
            raise

    def _process(self, index: int) -> NodeProcess:
        spec = self.specs[index]
        namespace = None if self.network is None else self.network.namespace(index)
        own = spec if self.etcd else None
        return NodeProcess(self.config, spec.name, self.directory, namespace, own)

    def start(self, index: int) -> NodeProcess:
        """Starts a late node, or one that has ended once more; returns when it has joined."""
        if index < len(self.nodes):
            self.nodes[index].end()
            self.nodes[index] = self._process(index)
        else:
            self.nodes.append(self._process(index))
        Answer(self.nodes[index], 0).result()
        return self.nodes[index]

    def _address(self, index: int, name: str) -> str:
        if self.network is None:
            return f"unix:{self.directory}/{name}.sock"
        return f"{self.network.address(index)}:{PORT}"

    def call(self, index: int, function: Callable[..., Any], *args: object) -> Any:
        """Runs `function(site, *args)` on one node."""
        return self.nodes[index].begin(function, *args).result()

    def each(self, function: Callable[..., Any], *args: object) -> list[Any]:
        """Runs it on all nodes at the same time."""
        answers = [node.begin(function, *args) for node in self.nodes]
        return [answer.result() for answer in answers]

    def __enter__(self) -> Cluster:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if error is None:
                there = [node for node in self.nodes if not node.link.closed and _alive(node)]
                for node in there:
                    node.leave()
                for node in there:
                    assert node.wait() == 0, node.log()
        finally:
            self._end()

    def _end(self) -> None:
        for node in self.nodes:
            node.end()
        shutil.rmtree(self.directory, ignore_errors=True)


def _alive(node: NodeProcess) -> bool:
    return node._process.is_alive()


def alone(function: Callable[..., Any], *args: object) -> Any:
    """Runs `function(directory, *args)` in a new process without a node; what it returns."""
    skip_without_kernel()
    link, child = _SPAWN.Pipe()
    with tempfile.TemporaryDirectory(prefix="giantvm-") as directory:
        process = _SPAWN.Process(target=_run_alone, args=(child, function, Path(directory), args))
        process.start()
        child.close()
        try:
            assert link.poll(ANSWER_S), "the process hangs"
            _, good, value, trace = link.recv()
        finally:
            process.kill()
            process.join()
            process.close()
            link.close()
    if not good:
        value.add_note(trace)
        raise value
    return value


def one_node(directory: Path) -> Node:
    """A cluster of this process only."""
    return Node(nodes=[NodeSpec("solo", f"unix:{directory}/solo.sock", 64 << 20)])


def _serve(
    config: Config,
    node: NodeSpec | str,
    directory: Path,
    namespace: str | None,
    link: multiprocessing.connection.Connection,
) -> None:
    own = None if isinstance(node, str) else node
    name = node if isinstance(node, str) else node.name
    log = os.open(directory / f"{name}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 2)
    os.close(log)
    told = threading.Event()
    losses: list[Lost] = []

    def on_lost(lost: Lost) -> None:
        (directory / f"{name}.lost").write_text(lost.node)
        losses.append(lost)
        told.set()

    try:
        if namespace is not None:
            enter(namespace)
        joined = giantvm.Node(
            config,
            name,
            listen=None if own is None else own.listen,
            memory_bytes=None if own is None else own.memory_bytes,
            insecure=namespace is not None,
            on_lost=on_lost,
        )
    except Exception as error:
        link.send((0, False, error, traceback.format_exc()))
        return
    with joined:
        site = Site(joined, directory, lost=told, losses=losses)
        link.send((0, True, None, ""))
        while True:
            try:
                request = link.recv()
            except EOFError:
                break
            if request is None:
                break
            number, function, args = request
            _answer(link, number, function, site, args)
        site.kept.clear()


def _run_alone(
    link: multiprocessing.connection.Connection,
    function: Callable[..., Any],
    directory: Path,
    args: Sequence[object],
) -> None:
    _answer(link, 0, function, directory, args)


def _answer(
    link: multiprocessing.connection.Connection,
    number: int,
    function: Callable[..., Any],
    place: Site | Path,
    args: Sequence[object],
) -> None:
    try:
        reply = (number, True, function(place, *args), "")
    except Exception as error:
        reply = (number, False, error.with_traceback(None), traceback.format_exc())
    link.send(reply)
