"""A node: this process as a member of a cluster."""

from __future__ import annotations

import json
import os
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from types import TracebackType
from typing import TYPE_CHECKING, Any

from giantvm._native import NativeNode
from giantvm._region import Region
from giantvm._sync import Barrier, Counter, Mutex, RwLock
from giantvm._time import milliseconds
from giantvm.config import Config, NodeSpec
from giantvm.errors import ConfigError

if TYPE_CHECKING:
    from giantvm._vm import Vm

__all__ = ["Lost", "Node"]


@dataclass(frozen=True, slots=True)
class Lost:
    """A node that was lost."""

    node: str
    """Its name."""
    index: int
    """Its place in the cluster's list."""
    reason: str
    """How this node knows."""
    ended: bool
    """Whether this node can't go on: its regions and locks have ended. It goes on otherwise."""
    regions: dict[str, list[range]]
    """Of each region, by its name, the ranges of bytes of which nothing is left, lowest first, also
    after earlier losses. Empty where all has ended."""

    @classmethod
    def _of(
        cls,
        node: str,
        index: int,
        reason: str,
        ended: bool,
        regions: list[tuple[str, list[tuple[int, int]]]],
    ) -> Lost:
        """From what the native node says."""
        ranges = {name: [range(*it) for it in lost] for name, lost in regions}
        return cls(node, index, reason, ended, ranges)


class Node:
    """One node of a cluster, called `name`: the process that makes it. Use it in a `with` block.

    The cluster is a `Config`, the path of a cluster file, or a list of nodes. `name` may be left
    out where there is only one. Making a node connects it to all others of the list, and waits up
    to `timeout_s` seconds for them to start, in any order. Where etcd decides there is no list:
    give this node's `name`, where it is to `listen`, and its share of memory (default: 1 GiB).

    `on_lost` is called, in a thread of its own, when a node is lost. Where this node goes on (see
    `Lost.ended`), all but the pages that nobody else had is still there; this process ends when it
    touches one of those. Otherwise the cluster's regions end, and this process ends when it touches
    memory that it can't vouch for. `insecure` allows addresses that other machines can reach.

    Raises `giantvm.ConfigError`, `giantvm.TimeoutError` if nodes are missing, and
    `giantvm.ClusterError` if the machine or another node refuses.
    """

    def __init__(
        self,
        config: Config | str | os.PathLike[str] | None = None,
        name: str | None = None,
        *,
        nodes: Sequence[NodeSpec] | None = None,
        listen: str | None = None,
        memory_bytes: int | None = None,
        insecure: bool = False,
        timeout_s: float = 30.0,
        on_lost: Callable[[Lost], None] | None = None,
    ) -> None:
        given = cluster = _cluster(config, nodes)
        if cluster.etcd:
            # Whether a virtual machine fits is known when the other nodes are.
            cluster = replace(cluster, vm=None, nodes=(_own(name, listen, memory_bytes),))
        elif listen is not None or memory_bytes is not None:
            raise ConfigError("listen and memory are in the cluster's list: leave them out")
        cluster.check_addresses(insecure=insecure)
        if name is None:
            if len(cluster.nodes) > 1:
                raise ConfigError("name the node that this process is: there is more than one")
            name = cluster.nodes[0].name
        self._vms: weakref.WeakSet[Vm] = weakref.WeakSet()
        self._native = NativeNode(
            name,
            cluster.index(name),
            [node.name for node in cluster.nodes],
            [node.listen for node in cluster.nodes],
            cluster.name,
            [node.memory_bytes for node in cluster.nodes],
            [node.late for node in cluster.nodes],
            cluster.heartbeat_ms,
            cluster.timeout_ms,
            cluster.workers,
            cluster.wait,
            insecure,
            milliseconds(timeout_s),
            None if on_lost is None else lambda *what: on_lost(Lost._of(*what)),
            list(cluster.etcd),
            cluster.node_count,
        )
        self._config = given.with_nodes(NodeSpec(*spec) for spec in self._native.nodes())
        self._index = self._config.index(name)

    @property
    def config(self) -> Config:
        """The cluster's configuration."""
        return self._config

    @property
    def name(self) -> str:
        """The name of this node."""
        return self._config.nodes[self._index].name

    @property
    def index(self) -> int:
        """The place of this node in the cluster's list, from 0."""
        return self._index

    @property
    def nodes(self) -> tuple[str, ...]:
        """The names of the cluster's nodes, in order."""
        return tuple(node.name for node in self._config.nodes)

    @property
    def epoch(self) -> int:
        """The membership epoch: it rises whenever a node joins, leaves or is lost."""
        return self._native.epoch()

    def region(
        self,
        name: str,
        size: int | None = None,
        *,
        overcommit: bool = False,
        timeout_s: float | None = None,
    ) -> Region:
        """Opens the region `name` of `size` bytes, rounded up to pages.

        The first node of the cluster that gives a size creates the region. Others give the same
        size, or none, and then wait for it up to `timeout_s` seconds. Memory is used only for what
        is touched; a region that the nodes could not hold if all of it were is refused, unless
        `overcommit`.

        Raises `ValueError` for another size than the region has, `giantvm.ClusterError` if the
        nodes can't hold it, `giantvm.TimeoutError`.
        """
        _check_object_name(name)
        if size is not None and size < 1:
            raise ValueError(f"region {name!r}: a size of {size} bytes: give 1 or more")
        return Region(self._native, name, size, overcommit, milliseconds(timeout_s))

    def mutex(self, name: str) -> Mutex:
        """The mutex `name` of the cluster."""
        _check_object_name(name)
        return Mutex(self._native, name)

    def rwlock(self, name: str) -> RwLock:
        """The read-write lock `name` of the cluster."""
        _check_object_name(name)
        return RwLock(self._native, name)

    def barrier(self, name: str, parties: int | None = None) -> Barrier:
        """The barrier `name` of the cluster, for `parties` threads.

        By default one for each node, and after losses one for each that is not lost.
        """
        _check_object_name(name)
        return Barrier(self._native, name, parties)

    def counter(self, name: str) -> Counter:
        """The counter `name` of the cluster."""
        _check_object_name(name)
        return Counter(self._native, name)

    def status(self) -> dict[str, Any]:
        """What `giantvm status` shows of this node; `giantvm.status` describes it."""
        report: dict[str, Any] = json.loads(self._native.status_json())
        return report

    def close(self, *, wait: bool = True, timeout_s: float | None = None) -> None:
        """Closes every region and leaves the cluster; more than once is fine.

        A virtual machine that runs ends, on all nodes.

        This node owns pages that others may still read, so it serves them until every node of the
        cluster closes; `wait=False` leaves at once, which ends the regions of those that use them.

        Raises `BufferError` while an array or another buffer of a region exists, and then closes
        nothing: the arrays stay valid. Delete them first, or let the function that made them
        return. Raises `giantvm.TimeoutError` if the others do not close within `timeout_s` seconds;
        this node has left then all the same.
        """
        for vm in list(self._vms):
            vm.close()
        self._native.close(wait, milliseconds(timeout_s))

    def _adopt(self, vm: Vm) -> None:
        """Has a virtual machine end before its node."""
        self._vms.add(vm)

    def __enter__(self) -> Node:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            # After an error there is no sense in waiting for others: they learn that it is over.
            self.close(wait=error is None)
        except BufferError:
            # The frames that an error passed through keep its arrays alive: the error matters more,
            # and the native node closes itself when the last of them goes.
            if error is None:
                raise

    def __repr__(self) -> str:
        return f"<giantvm.Node {self.name!r} of {self._config.name!r}>"


def _cluster(
    config: Config | str | os.PathLike[str] | None, nodes: Sequence[NodeSpec] | None
) -> Config:
    if (config is None) == (nodes is None):
        raise ConfigError("give a configuration or a list of nodes: one of them")
    if nodes is not None:
        return Config("giantvm", tuple(nodes))
    return config if isinstance(config, Config) else Config.load(config or "")


def _own(name: str | None, listen: str | None, memory_bytes: int | None) -> NodeSpec:
    if name is None or listen is None:
        raise ConfigError(
            "with etcd, a node needs a name and the address that it listens on (--node, --listen)"
        )
    return NodeSpec(name, listen) if memory_bytes is None else NodeSpec(name, listen, memory_bytes)


_NAME_BYTES_MAX = 200


def _check_object_name(name: str) -> None:
    if not 1 <= len(name.encode()) <= _NAME_BYTES_MAX or not name.isprintable():
        raise ValueError(f"name {name!r}: use 1 to {_NAME_BYTES_MAX} bytes of printable characters")
