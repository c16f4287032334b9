"""A region: shared memory as a buffer and as numpy arrays."""

from __future__ import annotations

import contextlib
import math
import operator
import os
from collections.abc import Iterator, Sequence
from typing import Any, Literal, Protocol, SupportsIndex, TypeVar, overload

import numpy as np
import numpy.typing as npt

from giantvm._native import NativeRegion
from giantvm._time import milliseconds
from giantvm.stats import RegionStats

__all__ = ["PAGE_SIZE", "Advice", "Region"]

PAGE_SIZE = 4096
"""Bytes in a page, the unit that moves between nodes."""

Advice = Literal["normal", "sequential", "random"]
"""How a range will be used: see `Region.advise`."""


class HasFileno(Protocol):
    """A file, a socket, or anything else with a descriptor."""

    def fileno(self) -> int:
        """The descriptor."""


_Scalar = TypeVar("_Scalar", bound=np.generic)
_Shape = SupportsIndex | Sequence[SupportsIndex]


class Region(NativeRegion):
    """Memory that all nodes of the cluster share and use as plain memory.

    Made by `Node.region`. A region is a writable buffer: `memoryview(region)`,
    `numpy.frombuffer(region)` and `region.array(...)` read and write it with no call to acquire or
    release. Each page of 4096 bytes has one writer or many readers at a time, so that data used by
    different nodes at the same time should sit on different pages.
    """

    @overload
    def array(
        self, shape: _Shape, *, name: str | None = None, offset: int | None = None
    ) -> npt.NDArray[np.float64]: ...
    @overload
    def array(
        self,
        shape: _Shape,
        dtype: type[_Scalar] | np.dtype[_Scalar],
        *,
        name: str | None = None,
        offset: int | None = None,
    ) -> npt.NDArray[_Scalar]: ...
    @overload
    def array(
        self,
        shape: _Shape,
        dtype: npt.DTypeLike,
        *,
        name: str | None = None,
        offset: int | None = None,
    ) -> npt.NDArray[Any]: ...
    def array(
        self,
        shape: _Shape,
        dtype: npt.DTypeLike = np.float64,
        *,
        name: str | None = None,
        offset: int | None = None,
    ) -> npt.NDArray[Any]:
        """A numpy array in the region's memory, in C order.

        With `name` it has pages of its own, which the first call for the name places; the same name
        gives the same memory on every node. Otherwise it begins at byte `offset` (default 0), and
        placing it is up to the caller. Nothing is written: memory nobody has written is zero.

        Raises `ValueError` if the array does not fit, if a named array exists with another size, or
        if the dtype holds Python objects, which mean nothing to another process; `MemoryError` if
        there is no room for a new named array.
        """
        kind = np.dtype(dtype)
        if kind.hasobject:
            raise ValueError(f"dtype {kind} holds references to Python objects: use a plain one")
        if kind.itemsize == 0:
            raise ValueError(f"dtype {kind} has no size: give one, like 'S16'")
        dimensions = _dimensions(shape)
        count = math.prod(dimensions)
        if name is not None:
            if offset is not None:
                raise ValueError("give a name or an offset, not both")
            start = self.allocate(name, max(count * kind.itemsize, 1), PAGE_SIZE)
        else:
            start = 0 if offset is None else operator.index(offset)
            self._check(start, start + count * kind.itemsize)
            if start % kind.alignment:
                raise ValueError(f"offset {start} is not a multiple of {kind.alignment}")
        flat: npt.NDArray[Any] = np.frombuffer(memoryview(self), kind, count, start)
        return flat.reshape(dimensions)

    def stats(self) -> RegionStats:
        """What this node did for the region since it was opened."""
        return RegionStats.from_json(self._stats_json())

    def write_to(self, file: int | HasFileno, start: int = 0, stop: int | None = None) -> None:
        """Writes bytes `start` to `stop` to a file, pipe or socket, holding them meanwhile.

        Works on every node, also where the status says `user-mode-only`, and for files opened with
        `O_DIRECT`. Raises what `os.write` and `hold` raise.
        """
        for first, end in _pieces(*self._range(start, stop)):
            with self.hold(first, end, "r"), memoryview(self) as view:
                done = first
                while done < end:
                    done += os.write(_fileno(file), view[done:end])

    def read_from(self, file: int | HasFileno, start: int = 0, stop: int | None = None) -> int:
        """Reads from a file, pipe or socket into bytes `start` to `stop`, holding them meanwhile.

        Returns how many bytes were read: fewer than asked for only at the end of the file. Works
        where `write_to` does. Raises what `os.readv` and `hold` raise.
        """
        begin, last = self._range(start, stop)
        for first, end in _pieces(begin, last):
            with self.hold(first, end, "w"), memoryview(self) as view:
                done = first
                while done < end:
                    count = os.readv(_fileno(file), [view[done:end]])
                    if count == 0:
                        return done - begin
                    done += count
        return last - begin

    def lost(self) -> list[range]:
        """The ranges of bytes of which nothing is left since a node was lost, lowest first.

        They are whole pages. Touching one ends this process; system calls on them raise `OSError`,
        and `hold` raises `giantvm.PagesLost`.
        """
        return [range(first, end) for first, end in self._lost()]

    def restore(
        self, where: range, data: bytes | bytearray | memoryview | npt.NDArray[Any]
    ) -> None:
        """Gives a range of lost bytes the content `data`: from then on all nodes find it there.

        `where` is one of `lost()`, or a part of one that begins and ends with pages. Waits while a
        loss is being dealt with.

        Raises `ValueError` if part of it is not lost (any more: another node may have been faster)
        or the lengths differ, and `MemoryError` if the nodes have no room. The message says how
        much has the content all the same.
        """
        given = data.tobytes() if isinstance(data, np.ndarray) else bytes(data)
        if where.step != 1 or len(where) != len(given):
            raise ValueError(f"{len(given)} bytes for {where}: give as many, and a range of step 1")
        self._check(where.start, where.stop)
        if where.start % PAGE_SIZE or where.stop % PAGE_SIZE:
            raise ValueError(f"{where} are not whole pages of {PAGE_SIZE} bytes")
        self._restore(where.start, given)

    def prefetch(self, start: int = 0, stop: int | None = None) -> None:
        """Starts to fetch the pages of bytes `start` to `stop` for reading, and returns at once.

        At most 64 MiB from `start` on. Pages that another node is about to use are left out.
        """
        self._prefetch(*self._range(start, stop))

    def advise(self, advice: Advice, start: int = 0, stop: int | None = None) -> None:
        """Says how this node will use bytes `start` to `stop`.

        `sequential` fetches ahead at once, `random` never does, `normal` (the default) finds out.
        """
        if advice not in ("normal", "sequential", "random"):
            raise ValueError(f"advice {advice!r}: use 'normal', 'sequential' or 'random'")
        self._advise(advice, *self._range(start, stop))

    @contextlib.contextmanager
    def hold(
        self,
        start: int = 0,
        stop: int | None = None,
        mode: Literal["r", "w"] = "r",
        timeout_s: float = 10.0,
    ) -> Iterator[None]:
        """Fetches the pages of bytes `start` to `stop` and keeps them here for a `with` block.

        `"r"` keeps them readable, `"w"` writable. Needed around what the processor's faults do not
        cover: direct I/O, io_uring, zero-copy sends and other device access to the memory, and, on
        nodes whose status says `user-mode-only`, every system call. Other nodes wait meanwhile, so
        hold few pages, briefly: number and time are bounded.

        Raises `giantvm.TimeoutError` if the pages do not all come within `timeout_s` seconds,
        `giantvm.PagesLost` if one was lost with a node, and `ValueError` if they are more than may
        be held at once.
        """
        if mode not in ("r", "w"):
            raise ValueError(f"mode {mode!r}: use 'r' or 'w'")
        first, end = self._range(start, stop)
        ticket = self._hold(first, end, mode == "w", milliseconds(timeout_s))
        try:
            yield
        finally:
            self._release(ticket)

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"{self.size} bytes"
        return f"<giantvm.Region {self.name!r}: {state}>"

    def _range(self, start: int, stop: int | None) -> tuple[int, int]:
        end = self.size if stop is None else stop
        self._check(start, end)
        return start, end

    def _check(self, start: int, stop: int) -> None:
        if not 0 <= start <= stop <= self.size:
            raise ValueError(
                f"bytes {start} to {stop} are not in region {self.name!r}, "
                f"which has {self.size} bytes"
            )


_PIECE = 1 << 20
"""Bytes that `write_to` and `read_from` hold at a time: others wait for no more than that."""


def _pieces(start: int, stop: int) -> Iterator[tuple[int, int]]:
    for first in range(start, stop, _PIECE):
        yield first, min(first + _PIECE, stop)


def _fileno(file: int | HasFileno) -> int:
    return file if isinstance(file, int) else file.fileno()


def _dimensions(shape: _Shape) -> tuple[int, ...]:
    lengths = (shape,) if isinstance(shape, SupportsIndex) else tuple(shape)
    dimensions = tuple(operator.index(length) for length in lengths)
    if any(length < 0 for length in dimensions):
        raise ValueError(f"shape {dimensions} has a negative length")
    return dimensions
