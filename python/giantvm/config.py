"""The cluster file: which nodes there are, where they listen, and what they give."""

from __future__ import annotations

import ipaddress
import os
import re
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, Literal, TypeGuard

from giantvm._toml import Table, suggestion
from giantvm.errors import ConfigError
from giantvm.vmspec import VmSpec, parse_vm

__all__ = ["NODES_MAX", "Config", "NodeSpec", "WaitMode", "parse_size"]

NODES_MAX: Final = 64
"""Most nodes in one cluster."""

WaitMode = Literal["adaptive", "blocking", "busy"]
"""How a node's workers wait for work: see `Config.wait`."""

_WAIT_MODES: Final[tuple[WaitMode, ...]] = ("adaptive", "blocking", "busy")
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_SIZE: Final = re.compile(r"([0-9]+) ?(B|KiB|MiB|GiB|TiB)?")
_UNITS: Final = {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}
_SIZE_MAX: Final = 2**47
_ETCD: Final = re.compile(r"http://([A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\]):[0-9]{1,5}/?")
_UNIX_PATH_MAX: Final = 107
_MEMORY_MIN: Final = 2**21
_HEARTBEATS_PER_TIMEOUT_MIN: Final = 6


def parse_size(text: str) -> int:
    """Bytes in `text`, such as `"4096"`, `"64MiB"` or `"1 TiB"`; else `ConfigError`."""
    match = _SIZE.fullmatch(text)
    if match is None:
        raise ConfigError(f'{text!r} is not a size: write it like "512MiB" or "1GiB"')
    size = int(match[1]) * _UNITS[match[2] or "B"]
    if size > _SIZE_MAX:
        raise ConfigError(f"{text!r} is more than a process can map (128 TiB)")
    return size


def _check_name(name: str, what: str) -> None:
    if _NAME.fullmatch(name) is None:
        raise ConfigError(
            f"{what} {name!r}: use 1 to 63 letters, digits, '.', '_' and '-', "
            "beginning with a letter or a digit"
        )


def _check_listen(listen: str, where: str) -> None:
    if listen.startswith("unix:"):
        path = listen.removeprefix("unix:")
        if not path.startswith("/") or "\0" in path:
            raise ConfigError(f"{where}: {listen!r} needs an absolute path, like unix:/run/a.sock")
        if len(os.fsencode(path)) > _UNIX_PATH_MAX:
            raise ConfigError(
                f"{where}: the path of {listen!r} is longer than {_UNIX_PATH_MAX} bytes, "
                "the most a Unix socket can have"
            )
        return
    host, colon, port = listen.rpartition(":")
    if not colon or not host:
        raise ConfigError(f"{where}: {listen!r} is neither unix:/PATH nor HOST:PORT")
    if ":" in host and not (host.startswith("[") and host.endswith("]")):
        raise ConfigError(
            f"{where}: {listen!r}: write an IPv6 address in brackets, like [::1]:7001"
        )
    if not (port.isascii() and port.isdigit() and 1 <= int(port) <= 65535):
        raise ConfigError(f"{where}: the port of {listen!r} is not between 1 and 65535")


def _place(address: str) -> str:
    """The `HOST:PORT` of an address of etcd."""
    return address.removeprefix("http://").rstrip("/")


def _is_local(listen: str) -> bool:
    if listen.startswith("unix:"):
        return True
    host = listen.rpartition(":")[0].strip("[]")
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        # A name: what it resolves to is known only when it is resolved, so it counts as remote.
        return False


@dataclass(frozen=True, slots=True)
class NodeSpec:
    """One node of a cluster.

    `ConfigError` where a field is wrong.
    """

    name: str
    """What the node is called, in files, messages and on the command line."""
    listen: str
    """Where it listens: `unix:/PATH`, or `HOST:PORT`."""
    memory_bytes: int = 2**30
    """Its share of the memory of regions, in bytes; at least 2 MiB."""
    late: bool = False
    """Whether the cluster starts without it: it joins when it comes."""

    def __post_init__(self) -> None:
        _check_name(self.name, "node")
        _check_listen(self.listen, f"node {self.name!r}: listen")
        if not _MEMORY_MIN <= self.memory_bytes <= _SIZE_MAX:
            raise ConfigError(
                f"node {self.name!r}: memory is {self.memory_bytes} bytes: "
                "give between 2MiB and 128TiB"
            )

    @property
    def is_local(self) -> bool:
        """Whether only processes of the same machine can reach the node."""
        return _is_local(self.listen)


@dataclass(frozen=True, slots=True)
class Config:
    """A cluster: its nodes, in the order that is the same for all of them.

    The first node decides who belongs to the cluster; or, where `etcd` is given, etcd does. Then
    the nodes find each other through it: `nodes` is empty, and `node_count` says how many to wait
    for, at one node at least. `ConfigError` where a field is wrong.
    """

    name: str
    """What the cluster is called; nodes of clusters with other names refuse each other."""
    nodes: tuple[NodeSpec, ...]
    """The nodes; each is known by its position."""
    heartbeat_ms: int = 100
    """Time between two signs of life, in milliseconds."""
    timeout_ms: int = 2000
    """A node that is silent for so long is lost; at least six heartbeats."""
    workers: int = 1
    """Threads of each node that serve page faults and peers."""
    wait: WaitMode = "adaptive"
    """How they wait: `blocking` sleeps, `busy` spins, `adaptive` spins briefly where that pays."""
    vm: VmSpec | None = None
    """The virtual machine that runs over the cluster, if there is one."""
    source: str = field(default="<arguments>", compare=False)
    """Where the configuration comes from, for messages."""
    etcd: tuple[str, ...] = ()
    """Addresses of etcd, like `http://127.0.0.1:2379`, one of each member, if it decides."""
    node_count: int | None = None
    """How many nodes the cluster has, if etcd decides; `None` leaves it to other nodes to say."""

    def __post_init__(self) -> None:
        try:
            self._check()
        except ConfigError as error:
            raise ConfigError(f"{self.source}: {error}") from None

    def _check(self) -> None:
        _check_name(self.name, "cluster")
        _check_range("heartbeat_ms", self.heartbeat_ms, 5, 60_000)
        _check_range("timeout_ms", self.timeout_ms, 1, 600_000)
        least_ms = _HEARTBEATS_PER_TIMEOUT_MIN * self.heartbeat_ms
        if self.timeout_ms < least_ms:
            raise ConfigError(
                f"timeout_ms is {self.timeout_ms}, less than {_HEARTBEATS_PER_TIMEOUT_MIN} "
                f"heartbeats of {self.heartbeat_ms} ms: one late heartbeat would end the cluster; "
                f"give {least_ms} or more"
            )
        _check_range("workers", self.workers, 1, 64)
        if not _is_wait_mode(self.wait):
            raise ConfigError(f"wait is {self.wait!r}: use one of {', '.join(_WAIT_MODES)}")
        self._check_etcd()
        if not self.nodes and not self.etcd:
            raise ConfigError("there is no node: add a [[node]] table for each")
        if len(self.nodes) > NODES_MAX:
            raise ConfigError(f"{len(self.nodes)} nodes are more than the {NODES_MAX} supported")
        _check_unique("name", (node.name for node in self.nodes))
        _check_unique("listen", (node.listen for node in self.nodes))
        if self.nodes and self.nodes[0].late and not self.etcd:
            raise ConfigError(
                f"node {self.nodes[0].name!r} is first in the list, and can't be late: it decides "
                "who belongs to the cluster"
            )
        late = next((node.name for node in self.nodes if node.late), None)
        if self.vm is not None and late is not None:
            raise ConfigError(
                f"node {late!r} can't be late: a virtual machine needs all nodes at its start"
            )
        if self.vm is not None and self.nodes:
            self.vm.check_nodes([node.name for node in self.nodes])

    def _check_etcd(self) -> None:
        if not self.etcd:
            if self.node_count is not None:
                raise ConfigError("nodes is only for a cluster with etcd: add a [[node]] for each")
            return
        for address in self.etcd:
            if _ETCD.fullmatch(address) is None:
                raise ConfigError(
                    f"etcd: {address!r} is no address like http://127.0.0.1:2379; TLS is not "
                    "supported"
                )
        if self.node_count is not None:
            _check_range("nodes", self.node_count, 1, NODES_MAX)

    def with_nodes(self, nodes: Iterable[NodeSpec]) -> Config:
        """The same cluster with the nodes that etcd knows."""
        return replace(self, nodes=tuple(nodes))

    def index(self, name: str) -> int:
        """The position of the node called `name`; `ConfigError` if there is none."""
        names = [node.name for node in self.nodes]
        if name not in names:
            raise ConfigError(
                f"{self.source}: there is no node {name!r}{suggestion(name, names)}: "
                f"the nodes are {', '.join(names)}"
            )
        return names.index(name)

    def node(self, name: str) -> NodeSpec:
        """The node called `name`; `ConfigError` if there is none."""
        return self.nodes[self.index(name)]

    def check_addresses(self, *, insecure: bool) -> None:
        """Refuses addresses that other machines can reach, unless `insecure`.

        Whoever reaches a node can read and write its regions: there is no authentication yet.
        """
        if self.etcd and not insecure:
            remote_etcd = [address for address in self.etcd if not _is_local(_place(address))]
            if remote_etcd:
                raise ConfigError(
                    f"{self.source}: etcd at {remote_etcd[0]} is reached without TLS or a "
                    "password: pass insecure=True (--insecure) on a network that you trust"
                )
        remote = [node for node in self.nodes if not node.is_local]
        if remote and not insecure:
            raise ConfigError(
                f"{self.source}: node {remote[0].name!r} listens on {remote[0].listen!r}, which "
                "other machines can reach, and nodes do not authenticate each other: use a "
                "loopback address or a Unix socket, or pass insecure=True (--insecure) on a "
                "network that you trust"
            )

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Config:
        """Reads the cluster file at `path`; `ConfigError` if it can't be read or is wrong."""
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
            raise ConfigError(f"{os.fspath(path)}: can't be read: {reason}") from error
        return cls.parse(text, source=os.fspath(path))

    @classmethod
    def parse(cls, text: str, *, source: str = "<string>") -> Config:
        """The configuration in `text`, which is TOML; `source` names it in messages."""
        try:
            document = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise ConfigError(f"{source}: not valid TOML: {error}") from error
        try:
            top = Table(document, "the file", {"cluster", "node", "vm"})
            cluster = Table(
                top.table("cluster"),
                "[cluster]",
                {"name", "heartbeat_ms", "timeout_ms", "workers", "wait", "etcd", "nodes"},
            )
            nodes = tuple(
                _parse_node(Table(entry, f"[[node]] number {position}", _NODE_KEYS))
                for position, entry in enumerate(top.tables("node"), start=1)
            )
            wait = cluster.text("wait", "adaptive")
            if not _is_wait_mode(wait):
                raise ConfigError(
                    f"[cluster]: wait is {wait!r}: use one of {', '.join(_WAIT_MODES)}"
                )
            name = cluster.text("name")
            heartbeat_ms = cluster.integer("heartbeat_ms", 100)
            etcd = tuple(cluster.texts("etcd"))
            if "etcd" in cluster and not etcd:
                raise ConfigError("[cluster]: etcd is empty: give an address, or leave it out")
            if etcd and nodes:
                raise ConfigError(
                    "[cluster]: with etcd there are no [[node]] tables: each node is described "
                    "where it is started (--node, --listen, --memory)"
                )
            # A lease must outlast a restart of etcd.
            timeout_ms = cluster.integer("timeout_ms", 5000 if etcd else 2000)
            workers = cluster.integer("workers", 1)
            vm = None
            if "vm" in top:
                vm = parse_vm(top.table("vm"), Path(source).parent, parse_size)
            count = cluster.integer("nodes", 0) if "nodes" in cluster else None
        except ConfigError as error:
            raise ConfigError(f"{source}: {error}") from None
        return cls(name, nodes, heartbeat_ms, timeout_ms, workers, wait, vm, source, etcd, count)


_NODE_KEYS: Final = {"name", "listen", "memory", "late"}


def _parse_node(table: Table) -> NodeSpec:
    name, listen, memory = table.text("name"), table.text("listen"), table.text("memory", "1GiB")
    try:
        size = parse_size(memory)
    except ConfigError as error:
        raise ConfigError(f"node {name!r}: memory: {error}") from None
    return NodeSpec(name, listen, size, table.flag("late"))


def _is_wait_mode(text: str) -> TypeGuard[WaitMode]:
    return text in _WAIT_MODES


def _check_range(key: str, value: int, least: int, most: int) -> None:
    if not least <= value <= most:
        raise ConfigError(f"{key} is {value}: give between {least} and {most}")


def _check_unique(key: str, values: Iterable[str]) -> None:
    seen: set[str] = set()
    for value in values:
        if value in seen:
            raise ConfigError(f"two nodes have the {key} {value!r}")
        seen.add(value)
