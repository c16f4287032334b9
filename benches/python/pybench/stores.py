"""Ways to let another process see 4 KiB: a region's page, and what peers offer instead."""

from __future__ import annotations

from multiprocessing.shared_memory import SharedMemory
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt

from pybench.floor import PAGE_BYTES
from pybench.sites import Site

Bytes = npt.NDArray[np.uint8]


class Store(Protocol):
    """4 KiB that one process writes and another reads."""

    def write(self, value: int) -> None:
        """Fills it with `value`."""

    def read(self) -> int:
        """Copies it here; its first byte."""


class Memory:
    """Memory that both processes have mapped: a region's page, or shared memory of one host."""

    def __init__(self, page: Bytes) -> None:
        self._page = page
        self._copy = np.empty_like(page)

    def write(self, value: int) -> None:
        """Fills the page."""
        self._page[:] = value

    def read(self) -> int:
        """Copies the page."""
        np.copyto(self._copy, self._page)
        return int(self._copy[0])


class Redis:
    """A value of a Redis server."""

    def __init__(self, url: str) -> None:
        import redis

        self._client: Any = redis.Redis.from_url(url)

    def write(self, value: int) -> None:
        """SET."""
        self._client.set("page", bytes([value]) * PAGE_BYTES)

    def read(self) -> int:
        """GET."""
        return int(self._client.get("page")[0])


def open_store(site: Site, kind: str, address: str) -> None:
    """Opens the store in this process, as `site.kept["store"]`."""
    site.kept["store"] = _OPENERS[kind](site, address)


def _region(site: Site, _: str) -> Store:
    return Memory(site.node.region("page", PAGE_BYTES).array((PAGE_BYTES,), np.uint8))


def _shared_memory(site: Site, name: str) -> Store:
    memory = SharedMemory(name)
    # Kept, because an array on it does not keep it mapped.
    site.kept["memory"] = memory
    return Memory(np.ndarray((PAGE_BYTES,), np.uint8, memory.buf))


def _redis(_: Site, url: str) -> Store:
    return Redis(url)


_OPENERS: Final = {"region": _region, "shared_memory": _shared_memory, "redis": _redis}
