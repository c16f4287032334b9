"""The native module: a cluster's node, its memory and its messages.

Private: the public API is `giantvm`, which checks arguments before they come here. Times are in
milliseconds; `None` waits without end. Every call that waits releases Python's lock and ends with
`KeyboardInterrupt` on Ctrl-C. Every call raises `giantvm.ForkError` in a child made by `fork`,
`giantvm.ClosedError` after `close`, and `giantvm.NodeLost` once a node is lost.
"""

from collections.abc import Callable
from typing import Self, final

from typing_extensions import disjoint_base

__all__ = [
    "NativeNode",
    "NativeRegion",
    "NativeRequest",
    "NativeVm",
    "query_nodes",
    "query_status",
    "version",
]

def version() -> str:
    """Version of the native module; equal to the package's."""

def query_status(address: str, cluster_name: str, timeout_ms: int) -> str:
    """Asks the node that listens on `address` for its status, without joining its cluster.

    Returns what `NativeNode.status_json` returns there. `giantvm.TimeoutError` if no answer comes
    in time, `giantvm.ClusterError` if nobody listens there or another cluster does.
    """

def query_nodes(etcd: list[str], cluster_name: str, timeout_ms: int) -> list[tuple[str, str, int]]:
    """Asks etcd for the nodes of a cluster: name, address and share of memory of each.

    `giantvm.ClusterError` if it does not answer, or knows no node of that cluster.
    """

@final
class NativeNode:
    """One node of a cluster: the process that makes it."""

    def __new__(
        cls,
        name: str,
        index: int,
        names: list[str],
        addresses: list[str],
        cluster_name: str,
        memory_bytes: list[int],
        late: list[bool],
        heartbeat_ms: int,
        timeout_ms: int,
        workers: int,
        wait: str,
        insecure: bool,
        connect_timeout_ms: int,
        on_lost: Callable[[str, int, str], None] | None,
        etcd: list[str],
        etcd_nodes: int | None,
    ) -> Self:
        """Joins the cluster; returns when this node is a member.

        The lists have an entry for each node, and `index` is this node's place in them; with
        addresses of `etcd` they have one for this node only, and `etcd_nodes` are awaited.
        `on_lost` is called once, with name, index and reason, in a thread of its own; the end of
        the regions waits for it for a bounded time only.
        """

    def nodes(self) -> list[tuple[str, str, int, bool]]:
        """The nodes of the cluster, in order: the fields of `NodeSpec`."""

    def epoch(self) -> int:
        """The membership epoch: it rises whenever a node joins, leaves or is lost."""

    def status_json(self) -> str:
        """What `giantvm status` shows, as a JSON object; `giantvm.status` describes it."""

    def lock(self, name: str, timeout_ms: int | None) -> tuple[int, str | None]:
        """Takes the mutex `name`, in turn; the ticket to release it. `giantvm.TimeoutError`.

        With it, the lost node that held it, or was its home, if the lock was abandoned.
        """

    def unlock(self, name: str, ticket: int) -> None:
        """Releases the mutex; `ValueError` if `ticket` does not hold it."""

    def rw_lock(self, name: str, write: bool, timeout_ms: int | None) -> tuple[int, str | None]:
        """Takes the read-write lock `name`, in turn; returns what `lock` does, and raises it."""

    def rw_unlock(self, name: str, ticket: int) -> None:
        """Releases the read-write lock; `ValueError` if `ticket` does not hold it."""

    def barrier_wait(self, name: str, parties: int | None, timeout_ms: int | None) -> None:
        """Waits until `parties` callers wait at the barrier `name`, or one for each node not lost.

        `giantvm.BarrierBroken` if a node is lost before they do, `ValueError` if others wait there
        with another number. After `giantvm.TimeoutError` the caller is not counted any more.
        """

    def counter_add(self, name: str, delta: int) -> int:
        """Adds `delta`, wrapping at 64 bits; the value before. `giantvm.CounterLost`."""

    def counter_get(self, name: str) -> int:
        """The value. `giantvm.CounterLost`."""

    def counter_set(self, name: str, value: int) -> None:
        """Sets the value. `giantvm.CounterLost` only if the loss came while it waited."""

    def counter_compare_exchange(self, name: str, expected: int, new: int) -> tuple[bool, int]:
        """Sets `new` if the value is `expected`; whether it was, and the value before.

        `giantvm.CounterLost`.
        """

    def close(self, wait: bool, timeout_ms: int | None) -> None:
        """Closes every region and leaves the cluster; more than once is fine.

        With `wait` it first waits until every node closes. `giantvm.TimeoutError` if that takes
        longer than `timeout_ms`; the node is closed then all the same.

        `BufferError` while buffers of a region are exported; then nothing is closed.
        """

@disjoint_base
class NativeRegion:
    """A region's memory at this node: a writable buffer of `size` bytes."""

    def __new__(
        cls,
        node: NativeNode,
        name: str,
        size: int | None,
        overcommit: bool,
        timeout_ms: int | None,
    ) -> Self:
        """Opens the region `name`; the first of the cluster to give a size creates it.

        Without a size, waits until another has created it. `ValueError` if it exists with another
        size, `giantvm.ClusterError` if the nodes can't hold it and `overcommit` is false. A region
        that this node has open already gives another handle on the same memory.
        """

    @property
    def name(self) -> str:
        """The name that all nodes know the region by."""

    @property
    def size(self) -> int:
        """Bytes, a multiple of 4096."""

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""

    def __len__(self) -> int: ...
    def __buffer__(self, flags: int, /) -> memoryview: ...
    def allocate(self, name: str, size: int, align: int) -> int:
        """Offset of the named block, the same on all nodes; the first call for a name places it.

        `ValueError` if the block exists with another size or alignment, `MemoryError` if the
        region has no room for it.
        """

    def _stats_json(self) -> str:
        """What this node did for the region so far, as a JSON object; `RegionStats` reads it."""

    def _lost(self) -> list[tuple[int, int]]:
        """The ranges of bytes of which nothing is left after losses, each as first and end."""

    def _restore(self, start: int, data: bytes) -> None:
        """Gives lost pages new content, for all nodes; `ValueError` if one is not lost."""

    def _prefetch(self, start: int, stop: int) -> None:
        """Starts to fetch read-only copies of the pages of a range of bytes; does not wait."""

    def _advise(self, advice: str, start: int, stop: int) -> None:
        """Says how a range will be used: `normal`, `sequential` or `random`."""

    def _hold(self, start: int, stop: int, write: bool, timeout_ms: int) -> int:
        """Fetches the pages of a range of bytes and keeps them here until `_release`; a ticket.

        `giantvm.TimeoutError` if they don't all come in time (then none is held), `ValueError` if
        the range has more pages than may be held at once.
        """

    def _release(self, ticket: int) -> None:
        """Ends a hold; `ValueError` if `ticket` is not one."""

    def close(self) -> None:
        """Unmaps the region at this node; more than once is fine.

        `BufferError` while buffers are exported; then the region stays open.
        """

@final
class NativeRequest:
    """One access of the guest to a device in Python, or its reset."""

    @property
    def device(self) -> int:
        """The device's position in the description."""

    @property
    def kind(self) -> str:
        """`read`, `write` or `reset`."""

    @property
    def offset(self) -> int:
        """Where, in the device."""

    @property
    def size(self) -> int:
        """Bytes read or written."""

    @property
    def value(self) -> int:
        """What is written."""

    def answer(self, value: int | None) -> None:
        """What was read; `None` after a write or a reset. Dropped without it, all ones."""

@final
class NativeVm:
    """One node's part of a virtual machine."""

    def __new__(
        cls,
        node: NativeNode,
        name: str,
        memory_bytes: int,
        vcpus: list[tuple[int, int | None]],
        kernel: str | None,
        kernel_format: str | None,
        cmdline: str,
        initrd: str | None,
        modules: list[tuple[str, str]],
        platform: int,
        devices: list[tuple[str, int, list[tuple[bool, int, int]], list[tuple[int, int]]]],
        virtio: list[tuple[str, int, str, str, bool, str | None, int]],
        hide: list[str],
        overcommit: bool,
        tsc: str,
        walk_shared: bool | None,
        kvm: str,
        profile: bool,
        timeout_ms: int | None,
    ) -> Self:
        """Begins it. Nodes are given by position: of a vCPU with the processor it is pinned to.

        A device is its name, its home, ranges (whether ports, first, length), and doorbells (first
        offset, length). A virtio device is its name, its home, its kind, file or tap, whether it is
        read-only, its address, and pairs of queues. `giantvm.ConfigError` if the description can't
        be, `giantvm.ClusterError` if this machine can't run it.
        """

    def run(self) -> None:
        """Has all nodes' vCPUs run, once all are ready."""

    def pause(self) -> None:
        """Has all nodes' vCPUs stop."""

    def reset(self) -> None:
        """Has the guest start again."""

    def stop(self) -> None:
        """Ends it on all nodes."""

    def fail(self, reason: str) -> None:
        """Ends it on all nodes, because a device of this node can't go on."""

    def state(self) -> tuple[str, tuple[str, int | None, str] | None]:
        """What it is doing, and at the end how it ended: kind, status, reason."""

    def wait(
        self, states: list[str], timeout_ms: int | None
    ) -> tuple[str, tuple[str, int | None, str] | None]:
        """Waits for one of `states` or the end; what `state` returns. `giantvm.TimeoutError`."""

    def ram(self) -> list[tuple[int, int, int]]:
        """Where RAM is: guest-physical address, offset in the region, length."""

    def clock(self) -> tuple[int, int, float, float]:
        """Rate of the counter in kHz, its offset, its error in ns, the drift in ppm."""

    def claims(self) -> list[tuple[bool, int, int, str, int | None]]:
        """Who answers: whether ports, first, length, device, and the node if it is another one."""

    def unclaimed(self) -> tuple[int, int, tuple[bool, int] | None, tuple[bool, int] | None]:
        """Reads and writes that nobody answered, and where the last were (whether ports, where)."""

    def set_line(self, gsi: int, high: bool) -> None:
        """Drives the line of a global system interrupt."""

    def send_msi(self, address: int, data: int) -> None:
        """Sends a message-signalled interrupt."""

    def console_write(self, data: bytes) -> int:
        """Input for the serial port; how many bytes it took."""

    def console_read(self, timeout_ms: int | None) -> bytes:
        """Waits for output of the serial port; nothing at the end. `giantvm.TimeoutError`."""

    def console_dropped(self) -> int:
        """Bytes that were not read in time."""

    def next_request(self) -> NativeRequest | None:
        """Waits for an access to a device of this node; `None` once it is closed."""

    def close(self) -> None:
        """Ends it on all nodes, if it has not; more than once is fine."""
