"""System calls straight from and to pages that another node has."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("giantvm._native", reason="the native module is not built")

import numpy as np

import giantvm
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


def round_trip(site: Site, path: str) -> None:
    """Writes the region to a file, turned around page by page, and reads it back."""
    region = region_of(site)
    with open(path, "wb", buffering=0) as file:
        for start in reversed(range(0, SIZE, PAGE_SIZE)):
            region.write_to(file, start, start + PAGE_SIZE)
    with open(path, "rb", buffering=0) as file:
        assert region.read_from(file) == SIZE
        assert region.read_from(file, 0, PAGE_SIZE) == 0


def test_files_are_written_and_read_piece_by_piece(shared_three: Cluster, tmp_path: Path) -> None:
    shared_three.call(2, put, 9)
    shared_three.call(0, round_trip, str(tmp_path / "file"))
    data = pattern(9)
    pages = [data[start : start + PAGE_SIZE] for start in range(0, SIZE, PAGE_SIZE)]
    assert shared_three.each(get) == [b"".join(reversed(pages))] * 3


ORDINARY_USER = """
import os, sys, tempfile, threading
import giantvm
from giantvm import NodeSpec, PAGE_SIZE

os.setgroups([]); os.setgid(65534); os.setuid(65534)
with tempfile.TemporaryDirectory() as place:
    nodes = [NodeSpec(name, f"unix:{place}/{name}", 1 << 24) for name in "ab"]
    made = {}
    def make(name):
        made[name] = giantvm.Node(name=name, nodes=nodes)
    threads = [threading.Thread(target=make, args=(name,)) for name in "ab"]
    [thread.start() for thread in threads]; [thread.join() for thread in threads]
    here, there = (made[name].region("r", 4 * PAGE_SIZE) for name in "ab")
    print(made["a"].status()["userfaultfd"])
    memoryview(there)[:] = bytes(range(256)) * 64
    with tempfile.TemporaryFile() as file:
        try:
            with memoryview(here) as view:
                os.write(file.fileno(), view)
        except OSError as error:
            print(error.strerror)
        file.seek(0)
        here.write_to(file)
        file.seek(0)
        print(file.read() == bytes(range(256)) * 64)
        file.seek(0)
        there.read_from(file, PAGE_SIZE, 2 * PAGE_SIZE)
    threads = [threading.Thread(target=node.close) for node in made.values()]
    [thread.start() for thread in threads]; [thread.join() for thread in threads]
"""


def test_an_ordinary_user_goes_through_holds() -> None:
    if os.getuid() != 0:
        pytest.skip("only root can become an ordinary user")
    # From a folder and with a package that any user may read: the copy below is world-readable.
    with tempfile.TemporaryDirectory() as place:
        shutil.copytree(Path(giantvm.__file__).parent, Path(place, "giantvm"))
        subprocess.run(["chmod", "-R", "a+rX", place], check=True)
        environment = {**os.environ, "PYTHONPATH": place, "PYTHONDONTWRITEBYTECODE": "1"}
        done = subprocess.run(
            [sys.executable, "-c", ORDINARY_USER],
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert done.stdout.splitlines() == ["user-mode-only", "Bad address", "True"], done.stderr
