"""A page that one process rewrites and another reads again, beside what peers offer for that.

Each sample is one rewrite at process 1 and one read at process 0; they wait for each other over
a pipe, outside of what is measured.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from typing import Final

import numpy as np

from pybench import peers
from pybench.floor import PAGE_BYTES, Floor
from pybench.report import Row, row_of
from pybench.sampling import Batches, interleave
from pybench.sites import Group, Site
from pybench.stores import Store, open_store

READER: Final = 0
WRITER: Final = 1


def page_reread(batches: Batches) -> Iterator[Row]:
    """Reading 4 KiB after a rewrite elsewhere; floor: 64 bytes there and 4 KiB back."""
    yield from _with_stores("page_reread", READER, batches)
    yield from peers.mpi("page_reread", "get", "MPI Get and flush", batches)
    yield from peers.ray("page_reread", "get", batches)


def page_rewrite(batches: Batches) -> Iterator[Row]:
    """Rewriting 4 KiB that another has read; floor: 64 bytes there and back."""
    yield from _with_stores("page_rewrite", WRITER, batches)
    yield from peers.mpi("page_rewrite", "put", "MPI Put and flush", batches)
    yield from peers.ray("page_rewrite", "put", batches)


def page_turns(batches: Batches) -> Iterator[Row]:
    """A turn of two processes that count in one page."""
    for transport in ("unix", "tcp"):
        with Group(2, transport) as group:
            group.each(_open_turns)
            [taken] = interleave([partial(_first_turns, group)], batches)
            yield row_of("page_turns", f"giantvm {transport}", taken)
    yield from peers.mpi("page_turns", "turns", "MPI messages of 4 KiB", batches)


def _with_stores(name: str, measured: int, batches: Batches) -> Iterator[Row]:
    answer_bytes = PAGE_BYTES if measured == READER else 64
    for transport in ("unix", "tcp"):
        with Group(2, transport) as group:
            floor = Floor(group, answer_bytes)
            group.each(open_store, "region", "")
            ours = partial(_sample, group, measured)
            taken, least = interleave([ours, floor.sample], batches)
            yield row_of(name, f"giantvm {transport}", taken, floor=least)
    with ExitStack() as stack:
        for kind, variant, address in peers.stores(stack, name):
            group = stack.enter_context(Group(2, "unix", nodes=False))
            group.each(open_store, kind, address)
            [taken] = interleave([partial(_sample, group, measured)], batches)
            yield row_of(name, variant, taken)


def _sample(group: Group, measured: int, count: int) -> list[float]:
    times: list[float] = group.each(_rewrite_and_reread, count)[measured]
    return times


def _rewrite_and_reread(site: Site, count: int) -> list[float]:
    store: Store = site.kept["store"]
    return _read(site, store, count) if site.index == READER else _write(site, store, count)


def _read(site: Site, store: Store, count: int) -> list[float]:
    times = []
    for number in range(count):
        site.pipe.recv_bytes()
        began = time.perf_counter_ns()
        value = store.read()
        times.append((time.perf_counter_ns() - began) / 1000)
        assert value == number % 256, f"read {value}, written was {number % 256}"
        site.pipe.send_bytes(b"read")
    return times


def _write(site: Site, store: Store, count: int) -> list[float]:
    times = []
    for number in range(count):
        began = time.perf_counter_ns()
        store.write(number % 256)
        times.append((time.perf_counter_ns() - began) / 1000)
        site.pipe.send_bytes(b"written")
        site.pipe.recv_bytes()
    return times


def _open_turns(site: Site) -> None:
    site.kept["count"] = site.node.region("turns", PAGE_BYTES).array((1,), np.int64)
    site.kept["barrier"] = site.node.barrier("turns")


def _first_turns(group: Group, count: int) -> list[float]:
    times: list[float] = group.each(_turns, count)[0]
    return times


def _turns(site: Site, count: int) -> list[float]:
    """Microseconds a turn: half of what a turn here and one there take."""
    page = site.kept["count"]
    page[0] = 0
    site.kept["barrier"].wait()
    times = []
    for number in range(count):
        began = time.perf_counter_ns()
        mine = 2 * number + site.index
        while page[0] != mine:
            # The engine's thread may need this CPU.
            os.sched_yield()
        page[0] = mine + 1
        times.append((time.perf_counter_ns() - began) / 2000)
    site.kept["barrier"].wait()
    return times
