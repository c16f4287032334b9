"""The floor of what nodes say to each other: round trips over plain blocking sockets.

Process 0 waits for 64 bytes from every other process and then answers them all. With two processes
that is a round trip; with more it is the least that a meeting of them can be.
"""

from __future__ import annotations

import socket
import time
from typing import Final

from pybench.sites import Group, Site

MESSAGE_BYTES: Final = 64
PAGE_BYTES: Final = 4096


class Floor:
    """Connections among the processes of a group, beside what is measured there."""

    def __init__(self, group: Group, answer_bytes: int = MESSAGE_BYTES) -> None:
        self._group = group
        self._answer_bytes = answer_bytes
        address = group.call(0, _listen)
        group.each(_connect, address)

    def sample(self, count: int) -> list[float]:
        """Microseconds of `count` round trips."""
        times: list[float] = self._group.each(_round_trips, count, self._answer_bytes)[0]
        return times


def _listen(site: Site) -> str | tuple[str, int]:
    if site.transport == "tcp":
        listener = socket.create_server(("127.0.0.1", 0))
    else:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(site.directory / "floor.sock"))
        listener.listen()
    site.kept["listener"] = listener
    address: str | tuple[str, int] = listener.getsockname()
    return address


def _connect(site: Site, address: str | tuple[str, int]) -> None:
    family = socket.AF_INET if site.transport == "tcp" else socket.AF_UNIX
    if site.index == 0:
        listener = site.kept.pop("listener")
        streams = [listener.accept()[0] for _ in range(site.count - 1)]
        listener.close()
    else:
        streams = [socket.socket(family)]
        streams[0].connect(address)
    for stream in streams:
        if site.transport == "tcp":
            stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    site.kept["streams"] = streams


def _round_trips(site: Site, count: int, answer_bytes: int) -> list[float]:
    streams: list[socket.socket] = site.kept["streams"]
    question, answer = bytes(MESSAGE_BYTES), bytes(answer_bytes)
    times = []
    # One more than counted: the first waits for the others to begin.
    for _ in range(count + 1):
        began = time.perf_counter_ns()
        if site.index == 0:
            for stream in streams:
                stream.recv(MESSAGE_BYTES, socket.MSG_WAITALL)
            for stream in streams:
                stream.sendall(answer)
        else:
            streams[0].sendall(question)
            streams[0].recv(answer_bytes, socket.MSG_WAITALL)
        times.append((time.perf_counter_ns() - began) / 1000)
    return times[1:]
