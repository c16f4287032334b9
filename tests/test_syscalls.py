"""System calls straight from and to pages that another node has."""

from __future__ import annotations

import os
import socket
import tempfile
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("giantvm._native", reason="the native module is not built")

import numpy as np

from cluster import Cluster, Site
from giantvm import PAGE_SIZE, Region

SIZE = 16 * PAGE_SIZE


def pattern(seed: int) -> bytes:
    return np.random.default_rng(seed).bytes(SIZE)


def region_of(site: Site) -> Region:
    if "calls" not in site.kept:
        site.kept["calls"] = site.node.region("calls", SIZE)
    region = site.kept["calls"]
    assert isinstance(region, Region)
    return region


def put(site: Site, seed: int) -> None:
    region_of(site).array(SIZE, np.uint8)[:] = np.frombuffer(pattern(seed), np.uint8)


def get(site: Site) -> bytes:
    return region_of(site).array(SIZE, np.uint8).tobytes()


def is_full(site: Site) -> bool:
    return bool(site.node.status()["userfaultfd"] == "full")


@pytest.fixture
def cluster(shared_three: Cluster) -> Cluster:
    if not shared_three.call(0, is_full):
        pytest.skip("an ordinary user has user-mode-only regions: system calls need a hold")
    return shared_three


def from_region(site: Site, way: str) -> bytes:
    """The region's bytes after a system call read them from its pages."""
    with memoryview(region_of(site)) as view, tempfile.TemporaryFile(dir=site.directory) as file:
        if way == "write":
            assert os.write(file.fileno(), view) == SIZE
        elif way == "writev":
            assert os.writev(file.fileno(), [view[:PAGE_SIZE], view[PAGE_SIZE:]]) == SIZE
        elif way == "tofile":
            region_of(site).array(SIZE // 8, np.int64).tofile(file)
        else:
            return through_socket(view)
        file.seek(0)
        return file.read()


def through_socket(view: memoryview) -> bytes:
    left, right = socket.socketpair()
    with left, right:
        found = bytearray()
        while len(found) < len(view):
            sent = left.send(view[len(found) : len(found) + 8192])
            while sent:
                part = right.recv(sent)
                found += part
                sent -= len(part)
        return bytes(found)


@pytest.mark.parametrize("way", ["write", "writev", "send", "tofile"])
def test_the_kernel_reads_remote_pages(cluster: Cluster, way: str) -> None:
    seed = len(way)
    cluster.call(2, put, seed)
    assert cluster.call(0, from_region, way) == pattern(seed)


def to_region(site: Site, way: str, seed: int) -> None:
    """A system call writes to the region's pages."""
    data = pattern(seed)
    with memoryview(region_of(site)) as view, tempfile.TemporaryFile(dir=site.directory) as file:
        if way == "recv":
            left, right = socket.socketpair()
            with left, right:
                for start in range(0, SIZE, 8192):
                    left.sendall(data[start : start + 8192])
                    got = 0
                    while got < 8192:
                        got += right.recv_into(view[start + got : start + 8192])
            return
        file.write(data)
        file.seek(0)
        if way == "read":
            assert os.readv(file.fileno(), [view]) == SIZE
        elif way == "pread":
            assert os.preadv(file.fileno(), [view[PAGE_SIZE:], view[:PAGE_SIZE]], 0) == SIZE
        else:
            array: Any = np.fromfile(file, np.uint8)
            region_of(site).array(SIZE, np.uint8)[:] = array


@pytest.mark.parametrize("way", ["read", "pread", "recv", "fromfile"])
def test_the_kernel_writes_remote_pages(cluster: Cluster, way: str) -> None:
    seed = 100 + len(way)
    cluster.call(2, put, 0)
    cluster.call(1, to_region, way, seed)
    data = pattern(seed)
    if way == "pread":
        data = data[-PAGE_SIZE:] + data[:-PAGE_SIZE]
    assert cluster.each(get) == [data] * 3


def direct(site: Site, path: str, write: bool) -> None:
    """O_DIRECT: the device reads or writes the frames, so the pages are held."""
    flags = (os.O_WRONLY if write else os.O_RDONLY) | os.O_DIRECT
    file = os.open(path, flags)
    region = region_of(site)
    try:
        with region.hold(0, SIZE, "r" if write else "w"), memoryview(region) as view:
            done = os.writev(file, [view]) if write else os.readv(file, [view])
        assert done == SIZE
    finally:
        os.close(file)


@pytest.fixture
def direct_file() -> Any:
    """A file that can be opened with O_DIRECT; not every file system can."""
    with tempfile.NamedTemporaryFile(dir=Path(__file__).parent, prefix=".direct-") as file:
        file.write(bytes(SIZE))
        file.flush()
        try:
            os.close(os.open(file.name, os.O_RDONLY | os.O_DIRECT))
        except OSError as error:
            pytest.skip(f"the file system of the tests has no O_DIRECT: {error.strerror}")
        yield file.name


def test_direct_io_with_held_pages(shared_three: Cluster, direct_file: str) -> None:
    shared_three.call(2, put, 7)
    shared_three.call(0, direct, direct_file, True)
    assert Path(direct_file).read_bytes() == pattern(7)
    shared_three.call(2, put, 8)
    shared_three.call(1, direct, direct_file, False)
    assert shared_three.each(get) == [pattern(7)] * 3
