"""What a node says of callers, neighbours and addresses that it can't use."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("giantvm._native", reason="the native module is not built")

import giantvm
from cluster import ANSWER_S, Cluster, Site, alone, one_node
from giantvm import Node, NodeSpec
from network import free_ports

MIB = 1 << 20
NONSENSE = [
    b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
    b"\0" * 5000,
    bytes(range(256)) * 16,
]
"""Of some only a part is read before the answer."""


def call(path: str, nonsense: bytes) -> None:
    """Sends it, and waits until the node hangs up."""
    with socket.socket(socket.AF_UNIX) as caller:
        caller.settimeout(ANSWER_S)
        caller.connect(path)
        # A node that refuses does not read to the end.
        with contextlib.suppress(ConnectionError):
            caller.sendall(nonsense)
            while caller.recv(4096):
                pass


def count(site: Site) -> int:
    return site.node.counter("calls").add()


@pytest.mark.parametrize("nonsense", NONSENSE, ids=["http", "zeros", "bytes"])
def test_a_caller_that_speaks_nonsense_is_named_and_harms_nothing(nonsense: bytes) -> None:
    with Cluster() as cluster:
        path = f"{cluster.directory}/a.sock"
        call(path, nonsense)
        assert [cluster.call(index, count) for index in range(3)] == [0, 1, 2]
        log = cluster.nodes[0].log()
        assert f"giantvm[a]: refused process {os.getpid()} at unix:{path}: this is a gi" in log
        assert "what was sent is no giantvm handshake\n" in log


def refuse_over_tcp(directory: Path) -> tuple[str, str]:
    """The caller's address, and what the node wrote."""
    [port] = free_ports(1)
    log = os.open(directory / "log", os.O_RDWR | os.O_CREAT)
    os.dup2(log, 2)
    with Node(nodes=[NodeSpec("solo", f"127.0.0.1:{port}", 64 * MIB)]) as node:
        with socket.create_connection(("127.0.0.1", port), ANSWER_S) as caller:
            caller.sendall(NONSENSE[0])
            caller.recv(1)
            own = caller.getsockname()[1]
        node.counter("x").add()
    return f"tcp:127.0.0.1:{own}", (directory / "log").read_text()


def test_a_caller_over_tcp_is_named_by_its_address() -> None:
    caller, log = alone(refuse_over_tcp)
    assert f"giantvm[solo]: refused {caller}: this is a giantvm node" in log


def speak_nonsense(_: Site, connection: int) -> None:
    """Says what no node says on one of this node's connections to the deciding node.

    The connection for a virtual machine is left out: nobody reads it, or watches it, before there
    is one.
    """
    found = []
    for entry in sorted(watched()):
        try:
            copy = socket.socket(fileno=os.dup(entry))
        except OSError:
            continue
        with copy:
            if copy.family == socket.AF_UNIX and _peer(copy).endswith("/a.sock"):
                found.append(copy.dup())
    assert len(found) == 2, "one for control, one for the worker"
    found[connection].sendall(NONSENSE[0] * 20)
    for copy in found:
        copy.close()


def watched() -> set[int]:
    """The descriptors that an epoll of this process waits for."""
    found = set()
    for entry in os.listdir("/proc/self/fdinfo"):
        with contextlib.suppress(FileNotFoundError):
            told = Path("/proc/self/fdinfo", entry).read_text()
            found |= {int(number) for number in re.findall(r"^tfd:\s*(\d+)", told, re.MULTILINE)}
    return found


def _peer(connected: socket.socket) -> str:
    try:
        return str(connected.getpeername())
    except OSError:
        return ""


def wait_for_ever(site: Site) -> None:
    site.node.barrier("nobody else comes").wait()


@pytest.mark.parametrize("connection", [0, 1])
def test_a_member_that_speaks_nonsense_is_lost_and_named(connection: int) -> None:
    with Cluster() as cluster:
        waiting = [cluster.nodes[index].begin(wait_for_ever) for index in (0, 2)]
        cluster.call(1, speak_nonsense, connection)
        why = (
            r"its connection to the deciding node broke: node 1 \(.*\): disconnected because it "
            r"sent bytes that are no message: .*"
        )
        for answer in waiting:
            with pytest.raises(giantvm.BarrierBroken, match="node b is lost"):
                answer.result()
        said = rf"^giantvm\[a\]: lost node b: {why}$"
        assert re.search(said, cluster.nodes[0].log(), re.MULTILINE), cluster.nodes[0].log()
        with pytest.raises(giantvm.NodeLost):
            cluster.call(1, wait_for_ever)


def refusal(*arguments: object, **keywords: object) -> str:
    """Why a node can't be made."""
    with pytest.raises(giantvm.ClusterError) as error:
        Node(*arguments, **keywords)  # type: ignore[arg-type]
    return str(error.value)


def busy_port(directory: Path) -> tuple[int, str]:  # noqa: ARG001 - the form of a call
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        return port, refusal(nodes=[NodeSpec("a", f"127.0.0.1:{port}", 64 * MIB)])


def test_a_busy_port_is_named() -> None:
    port, told = alone(busy_port)
    assert told == (
        f"can't start: cannot listen on tcp:127.0.0.1:{port}: another process listens there; "
        "end it, or choose another address for this node"
    )


def busy_socket(directory: Path) -> str:
    with one_node(directory):
        return refusal(nodes=[NodeSpec("solo", f"unix:{directory}/solo.sock", 64 * MIB)])


def test_a_busy_socket_is_named() -> None:
    assert "another process listens there; end it" in alone(busy_socket)


def missing_directory(directory: Path) -> tuple[str, str]:
    gone = directory / "gone"
    return os.fspath(gone), refusal(nodes=[NodeSpec("a", f"unix:{gone}/a.sock", 64 * MIB)])


def test_a_missing_directory_is_named() -> None:
    gone, told = alone(missing_directory)
    assert told == (
        f"can't start: cannot listen on unix:{gone}/a.sock: the directory {gone} does not exist; "
        "create it"
    )


def file_in_the_way(directory: Path) -> str:
    path = directory / "a.sock"
    path.write_text("precious")
    told = refusal(nodes=[NodeSpec("a", f"unix:{path}", 64 * MIB)])
    assert path.read_text() == "precious"
    return told


def test_a_file_in_the_way_is_named_and_kept() -> None:
    assert "a file that is not a socket is there" in alone(file_in_the_way)


def foreign_address(directory: Path) -> str:  # noqa: ARG001 - the form of a call
    return refusal(nodes=[NodeSpec("a", "192.0.2.1:7001", 64 * MIB)], insecure=True)


def test_an_address_of_another_machine_is_named() -> None:
    told = alone(foreign_address)
    assert "cannot listen on tcp:192.0.2.1:7001: it is not an address of this machine" in told


def join_with(directory: Path, nodes: list[NodeSpec], name: str, log: str) -> str:
    """Why the node `name` of a list can't join."""
    os.dup2(os.open(directory / log, os.O_WRONLY | os.O_CREAT), 2)
    with pytest.raises(giantvm.TimeoutError) as error:
        Node(nodes=nodes, name=name, timeout_s=1.0)
    return str(error.value)


def other_list(directory: Path, path: str) -> str:
    nodes = [
        NodeSpec("a", f"unix:{path}/a.sock", 64 * MIB),
        NodeSpec("other", f"unix:{directory}/other.sock", 64 * MIB),
    ]
    return join_with(directory, nodes, "other", "log")


def test_a_node_with_another_list_is_refused_and_told() -> None:
    with Cluster() as cluster:
        told = alone(other_list, os.fspath(cluster.directory))
        assert "the nodes a (" in told
        assert "refused this node" in told
        assert "does not match cluster" in told
        assert [cluster.call(index, count) for index in range(3)] == [0, 1, 2]
        lines = [line for line in cluster.nodes[0].log().splitlines() if "refused" in line]
        assert "does not match cluster" in lines[0]
        # It calls many times a second: the log must not fill up with that.
        assert len(lines) < 60


def second_process(directory: Path, path: str) -> str:
    nodes = [NodeSpec(n, f"unix:{path}/{n}.sock", 64 * MIB) for n in "abc"]
    cluster = giantvm.Config("test", tuple(nodes), heartbeat_ms=100, timeout_ms=2000)
    os.rename(f"{path}/c.sock", f"{path}/c.moved")
    os.dup2(os.open(directory / "log", os.O_WRONLY | os.O_CREAT), 2)
    with pytest.raises(giantvm.TimeoutError) as error:
        Node(cluster, "c", timeout_s=1.0)
    return str(error.value)


def test_a_second_process_as_the_same_node_is_refused() -> None:
    with Cluster() as cluster:
        told = alone(second_process, os.fspath(cluster.directory))
        assert "another process runs as node c of this cluster" in told
        assert [cluster.call(index, count) for index in range(3)] == [0, 1, 2]


def test_a_timeout_that_is_too_short_is_refused() -> None:
    with pytest.raises(giantvm.ConfigError, match="less than 6 heartbeats of 100 ms"):
        giantvm.Config("x", (NodeSpec("a", "unix:/tmp/a.sock"),), timeout_ms=599)


SPEAK = """
import os, socket, sys
from giantvm import Node, NodeSpec
path = sys.argv[1] + "/solo.sock"
with Node(nodes=[NodeSpec("solo", "unix:" + path, 64 << 20)]) as node:
    for _ in range(int(sys.argv[2])):
        caller = socket.socket(socket.AF_UNIX)
        caller.connect(path)
        caller.sendall(b"nonsense")
        while caller.recv(4096):
            pass
    node.counter("x").add()
"""


def messages(directory: Path, level: str | None, calls: int = 1) -> list[str]:
    """What a node with one foreign caller or more writes to stderr."""
    environment = {key: value for key, value in os.environ.items() if key != "GIANTVM_LOG"}
    if level is not None:
        environment["GIANTVM_LOG"] = level
    done = subprocess.run(
        [sys.executable, "-c", SPEAK, os.fspath(directory), str(calls)],
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
        timeout=ANSWER_S,
        check=True,
    )
    return done.stderr.splitlines()


LEVELS: list[tuple[str | None, Callable[[list[str]], bool]]] = [
    (None, lambda lines: len(lines) == 1 and "refused" in lines[0]),
    ("warn", lambda lines: len(lines) == 1 and "refused" in lines[0]),
    ("error", lambda lines: lines == []),
    ("off", lambda lines: lines == []),
    ("info", lambda lines: lines[0] == "giantvm[solo]: the cluster runs, epoch 1"),
    ("loud", lambda lines: re.search(r"GIANTVM_LOG is \"loud\": use off", lines[0]) is not None),
]


@pytest.mark.parametrize(("level", "fits"), LEVELS, ids=[str(level) for level, _ in LEVELS])
def test_what_is_said_follows_the_variable(
    tmp_path: Path, level: str | None, fits: Callable[[list[str]], bool]
) -> None:
    lines = messages(tmp_path, level)
    assert fits(lines), lines


def test_many_messages_do_not_fill_the_log(tmp_path: Path) -> None:
    lines = messages(tmp_path, None, 1000)
    assert 50 <= len(lines) < 500
