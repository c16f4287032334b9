"""The native module: a cluster's node, its memory and its messages.

Private: the public API is `giantvm`, which checks arguments before they come here. Times are in
milliseconds; `None` waits without end. Every call that waits releases Python's lock and ends with
`KeyboardInterrupt` on Ctrl-C. Every call raises `giantvm.ForkError` in a child made by `fork`,
`giantvm.ClosedError` after `close`, and `giantvm.NodeLost` once a node is lost.
"""

from collections.abc import Callable
from typing import Self, final

from typing_extensions import disjoint_base

__all__ = ["NativeNode", "NativeRegion", "query_status", "version"]

def version() -> str:
    """Version of the native module; equal to the package's."""

def query_status(address: str, cluster_name: str, timeout_ms: int) -> str:
    """Asks the node that listens on `address` for its status, without joining its cluster.

    Returns what `NativeNode.status_json` returns there. `giantvm.TimeoutError` if no answer comes
    in time, `giantvm.ClusterError` if nobody listens there or another cluster does.
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
        heartbeat_ms: int,
        timeout_ms: int,
        workers: int,
        wait: str,
        insecure: bool,
        connect_timeout_ms: int,
        on_lost: Callable[[str, int, str], None] | None,
    ) -> Self:
        """Joins the cluster; returns when all nodes of the list are connected.

        The lists have an entry for each node, and `index` is this node's place in them. `on_lost`
        is called once, with name, index and reason, in a thread of its own; the end of the regions
        waits for it for a bounded time only.
        """

    def epoch(self) -> int:
        """The membership epoch: it rises whenever a node joins, leaves or is lost."""

    def status_json(self) -> str:
        """What `giantvm status` shows, as a JSON object; `giantvm.status` describes it."""

    def lock(self, name: str, timeout_ms: int | None) -> int:
        """Takes the mutex `name`, in turn; the ticket to release it. `giantvm.TimeoutError`."""

    def unlock(self, name: str, ticket: int) -> None:
        """Releases the mutex; `ValueError` if `ticket` does not hold it."""

    def rw_lock(self, name: str, write: bool, timeout_ms: int | None) -> int:
        """Takes the read-write lock `name`, in turn. `giantvm.TimeoutError`."""

    def rw_unlock(self, name: str, ticket: int) -> None:
        """Releases the read-write lock; `ValueError` if `ticket` does not hold it."""

    def barrier_wait(self, name: str, parties: int, timeout_ms: int | None) -> None:
        """Waits until `parties` callers wait at the barrier `name`.

        `ValueError` if others wait there with another number. After `giantvm.TimeoutError` the
        caller is not counted any more.
        """

    def counter_add(self, name: str, delta: int) -> int:
        """Adds `delta`, wrapping at 64 bits; the value before."""

    def counter_get(self, name: str) -> int:
        """The value."""

    def counter_set(self, name: str, value: int) -> None:
        """Sets the value."""

    def counter_compare_exchange(self, name: str, expected: int, new: int) -> tuple[bool, int]:
        """Sets `new` if the value is `expected`; whether it was, and the value before."""

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
