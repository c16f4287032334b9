"""Locks, barriers and counters of the cluster: messages to the node that keeps the object."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from giantvm._native import NativeNode
from giantvm._time import milliseconds

__all__ = ["Barrier", "Counter", "Mutex", "ReadGuard", "RwLock", "WriteGuard"]

_COUNTER_MIN = -(2**63)
_COUNTER_MAX = 2**63 - 1


class Mutex:
    """A lock that one thread of the cluster holds at a time; those who wait get it in turn.

    Not re-entrant. Made by `Node.mutex`; use it in a `with` block.

    `abandoned_by` is what the last `acquire` found: the name of a lost node if that held the lock,
    or may have because it was the lock's home, so that what the lock protects may be half done;
    normally None. One holder is told.
    """

    def __init__(self, node: NativeNode, name: str) -> None:
        self._node = node
        self._ticket: int | None = None
        self.name = name
        self.abandoned_by: str | None = None

    def acquire(self, timeout_s: float | None = None) -> None:
        """Takes the lock; `giantvm.TimeoutError` after `timeout_s` seconds."""
        # Only the holder gets past this line, so that the ticket needs no lock of its own.
        self._ticket, self.abandoned_by = self._node.lock(self.name, milliseconds(timeout_s))

    def release(self) -> None:
        """Gives the lock to the next; `RuntimeError` if it is not held through this object."""
        ticket, self._ticket = self._ticket, None
        if ticket is None:
            raise RuntimeError(f"mutex {self.name!r} is not held")
        self._node.unlock(self.name, ticket)

    def __enter__(self) -> Mutex:
        self.acquire()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()


class _Guard:
    """One holding of a read-write lock: take it and give it back once, in a `with` block.

    `abandoned_by` is the name of a lost node if that held the lock for writing, or may have because
    it was the lock's home, so that what the lock protects may be half done; normally None. All
    readers are told, until one writer has been.
    """

    _write: bool

    def __init__(self, node: NativeNode, name: str, timeout_s: float | None) -> None:
        self._node = node
        self._name = name
        self._timeout_ms = milliseconds(timeout_s)
        self._ticket: int | None = None
        self.abandoned_by: str | None = None

    def __enter__(self) -> Self:
        if self._ticket is not None:
            raise RuntimeError(f"read-write lock {self._name!r}: one guard is one holding")
        self._ticket, self.abandoned_by = self._node.rw_lock(
            self._name, self._write, self._timeout_ms
        )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        ticket, self._ticket = self._ticket, None
        if ticket is not None:
            self._node.rw_unlock(self._name, ticket)


class ReadGuard(_Guard):
    """Holds a read-write lock together with other readers, in a `with` block."""

    _write = False


class WriteGuard(_Guard):
    """Holds a read-write lock alone, in a `with` block."""

    _write = True


class RwLock:
    """A lock for one writer or many readers; those who wait get it in turn.

    Made by `Node.rwlock`: `with lock.read(): ...` and `with lock.write(): ...`.
    """

    def __init__(self, node: NativeNode, name: str) -> None:
        self._node = node
        self.name = name

    def read(self, timeout_s: float | None = None) -> ReadGuard:
        """Holds the lock for reading; entering raises `giantvm.TimeoutError` after `timeout_s`."""
        return ReadGuard(self._node, self.name, timeout_s)

    def write(self, timeout_s: float | None = None) -> WriteGuard:
        """Holds the lock for writing; entering raises `giantvm.TimeoutError` after `timeout_s`."""
        return WriteGuard(self._node, self.name, timeout_s)


class Barrier:
    """Where `parties` threads of the cluster wait for each other, again and again.

    Made by `Node.barrier`. With None, one thread for each node of the cluster: one that joins while
    some wait is waited for, too.
    """

    def __init__(self, node: NativeNode, name: str, parties: int | None) -> None:
        if parties is not None and parties < 1:
            raise ValueError(f"barrier {name!r}: {parties} parties: give 1 or more")
        self._node = node
        self.name = name
        self.parties = parties

    def wait(self, timeout_s: float | None = None) -> None:
        """Waits until all parties wait; `giantvm.TimeoutError` after `timeout_s` seconds.

        What a party wrote to a region before is seen by all after. `giantvm.BarrierBroken` if a
        node is lost meanwhile, whether one of the parties or not: wait again, with those that are
        left.
        """
        self._node.barrier_wait(self.name, self.parties, milliseconds(timeout_s))


class Counter:
    """A signed 64-bit number of the cluster, 0 at first; it wraps around.

    Made by `Node.counter`. If the node that keeps it is lost, so is its value: every call but `set`
    raises `giantvm.CounterLost` until one sets it, also if nobody had used it. A `set` that the
    loss interrupts raises it, too.
    """

    def __init__(self, node: NativeNode, name: str) -> None:
        self._node = node
        self.name = name

    def add(self, delta: int = 1) -> int:
        """Adds `delta`; the value before."""
        return self._node.counter_add(self.name, _counter_value(delta))

    def value(self) -> int:
        """The value now."""
        return self._node.counter_get(self.name)

    def set(self, value: int) -> None:
        """Sets the value."""
        self._node.counter_set(self.name, _counter_value(value))

    def compare_exchange(self, expected: int, new: int) -> bool:
        """Sets `new` if the value is `expected`; whether it was."""
        exchanged, _ = self._node.counter_compare_exchange(
            self.name, _counter_value(expected), _counter_value(new)
        )
        return exchanged


def _counter_value(value: int) -> int:
    if not _COUNTER_MIN <= value <= _COUNTER_MAX:
        raise ValueError(f"{value} does not fit in a counter: it has 64 bits with sign")
    return value
