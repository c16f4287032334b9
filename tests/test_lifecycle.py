"""What a node and its regions leave behind, and what they say when they are used wrongly."""

from __future__ import annotations

import functools
import gc
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("giantvm._native", reason="the native module is not built")

import numpy as np

import giantvm
from cluster import alone, one_node
from giantvm import PAGE_SIZE, Node

SIZE = 64 * PAGE_SIZE


def resources() -> tuple[list[str], int, int]:
    """Open descriptors by what they are, threads, and mappings of memfds."""
    descriptors = []
    for entry in Path("/proc/self/fd").iterdir():
        try:
            target = os.readlink(entry)
        except FileNotFoundError:
            continue  # The descriptor that lists the directory.
        if "/proc/" not in target:
            descriptors.append(target.partition(":[")[0])
    threads = len(list(Path("/proc/self/task").iterdir()))
    memfds = Path("/proc/self/maps").read_text().count("memfd:")
    return sorted(descriptors), threads, memfds


def use(node: Node) -> None:
    region = node.region("used", SIZE)
    region.array(SIZE, np.uint8)[:] = 1
    with region.hold(0, PAGE_SIZE), node.mutex("m"), node.rwlock("rw").write():
        node.counter("c").add()
    node.barrier("b").wait()


def leftovers(directory: Path) -> tuple[object, object]:
    with one_node(directory) as node:  # Whatever is loaded or started only once.
        use(node)
    before = resources()
    for _ in range(5):
        with one_node(directory) as node:
            use(node)
    return before, resources()


def test_a_with_block_frees_everything() -> None:
    before, after = alone(leftovers)
    assert after == before


def sockets_left(directory: Path) -> list[str]:
    with one_node(directory) as node:
        use(node)
    return sorted(os.listdir(directory))


def test_no_socket_file_is_left() -> None:
    assert alone(sockets_left) == []


def close_in_use(directory: Path) -> tuple[int, int]:
    node = one_node(directory)
    region = node.region("used", SIZE)
    array = region.array(8, np.int64)
    array[:] = 5
    for thing in (region, node):
        with pytest.raises(BufferError):
            thing.close()
    array += 1
    total = int(array.sum())
    del array
    region.close()
    assert region.closed
    node.close()
    node.close()
    return total, resources()[2]


def test_what_is_in_use_cannot_be_closed() -> None:
    total, memfds = alone(close_in_use)
    assert total == 48
    assert memfds == 0


def outlive(directory: Path) -> tuple[int, int]:
    node = one_node(directory)
    array = node.region("used", SIZE).array(SIZE, np.uint8)
    array[:PAGE_SIZE] = 1
    del node
    gc.collect()
    array[PAGE_SIZE : 2 * PAGE_SIZE] = 2  # First touch: the engine must still answer.
    total = int(array.sum(dtype=np.int64))
    del array
    gc.collect()
    return total, resources()[2]


def test_the_engine_outlives_the_last_array() -> None:
    total, memfds = alone(outlive)
    assert total == 3 * PAGE_SIZE
    assert memfds == 0


def error_with_array(directory: Path) -> str:
    try:
        with one_node(directory) as node:
            array = node.region("used", SIZE).array(8)
            array[9] = 1
    except IndexError as error:
        return str(error)
    return ""


def test_an_error_in_the_block_is_not_hidden_by_its_arrays() -> None:
    assert "out of bounds" in alone(error_with_array)


def use_after_close(directory: Path) -> list[str]:
    node = one_node(directory)
    region = node.region("used", SIZE)
    mutex = node.mutex("m")
    node.close()
    tries: list[Callable[[], object]] = [
        lambda: node.region("other", SIZE),
        lambda: node.counter("c").add(),
        lambda: node.epoch,
        node.status,
        mutex.acquire,
        region.stats,
        lambda: memoryview(region),
        lambda: region.array(8),
        lambda: region.allocate("block", 8, 8),
    ]
    found = []
    for number, attempt in enumerate(tries):
        try:
            attempt()
        except giantvm.ClosedError:
            continue
        except BaseException as error:
            found.append(f"{number}: {error!r}")
        else:
            found.append(f"{number}: no error")
    return found


def test_everything_says_that_it_is_closed() -> None:
    assert alone(use_after_close) == []


def in_child(action: Callable[[], object]) -> int:
    """Runs `action` in a child made by `fork`; its wait status."""
    child = os.fork()
    if child == 0:
        try:
            action()
        except giantvm.ForkError as error:
            os._exit(7 if "fork" in str(error) else 8)
        except BaseException:
            os._exit(9)
        os._exit(0)
    return os.waitpid(child, 0)[1]


def fork_and_use(directory: Path) -> tuple[list[int], int, int]:
    with one_node(directory) as node:
        region = node.region("used", SIZE)
        array = region.array(8, np.int64)
        array[0] = 1
        mutex = node.mutex("m")
        codes = [
            os.waitstatus_to_exitcode(in_child(action))
            for action in (
                node.status,
                mutex.acquire,
                region.stats,
                lambda: node.region("other", SIZE),
                lambda: region.array(8),
                node.close,
            )
        ]
        touched = in_child(functools.partial(array.__getitem__, 0))
        after = int(array[0])
        del array
        use(node)
    return codes, touched, after


def test_a_forked_child_gets_a_clear_error_and_harms_nothing() -> None:
    codes, touched, after = alone(fork_and_use)
    assert codes == [7] * 6
    assert os.WIFSIGNALED(touched), "the child read memory that nothing keeps coherent"
    assert os.WTERMSIG(touched) == signal.SIGSEGV
    assert after == 1


def missing_nodes(directory: Path) -> str:
    nodes = [giantvm.NodeSpec(n, f"unix:{directory}/{n}.sock", 64 << 20) for n in "ab"]
    before = resources()
    with pytest.raises(giantvm.TimeoutError) as error:
        Node(name="a", nodes=nodes, timeout_s=0.2)
    message = str(error.value)
    del error
    gc.collect()
    assert resources() == before
    return message


def test_missing_nodes_are_named() -> None:
    assert "b" in alone(missing_nodes)


NODES = [giantvm.NodeSpec(n, f"unix:/tmp/{n}.sock") for n in "ab"]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({}, "one of them"),
        ({"config": "x.toml", "nodes": NODES}, "one of them"),
        ({"nodes": NODES}, "name the node"),
        ({"nodes": NODES, "name": "aa"}, "did you mean 'a'"),
        ({"nodes": [giantvm.NodeSpec("a", "0.0.0.0:7001")]}, "insecure=True"),
    ],
)
def test_a_node_that_makes_no_sense_is_refused(arguments: Any, told: str) -> None:
    with pytest.raises(giantvm.ConfigError, match=told):
        Node(**arguments)


def bad_names(directory: Path) -> int:
    with one_node(directory) as node:
        makers: list[Callable[[str], object]] = [
            node.region,
            node.mutex,
            node.rwlock,
            node.barrier,
            node.counter,
        ]
        refused = 0
        for make in makers:
            for name in ("", "a\nb", "x" * 256):
                with pytest.raises(ValueError, match="printable"):
                    make(name)
                refused += 1
        with pytest.raises(ValueError, match="0 parties"):
            node.barrier("b", 0)
        with pytest.raises(ValueError, match="time limit of -1"):
            node.mutex("m").acquire(timeout_s=-1)
        with pytest.raises(ValueError, match="does not fit"):
            node.counter("c").add(2**63)
    return refused


def test_names_and_numbers_are_checked() -> None:
    assert alone(bad_names) == 15
