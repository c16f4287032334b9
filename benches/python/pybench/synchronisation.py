"""Barriers, locks and counters, beside socket round trips of the same processes."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Final

import numpy as np

from pybench.floor import MESSAGE_BYTES, PAGE_BYTES, Floor
from pybench.report import Row, row_of
from pybench.sampling import Batches, Sampler, interleave
from pybench.sites import Group, Site

# An object's home is decided by its name, in a way that is part of the wire format. These live at
# the first and at the last node of two or three.
AT_FIRST: Final = "lock"
AT_LAST: Final = "a"

CACHED_PAGES: Final = (0, 1000, 8000)
BARRIER_GOAL: Final = 2.0
REQUEST_S: Final = 0.0003


def barrier(batches: Batches) -> Iterator[Row]:
    """Barriers of 2 and 3 nodes that have cached any number of pages; floor: a round trip."""
    for count in (2, 3):
        for transport in ("unix", "tcp"):
            with Group(count, transport) as group:
                floor = Floor(group)
                group.each(_open_pages, max(CACHED_PAGES))
                for pages in CACHED_PAGES:
                    group.call(count - 1, _write_pages, pages)
                    group.each(_read_pages, pages)
                    ours = partial(_first, group, _meet)
                    taken, least = interleave([ours, floor.sample], batches)
                    variant = f"{count} nodes {transport}, {pages} pages cached"
                    yield row_of("barrier", variant, taken, floor=least, goal=BARRIER_GOAL)


def mutex(batches: Batches) -> Iterator[Row]:
    """Taking and giving back a mutex, and handing it over; floor: the same messages, no more."""
    for transport in ("unix", "tcp"):
        with Group(2, transport) as group:
            floor = Floor(group)
            samplers: list[Sampler] = [
                partial(group.call, 0, _lock_alone, AT_FIRST),
                partial(group.call, 0, _lock_alone, AT_LAST),
                partial(_handed_over, group, "mutex"),
                partial(_handed_over, group, "socket"),
                floor.sample,
            ]
            local, remote, handed, one_way, trips = interleave(samplers, batches)
            trips = [2 * trip for trip in trips]
            yield row_of("mutex", f"{transport}, home here", local)
            yield row_of("mutex", f"{transport}, home at the other node", remote, floor=trips)
            yield row_of("mutex", f"{transport}, to one who waits", handed, floor=one_way)


def counter(batches: Batches) -> Iterator[Row]:
    """Adding to a counter; floor: one socket round trip."""
    for transport in ("unix", "tcp"):
        with Group(2, transport) as group:
            floor = Floor(group)
            samplers = [
                partial(group.call, 0, _count, AT_FIRST),
                partial(group.call, 0, _count, AT_LAST),
            ]
            local, remote, least = interleave([*samplers, floor.sample], batches)
            yield row_of("counter", f"{transport}, home here", local)
            yield row_of("counter", f"{transport}, home at the other node", remote, floor=least)


def _first(group: Group, function: Callable[..., Any], count: int) -> list[float]:
    """Runs it in all processes; what process 0 measured."""
    times: list[float] = group.each(function, count)[0]
    return times


def _open_pages(site: Site, pages: int) -> None:
    region = site.node.region("cached", pages * PAGE_BYTES)
    site.kept["pages"] = region.array((pages, PAGE_BYTES), np.uint8)
    site.kept["barrier"] = site.node.barrier(AT_FIRST)


def _write_pages(site: Site, pages: int) -> None:
    site.kept["pages"][:pages] = 1


def _read_pages(site: Site, pages: int) -> None:
    assert int(site.kept["pages"][:pages, 0].sum()) == pages


def _meet(site: Site, count: int) -> list[float]:
    barrier = site.kept["barrier"]
    # One more than counted: the first waits for the others to begin.
    return _timed(barrier.wait, count + 1)[1:]


def _lock_alone(site: Site, name: str, count: int) -> list[float]:
    mutex = site.node.mutex(name)

    def once() -> None:
        with mutex:
            pass

    return _timed(once, count)


def _handed_over(group: Group, what: str, count: int) -> list[float]:
    """From the release at one node to the end of the wait at the other, in both directions."""
    (given_0, taken_0), (given_1, taken_1) = group.each(_hand_over, what, count)
    pairs = [*zip(given_0, taken_1, strict=True), *zip(given_1, taken_0, strict=True)]
    return [(taken - given) / 1000 for given, taken in pairs]


def _hand_over(site: Site, what: str, count: int) -> tuple[list[int], list[int]]:
    """When this process gave and took: one clock for all processes of a machine."""
    give, take = _MEANS[what](site)
    given, taken = [], []
    for number in range(count):
        if number % 2 == site.index:
            site.pipe.recv_bytes()
            # Until the other one's request is at the mutex's home.
            time.sleep(REQUEST_S)
            given.append(time.monotonic_ns())
            give()
            # Or this node's next request could overtake the other one's after all.
            site.pipe.recv_bytes()
        else:
            site.pipe.send_bytes(b"waiting")
            take()
            taken.append(time.monotonic_ns())
            site.pipe.send_bytes(b"taken")
    if what == "mutex" and count % 2 == site.index:
        give()
    return given, taken


Means = tuple[Callable[[], object], Callable[[], object]]


def _mutex_means(site: Site) -> Means:
    """Process 0 begins with the mutex."""
    mutex = site.node.mutex(AT_FIRST)
    if site.index == 0:
        mutex.acquire()
        site.pipe.send_bytes(b"taken")
    else:
        site.pipe.recv_bytes()
    return mutex.release, mutex.acquire


def _socket_means(site: Site) -> Means:
    stream: socket.socket = site.kept["streams"][0]
    give = partial(stream.sendall, bytes(MESSAGE_BYTES))
    return give, partial(stream.recv, MESSAGE_BYTES, socket.MSG_WAITALL)


_MEANS: Final[dict[str, Callable[[Site], Means]]] = {
    "mutex": _mutex_means,
    "socket": _socket_means,
}


def _count(site: Site, name: str, count: int) -> list[float]:
    counter = site.node.counter(name)
    return _timed(partial(counter.add, 1), count)


def _timed(function: Callable[[], object], count: int) -> list[float]:
    times = []
    for _ in range(count):
        began = time.perf_counter_ns()
        function()
        times.append((time.perf_counter_ns() - began) / 1000)
    return times
