"""Clusters that etcd decides on, with a real server: they meet, and end or go on as stated."""

from __future__ import annotations

import random
import re
import signal
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Final

import pytest

pytest.importorskip("giantvm._native", reason="the native module is not built")

import giantvm.cli
from cluster import ANSWER_S, Cluster, NodeProcess, Site
from etcd import Etcd
from losing import Way, cut, kill, stop
from network import Network
from test_lost_node import load
from test_lost_recovered import check_survivors, finds_out, keep_counting, open_load

TIMEOUT_MS: Final = 3000
RESTART_MS: Final = 10_000
"""A lease that outlasts a restart of etcd."""
SERVER: Final = 3
"""The machine of a network that etcd runs on; the nodes are on those before it."""


@pytest.fixture
def etcd() -> Iterator[Etcd]:
    with Etcd() as etcd:
        yield etcd


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    with Network(SERVER + 1) as network:
        yield network


def write(site: Site, value: int) -> None:
    site.node.region("r", 4096).array((512,), "i8")[site.node.index] = value


def read(site: Site) -> list[int]:
    return [int(value) for value in site.node.region("r", 4096).array((512,), "i8")[:3]]


def where(site: Site) -> tuple[int, dict[str, str]]:
    """The epoch, and what became of each node."""
    return site.node.epoch, {it["name"]: it["state"] for it in site.node.status()["nodes"]}


def is_in_epoch(cluster: Cluster, index: int, epoch: int) -> bool:
    """Whether a node is in that epoch."""
    return bool(cluster.call(index, where)[0] == epoch)


def wait_until(what: str, done: Callable[[], object]) -> None:
    deadline = time.monotonic() + ANSWER_S
    while not done():
        assert time.monotonic() < deadline, f"still waiting: {what}"
        time.sleep(0.05)


def reason_of(node: NodeProcess) -> str | None:
    """What the node logged of the loss: `NODE: REASON`."""
    found = re.search(r"lost node (.+)", node.log())
    return found and found[1]


def ended_for(node: NodeProcess, reason: str) -> bool:
    """Whether a node has said that it ends, for that reason."""
    return f"lost node {node.name}: this node {reason}" in node.log()


def test_nodes_meet_through_etcd_and_status_finds_them(
    etcd: Etcd, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Cluster(["c", "a", "b"], etcd=etcd, timeout_ms=TIMEOUT_MS) as cluster:
        for index in range(3):
            cluster.call(index, write, index + 1)
        # Numbered by name, wherever they were started first.
        assert cluster.each(read) == [[2, 3, 1]] * 3
        file = tmp_path / "cluster.toml"
        file.write_text(f'[cluster]\nname = "test"\nnodes = 3\netcd = ["{etcd.address}"]\n')
        assert giantvm.cli.main(["status", "--config", str(file), "--interval", "0.1"]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert [line.split()[:1] for line in lines[1:4]] == [["a"], ["b"], ["c"]]
    assert giantvm.cli.main(["status", "--config", str(file)]) == 1
    assert "knows no node of" in capsys.readouterr().err


def cut_from_etcd(cluster: Cluster, victim: int) -> None:
    assert cluster.network is not None
    cluster.network.hide(victim, SERVER)


def cut_from_peers(cluster: Cluster, victim: int) -> None:
    assert cluster.network is not None
    for other in {0, 1, 2} - {victim}:
        cluster.network.hide(victim, other)


def mend(way: Way, victim: int, network: Network) -> None:
    if way is cut:
        network.mend(victim)
    elif way is cut_from_etcd:
        network.show(victim, SERVER)
    elif way is cut_from_peers:
        for other in {0, 1, 2} - {victim}:
            network.show(victim, other)


@pytest.mark.parametrize("victim", [0, 2])
@pytest.mark.parametrize("way", [kill, stop, cut, cut_from_etcd, cut_from_peers])
def test_survivors_of_any_node_agree_on_the_epoch_and_the_reason(
    way: Way, victim: int, network: Network
) -> None:
    server = Etcd(network.address(SERVER), network.namespace(SERVER))
    with server, Cluster(timeout_ms=TIMEOUT_MS, network=network, etcd=server) as cluster:
        lost = cluster.nodes[victim]
        survivors = [index for index in range(3) if index != victim]
        way(cluster, victim)
        try:
            states = {name: "lost" if name == lost.name else "up" for name in "abc"}
            for index in survivors:
                wait_until("the next epoch", partial(is_in_epoch, cluster, index, 2))
                assert cluster.call(index, where) == (2, states)
            reasons = [reason_of(cluster.nodes[index]) for index in survivors]
            assert reasons[0] is not None
            assert reasons[0].startswith(f"{lost.name}: ")
            assert reasons[0] == reasons[1]
            if way is stop:
                lost.signal(signal.SIGCONT)
            if way is not kill:
                # It has found out by itself, or from etcd; and before the others went on.
                wait_until("the victim's end", partial(reason_of, lost))
                assert (reason_of(lost) or "").startswith(f"{lost.name}: ")
        finally:
            mend(way, victim, network)


def lose_under_load(way: Way, victim: int, seed: int, network: Network, restarts: bool) -> None:
    """The others go on with every byte that is left; etcd may restart meanwhile."""
    chance = random.Random(seed)
    server = Etcd(network.address(SERVER), network.namespace(SERVER))
    timeout_ms = RESTART_MS if restarts else TIMEOUT_MS
    with server, Cluster(timeout_ms=timeout_ms, network=network, etcd=server) as cluster:
        cluster.each(open_load)
        answers = [node.begin(keep_counting, seed) for node in cluster.nodes]
        if restarts:
            server.kill()
            server.start()
        lost = cluster.nodes[victim]
        # A moment that differs from run to run: the load needs none of them to be exact.
        lost.link.poll(0.05 + chance.random() * 0.2)
        way(cluster, victim)
        try:
            others = [index for index in range(3) if index != victim]
            survivors = [cluster.nodes[index] for index in others]
            check_survivors(survivors, lost, [answers[index] for index in others])
            if way is stop:
                lost.signal(signal.SIGCONT)
            if way is not kill:
                finds_out(lost, answers[victim])
        finally:
            mend(way, victim, network)


WAYS: Final = [kill, stop, cut, cut_from_etcd, cut_from_peers]


@pytest.mark.parametrize("seed", range(6))
def test_survivors_go_on_with_what_is_left(seed: int, network: Network) -> None:
    chance = random.Random(seed)
    way = chance.choice(WAYS)
    lose_under_load(way, chance.randrange(3), seed, network, restarts=seed == 0)


@pytest.mark.long
@pytest.mark.parametrize("way", [kill, stop, cut])
@pytest.mark.parametrize("seed", range(100))
def test_a_hundred_losses_of_each_way(way: Way, seed: int, network: Network) -> None:
    lose_under_load(way, random.Random(seed).randrange(3), seed, network, restarts=seed == 0)


def test_etcd_may_restart_under_load(etcd: Etcd) -> None:
    with Cluster(timeout_ms=RESTART_MS, etcd=etcd) as cluster:
        load(cluster, 1)
        etcd.kill()
        etcd.start()
        # Whoever did not reach the server that came back would end within the lease.
        deadline = time.monotonic() + 12
        while time.monotonic() < deadline:
            assert [reason_of(node) for node in cluster.nodes] == [None] * 3
            time.sleep(0.1)
        for node in cluster.nodes:
            node.signal(signal.SIGKILL)
            node.wait()


@pytest.mark.parametrize(
    "member", [0, pytest.param(1, marks=pytest.mark.long), pytest.param(2, marks=pytest.mark.long)]
)
def test_the_cluster_goes_on_without_one_member_of_etcd_but_not_without_two(member: int) -> None:
    with Etcd(members=3) as etcd, Cluster(timeout_ms=RESTART_MS, etcd=etcd) as cluster:
        for index in range(3):
            cluster.call(index, write, index + 1)
        etcd.kill(member)
        # Whoever finds no other member would end within the lease.
        deadline = time.monotonic() + 12
        while time.monotonic() < deadline:
            assert [reason_of(node) for node in cluster.nodes] == [None] * 3
            time.sleep(0.1)
        assert cluster.each(read) == [[1, 2, 3]] * 3
        # The two that are left still decide.
        kill(cluster, 2)
        for index in range(2):
            wait_until("the next epoch", partial(is_in_epoch, cluster, index, 2))
            assert cluster.call(index, where)[1] == {"a": "up", "b": "up", "c": "lost"}
        etcd.kill((member + 1) % 3)
        for node in cluster.nodes[:2]:
            wait_until("the end of the lease", partial(ended_for, node, "can't reach etcd at"))


def test_without_etcd_every_node_ends_and_says_where_to_look(etcd: Etcd) -> None:
    with Cluster(timeout_ms=TIMEOUT_MS, etcd=etcd) as cluster:
        etcd.kill()
        for node in cluster.nodes:
            wait_until("the end of the lease", partial(reason_of, node))
            reason = reason_of(node) or ""
            assert f"{node.name}: this node can't reach etcd at {etcd.address}" in reason
            assert "check that etcd runs there" in reason


def test_a_node_is_described_in_the_list_or_where_it_starts() -> None:
    listed = giantvm.Config("test", (giantvm.NodeSpec("a", "unix:/tmp/a"),))
    with pytest.raises(giantvm.ConfigError, match="are in the cluster's list"):
        giantvm.Node(listed, "a", listen="unix:/tmp/b")
    found = giantvm.Config("test", (), etcd=("http://127.0.0.1:1",), node_count=1)
    with pytest.raises(giantvm.ConfigError, match="needs a name and the address"):
        giantvm.Node(found, "a")
    with pytest.raises(giantvm.TimeoutError, match="check that it runs there"):
        giantvm.Node(found, "a", listen="unix:/tmp/a.sock", timeout_s=0.5)
