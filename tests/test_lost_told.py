"""A node is lost without which the others can't go on: what they are told, and what it is told.

What others are told that go on: tests/test_lost_recovered.py and tests/test_sync_lost.py.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("giantvm._native", reason="the native module is not built")

import numpy as np

import giantvm
from cluster import ANSWER_S, EXIT_LOST, Cluster, Site
from giantvm import PAGE_SIZE
from network import Network

PAGES = 4096
TIMEOUT_MS = 1000
SILENT = r"this node can't reach the deciding node `a`: no answer for \d+ ms"
"""Why a node is out when the first of the list neither speaks nor hangs up."""


def take_all(site: Site) -> None:
    """Whatever others may wait for."""
    site.node.mutex("mutex").acquire()
    site.node.rwlock("rwlock").write().__enter__()
    region = site.node.region("load", PAGES * PAGE_SIZE)
    region.array(PAGES * PAGE_SIZE, np.uint8)[:] = 1
    site.kept["load"] = region


def open_load(site: Site) -> None:
    site.kept["load"] = site.node.region("load", PAGES * PAGE_SIZE)


def wait_for(site: Site, kind: str) -> None:
    if kind == "mutex":
        site.node.mutex("mutex").acquire()
    elif kind == "read lock":
        site.node.rwlock("rwlock").read().__enter__()
    elif kind == "write lock":
        site.node.rwlock("rwlock").write().__enter__()
    elif kind == "barrier":
        site.node.barrier("barrier").wait()
    elif kind == "region":
        site.node.region("nobody makes it")
    elif kind == "hold":
        site.kept["load"].hold(0, 16 * PAGE_SIZE, "w").__enter__()
    else:
        for number in range(32):  # The home of one of them is the lost node.
            site.node.counter(f"counter {number}").add()


KINDS = ["mutex", "read lock", "write lock", "barrier", "region", "hold", "counter"]


@pytest.mark.parametrize("kind", KINDS)
def test_who_waits_learns_of_the_loss(kind: str) -> None:
    with Cluster(timeout_ms=TIMEOUT_MS) as cluster:
        cluster.call(0, take_all)
        for index in (1, 2):
            cluster.call(index, open_load)
        cluster.nodes[0].stop()
        waiting = [cluster.nodes[index].begin(wait_for, kind) for index in (1, 2)]
        for answer in waiting:
            with pytest.raises(giantvm.NodeLost, match=f"node a is lost: {SILENT}"):
                answer.result()
        for node in cluster.nodes[1:]:
            said = [line for line in node.log().splitlines() if "lost node" in line]
            assert len(said) == 1, node.log()
            assert re.fullmatch(rf"giantvm\[{node.name}\]: lost node a: {SILENT}", said[0])
        cluster.nodes[0].kill()


def own_pages(site: Site) -> None:
    site.kept["load"] = site.node.region("load", PAGES * PAGE_SIZE)
    site.kept["load"].array(PAGES * PAGE_SIZE, np.uint8)[:] = 1


def write_lost_pages(site: Site) -> int:
    """A system call on lost memory fails; the errno."""
    region = site.kept["load"]
    assert site.lost.wait(ANSWER_S), "the node was not told of the loss"
    reader, writer = os.pipe()
    try:
        with memoryview(region) as view:
            os.write(writer, view[:PAGE_SIZE])
    except OSError as error:
        return error.errno or 0
    finally:
        os.close(reader)
        os.close(writer)
    return 0


def test_a_system_call_on_lost_pages_raises() -> None:
    with Cluster(timeout_ms=TIMEOUT_MS) as cluster:
        cluster.call(0, open_load)
        cluster.call(2, own_pages)
        answer = cluster.nodes[0].begin(write_lost_pages)
        cluster.nodes[2].kill()
        assert answer.result() != 0


def try_everything(site: Site) -> list[str]:
    assert site.lost.wait(ANSWER_S), "the node was not told of the loss"
    tries: list[Callable[[], object]] = [
        lambda: site.node.region("new", PAGE_SIZE),
        lambda: site.node.counter("x").add(),
        lambda: site.node.mutex("x").acquire(),
        lambda: site.node.barrier("x").wait(),
    ]
    found = []
    for attempt in tries:
        try:
            attempt()
        except giantvm.NodeLost as error:
            found.append(str(error))
    return found


def test_nothing_new_begins_after_the_end() -> None:
    with Cluster(timeout_ms=TIMEOUT_MS) as cluster:
        answer = cluster.nodes[1].begin(try_everything)
        cluster.nodes[0].kill()
        errors = answer.result()
        assert len(errors) == 4
        assert all("node a is lost" in error for error in errors)


def epoch_and_states(site: Site) -> tuple[int, dict[str, str]]:
    return site.node.epoch, {n["name"]: n["state"] for n in site.node.status()["nodes"]}


def leave(site: Site) -> None:
    site.node.close(wait=False)


def test_a_node_that_leaves_is_no_loss() -> None:
    with Cluster(timeout_ms=TIMEOUT_MS) as cluster:
        before, _ = cluster.call(0, epoch_and_states)
        cluster.call(2, leave)
        after, states = cluster.call(0, epoch_and_states)
        assert after > before
        assert states["c"] == "left"
        assert states["b"] == "up"
        assert not (cluster.directory / "a.lost").exists()


def read_all(site: Site) -> int:
    # Without Python's lock, as it is for so many bytes: the callback can run.
    with memoryview(site.kept["load"]) as view:
        return zlib.crc32(view)


def test_the_callback_comes_before_the_access_ends() -> None:
    with Cluster(timeout_ms=TIMEOUT_MS) as cluster:
        cluster.call(1, open_load)
        cluster.call(0, own_pages)
        cluster.nodes[0].stop()
        cluster.nodes[1].begin(read_all)
        assert cluster.nodes[1].wait() == EXIT_LOST
        assert (cluster.directory / "b.lost").read_text() == "a"
        cluster.nodes[0].kill()


def use_own_pages(site: Site) -> tuple[int, str]:
    """What is left of pages that this node alone has; and what a call says."""
    assert site.lost.wait(ANSWER_S), "the node was not told of the loss"
    array = site.kept["load"].array(PAGES * PAGE_SIZE, np.uint8)
    array += 1
    total = int(array.sum(dtype=np.int64))
    del array
    try:
        site.node.counter("x").add()
    except giantvm.NodeLost as error:
        return total, str(error)
    return total, ""


def test_pages_that_a_node_owns_alone_stay_its_own() -> None:
    with Cluster(timeout_ms=TIMEOUT_MS) as cluster:
        cluster.call(1, own_pages)
        cluster.nodes[0].kill()
        total, told = cluster.call(1, use_own_pages)
        assert total == 2 * PAGES * PAGE_SIZE
        assert "node a is lost" in told


def boot_ms() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME) * 1000


def test_a_node_that_resumes_learns_that_it_is_out() -> None:
    with Cluster(timeout_ms=TIMEOUT_MS) as cluster:
        cluster.call(2, own_pages)
        lost = cluster.nodes[2]
        lost.stop()
        stopped_ms = boot_ms()
        cluster.call(0, wait_for_loss)
        while boot_ms() < stopped_ms + 2 * TIMEOUT_MS:
            time.sleep(0.05)
        lost.signal(signal.SIGCONT)
        _, told = cluster.call(2, use_own_pages)
        why = r"this node was stopped for \d+ ms; the others go on without it"
        assert re.fullmatch(f"node c is lost: {why}", told), told
        assert re.search(rf"^giantvm\[c\]: lost node c: {why}$", lost.log(), re.MULTILINE)
        assert (cluster.directory / "c.lost").read_text() == "c"


def wait_for_loss(site: Site) -> float:
    """When this node was told, in milliseconds of the machine's clock."""
    assert site.lost.wait(ANSWER_S), "the node was not told of the loss"
    return boot_ms()


def wait_for_epoch(site: Site, epoch: int) -> float:
    """When the cluster went on without the lost node."""
    while site.node.epoch < epoch:
        time.sleep(0.001)
    return boot_ms()


@pytest.mark.parametrize("victim", [0, 1, 2])
def test_who_cant_reach_the_deciding_node_stops_before_the_others_go_on(victim: int) -> None:
    with Network(3) as network, Cluster(timeout_ms=TIMEOUT_MS, network=network) as cluster:
        epoch, _ = cluster.call(0, epoch_and_states)
        others = [node for node in cluster.nodes if node is not cluster.nodes[victim]]
        network.cut(victim)
        ended = cluster.nodes[victim].begin(wait_for_loss)
        if victim > 0:
            went_on = [node.begin(wait_for_epoch, epoch + 1) for node in others]
            ended_ms = ended.result()
            assert all(ended_ms < answer.result() for answer in went_on)
        alone = others if victim == 0 else [cluster.nodes[victim]]
        why = r"this node can't reach the deciding node `a`: no answer for \d+ ms"
        for node in alone:
            node.begin(wait_for_loss).result()
            said = re.search(rf"^giantvm\[{node.name}\]: lost node a: {why}$", node.log(), re.M)
            assert said, node.log()


SLOW_CALLBACK = """
import sys, time
from giantvm import Config, Node, NodeSpec

def on_lost(lost):
    print("begun", flush=True)
    time.sleep(0.5)
    print("done", flush=True)

nodes = tuple(NodeSpec(n, f"unix:{sys.argv[1]}/{n}.sock", 64 << 20) for n in "ab")
node = Node(Config("test", nodes, timeout_ms=1000), sys.argv[2], on_lost=on_lost)
print("up", flush=True)
sys.stdin.readline()
node.close(wait=False)
"""


def test_a_program_that_ends_waits_for_its_callback(tmp_path: Path) -> None:
    def start(name: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", SLOW_CALLBACK, os.fspath(tmp_path), name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    with start("a") as survivor, start("b") as lost:
        assert survivor.stdout is not None
        assert lost.stdout is not None
        try:
            assert survivor.stdout.readline() == lost.stdout.readline() == "up\n"
            lost.kill()
            assert survivor.stdout.readline() == "begun\n"
            rest, _ = survivor.communicate("\n", ANSWER_S)
            assert rest == "done\n"
            assert survivor.returncode == 0
        finally:
            survivor.kill()
            lost.kill()
