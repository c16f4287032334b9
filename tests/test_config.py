"""The cluster file: what is read, and what mistakes are told."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from giantvm.config import NODES_MAX, Config, NodeSpec, parse_size
from giantvm.errors import ConfigError

GOOD = """
[cluster]
name = "demo"
heartbeat_ms = 50
timeout_ms = 1000
workers = 2
wait = "busy"

[[node]]
name = "a"
listen = "unix:/run/giantvm/a.sock"
memory = "2GiB"

[[node]]
name = "b"
listen = "127.0.0.1:7001"
"""


def test_a_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "cluster.toml"
    path.write_text(GOOD)
    config = Config.load(path)
    assert config == Config(
        "demo",
        (
            NodeSpec("a", "unix:/run/giantvm/a.sock", 2 << 30),
            NodeSpec("b", "127.0.0.1:7001", 1 << 30),
        ),
        heartbeat_ms=50,
        timeout_ms=1000,
        workers=2,
        wait="busy",
    )
    assert config.source == str(path)
    assert config.index("b") == 1
    assert config.node("a").memory_bytes == 2 << 30


def test_what_is_left_out_has_defaults() -> None:
    config = Config.parse('[cluster]\nname = "x"\n[[node]]\nname = "a"\nlisten = "[::1]:70"\n')
    assert (config.heartbeat_ms, config.timeout_ms, config.workers) == (100, 2000, 1)
    assert config.wait == "adaptive"


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("heartbeat_ms", "hartbeat_ms", "unknown key 'hartbeat_ms' (did you mean 'heartbeat_ms'?)"),
        ("[cluster]", "[clusters]", "unknown key 'clusters' (did you mean 'cluster'?)"),
        (
            "memory =",
            "memroy =",
            "[[node]] number 1: unknown key 'memroy' (did you mean 'memory'?)",
        ),
        ('name = "demo"', "", "[cluster]: name is missing"),
        ('listen = "127.0.0.1:7001"', "", "[[node]] number 2: listen is missing"),
        ("workers = 2", 'workers = "2"', "workers must be a whole number, not '2'"),
        ("workers = 2", "workers = true", "workers must be a whole number, not True"),
        ("workers = 2", "workers = 2.0", "workers must be a whole number, not 2.0"),
        ("workers = 2", "workers = 0", "workers is 0: give between 1 and 64"),
        ('"busy"', '"lazy"', "wait is 'lazy': use one of adaptive, blocking, busy"),
        ('"2GiB"', '"2GB"', "node 'a': memory: '2GB' is not a size"),
        ('"2GiB"', '"1MiB"', "node 'a': memory is 1048576 bytes: give between 2MiB"),
        ('"2GiB"', '"999TiB"', "more than a process can map"),
        ("timeout_ms = 1000", "timeout_ms = 299", "less than 6 heartbeats of 50 ms"),
        ("heartbeat_ms = 50", "heartbeat_ms = 4", "heartbeat_ms is 4: give between 5 and"),
        ('name = "b"', 'name = "a"', "two nodes have the name 'a'"),
        ("127.0.0.1:7001", "unix:/run/giantvm/a.sock", "two nodes have the listen"),
        ('name = "b"', 'name = "b c"', "node 'b c': use 1 to 63 letters"),
        ("unix:/run/giantvm/a.sock", "unix:a.sock", "needs an absolute path"),
        ("unix:/run", "unix:/" + 100 * "r", "longer than 107 bytes"),
        ("127.0.0.1:7001", "127.0.0.1", "is neither unix:/PATH nor HOST:PORT"),
        ("127.0.0.1:7001", "::1:7001", "write an IPv6 address in brackets"),
        ("127.0.0.1:7001", "127.0.0.1:0", "not between 1 and 65535"),
        ("127.0.0.1:7001", "127.0.0.1:65536", "not between 1 and 65535"),
        ("127.0.0.1:7001", "127.0.0.1:http", "not between 1 and 65535"),
        ("[[node]]", "[node]", ""),
        ("[cluster]", "[cluster", "not valid TOML"),
    ],
)
def test_mistakes_are_named(old: str, new: str, told: str) -> None:
    assert old in GOOD
    with pytest.raises(ConfigError) as error:
        Config.parse(GOOD.replace(old, new, 1), source="some.toml")
    assert str(error.value).startswith("some.toml: ")
    assert told in str(error.value)


def test_one_node_table_is_told_apart_from_a_list() -> None:
    with pytest.raises(ConfigError, match=r"write \[\[node\]\] with two brackets"):
        Config.parse('[cluster]\nname = "x"\n[node]\nname = "a"\n')


def test_no_node_and_no_cluster() -> None:
    with pytest.raises(ConfigError, match="there is no node"):
        Config.parse('[cluster]\nname = "x"\n')
    with pytest.raises(ConfigError, match=r"the \[cluster\] table is missing"):
        Config.parse("")


def test_too_many_nodes() -> None:
    nodes = tuple(NodeSpec(f"n{i}", f"unix:/n{i}") for i in range(NODES_MAX + 1))
    assert len(Config("x", nodes[:-1]).nodes) == NODES_MAX
    with pytest.raises(ConfigError, match="65 nodes are more than the 64"):
        Config("x", nodes)


LATE = """
[cluster]
name = "x"
[[node]]
name = "a"
listen = "unix:/a"
[[node]]
name = "b"
listen = "unix:/b"
late = true
"""


def test_a_node_may_be_late_but_not_the_first() -> None:
    assert [node.late for node in Config.parse(LATE).nodes] == [False, True]
    first = LATE.replace('listen = "unix:/a"', 'listen = "unix:/a"\nlate = true')
    with pytest.raises(ConfigError, match="node 'a' is first in the list, and can't be late"):
        Config.parse(first)
    with pytest.raises(ConfigError, match="node 'b' can't be late: a virtual machine needs all"):
        Config.parse(LATE + '[vm]\nmemory = "64MiB"\nvcpus = ["a"]\nkernel = "x"\n')
    with pytest.raises(ConfigError, match="late must be true or false, not 'yes'"):
        Config.parse(LATE.replace("true", '"yes"'))


def test_an_unknown_node_is_named_with_the_closest() -> None:
    config = Config("x", (NodeSpec("alpha", "unix:/a"), NodeSpec("beta", "unix:/b")))
    with pytest.raises(ConfigError, match=r"no node 'alpa' \(did you mean 'alpha'\?\)"):
        config.index("alpa")


@pytest.mark.parametrize(
    ("listen", "local"),
    [
        ("unix:/a", True),
        ("127.0.0.1:1", True),
        ("127.9.9.9:1", True),
        ("[::1]:1", True),
        ("localhost:1", True),
        ("0.0.0.0:1", False),
        ("10.0.0.1:1", False),
        ("[::]:1", False),
        ("localhost.example:1", False),
    ],
)
def test_only_local_addresses_go_without_insecure(listen: str, local: bool) -> None:
    config = Config("x", (NodeSpec("a", "unix:/x"), NodeSpec("b", listen)))
    config.check_addresses(insecure=True)
    if local:
        config.check_addresses(insecure=False)
    else:
        with pytest.raises(ConfigError, match=r"node 'b' listens on .*--insecure"):
            config.check_addresses(insecure=False)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="can't be read: No such file"):
        Config.load(tmp_path / "none.toml")
    binary = tmp_path / "binary.toml"
    binary.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="not UTF-8"):
        Config.load(binary)


@given(st.integers(0, 2**20), st.sampled_from(["", "B", "KiB", "MiB", " GiB"]))
def test_sizes(number: int, unit: str) -> None:
    power = {"": 0, "B": 0, "KiB": 10, "MiB": 20, " GiB": 30}[unit]
    size = number << power
    if size > 2**47:
        with pytest.raises(ConfigError):
            parse_size(f"{number}{unit}")
    else:
        assert parse_size(f"{number}{unit}") == size


@given(st.text())
def test_any_text_is_read_or_refused_with_its_source(text: str) -> None:
    try:
        Config.parse(text, source="some.toml")
    except ConfigError as error:
        assert str(error).startswith("some.toml: ")


ETCD = """
[cluster]
name = "demo"
etcd = ["http://127.0.0.1:2379", "http://[::1]:2379"]
nodes = 3
"""


def test_a_cluster_with_etcd_has_no_list() -> None:
    config = Config.parse(ETCD)
    assert config.etcd == ("http://127.0.0.1:2379", "http://[::1]:2379")
    assert (config.node_count, config.nodes, config.timeout_ms) == (3, (), 5000)
    config.check_addresses(insecure=False)
    assert Config.parse(ETCD.replace("nodes = 3", "")).node_count is None
    found = config.with_nodes([NodeSpec("a", "127.0.0.1:7001")])
    assert found.index("a") == 0


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("nodes = 3", "nodes = 0", "nodes is 0: give between 1 and 64"),
        ("nodes = 3", "nodes = 65", "nodes is 65"),
        ('"http://127.0.0.1:2379", "http://[::1]:2379"', "", "etcd is empty"),
        ("http://127.0.0.1:2379", "https://127.0.0.1:2379", "TLS is not supported"),
        ("http://127.0.0.1:2379", "127.0.0.1:2379", "no address like http://127.0.0.1:2379"),
        ('["http://127.0.0.1:2379", "http://[::1]:2379"]', "5", "etcd must be an array"),
        ("nodes = 3", 'nodes = 3\n[[node]]\nname = "a"\nlisten = "unix:/a"', "there are no"),
    ],
)
def test_what_cannot_work_with_etcd_is_refused(old: str, new: str, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        Config.parse(ETCD.replace(old, new))


def test_an_etcd_that_others_can_reach_needs_leave() -> None:
    config = Config.parse(ETCD.replace("127.0.0.1", "10.0.0.5"))
    with pytest.raises(ConfigError, match="without TLS or a password"):
        config.check_addresses(insecure=False)
    config.check_addresses(insecure=True)
