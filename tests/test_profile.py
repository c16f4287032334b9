"""Symbols, and the tables of `giantvm top`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("giantvm._native", reason="the native module is not built")

from giantvm import ConfigError, NodeSpec, cli
from giantvm.profile import render
from giantvm.status import Sample
from giantvm.symbols import Symbols

MAP = """\
0000000000000000 D __per_cpu_start
ffffffff81000000 T _text
ffffffff81000040 t asm_exc_page_fault [core]
ffffffff82a05000 D init_top_pgt
                 U missing
ffffffff82a06010 d jiffies
"""


@pytest.fixture
def symbols(tmp_path: Path) -> Symbols:
    (tmp_path / "System.map").write_text(MAP)
    return Symbols.load(tmp_path / "System.map")


def test_addresses_have_the_name_of_the_symbol_before_them(symbols: Symbols) -> None:
    assert symbols.code(0xFFFFFFFF81000000) == "_text"
    assert symbols.code(0xFFFFFFFF81000044) == "asm_exc_page_fault+0x4"
    assert symbols.code(0xFFFFFFFFFF000000) == "0xffffffffff000000"


def test_pages_have_the_name_of_what_lies_on_them(symbols: Symbols) -> None:
    """At the physical addresses of a kernel that runs where it was linked."""
    assert symbols.page(0x2A05000) == "init_top_pgt"
    assert symbols.page(0x2A06000) == "jiffies"
    assert symbols.page(0x2A07000) == "jiffies+0xff0"
    assert symbols.page(0x20000000) == ""


def test_elf_files_have_symbols_too() -> None:
    guest = Path(__file__).parents[1] / "target/guests/guest.elf"
    if not guest.is_file():
        pytest.skip("the guest is not built: make guests")
    symbols = Symbols.load(guest)
    assert len(symbols) > 50
    start, *_ = (
        address for address in range(0x100000, 0x110000) if "+" not in symbols.code(address)
    )
    assert not symbols.code(start).startswith("0x")


@pytest.mark.parametrize(
    "data",
    [
        *(b"", b"\x7fELF", b"\x7fELF\x02\x01" + b"\xff" * 300, b"text\n"),
        # Of Debian's package, and what those who are not root see of kallsyms.
        b"ffffffffffffffff B The real System.map is in the linux-image-<version>-dbg package\n",
        b"0000000000000000 T startup_64\n0000000000000000 t module_init\t[virtio]\n",
    ],
)
def test_a_file_without_symbols_is_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "file").write_bytes(data)
    with pytest.raises(ConfigError, match=r"has none: give the System\.map"):
        Symbols.load(tmp_path / "file")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"can't read .*gone: No such file"):
        Symbols.load(tmp_path / "gone")


def sample(name: str, at_s: float, reads: int, profile: dict[str, Any] | None) -> Sample:
    faults = {"read": reads, "write": 0, "upgrade": 0, "first_touch": 0}
    report = {
        "regions": [{"name": "vm:linux", "faults": faults}, {"name": "x", "faults": faults}],
        "vm": {"state": "running", "clock_error_ns": 12.0, "profile": profile},
    }
    return Sample(NodeSpec(name, f"unix:/{name}"), at_s, report, None)


def test_the_hottest_places_come_first(symbols: Symbols) -> None:
    def site(faults: int, vcpu: int | None, rip: int) -> dict[str, Any]:
        where = {"address": 0x2A05000, "kind": "upgrade", "access": "write"}
        return {**where, "vcpu": vcpu, "rip": rip, "faults": faults}

    profile = {
        "faults": 10,
        "left": 4,
        "unchanged": 3,
        "others": 0,
        "sites": [site(2, None, 0), site(8, 1, 0xFFFFFFFF81000044)],
        "pages": [{"address": 0x2A05000, "left": 4, "unchanged": 3}],
    }
    before, now = sample("a", 1.0, 100, profile), sample("a", 3.0, 300, profile)
    told = render([before], [now], symbols)
    nodes, sites, pages = told.split("\n\n")
    assert nodes.splitlines()[1].split() == [
        *("a", "running", "100.0", "0.0", "0.0", "0.0", "300", "75", "%", "12.0")
    ]
    assert sites.splitlines()[1].split() == [
        *("8", "80.0", "%", "a", "1", "upgrade", "asm_exc_page_fault+0x4", "0x2a05000"),
        "init_top_pgt",
    ]
    assert "(not the guest)" in sites.splitlines()[2]
    assert pages.splitlines()[1].split() == ["4", "75", "%", "0x2a05000", "init_top_pgt"]


def test_without_a_profile_it_says_how_to_get_one(symbols: Symbols) -> None:
    told = render([sample("a", 1.0, 1, None)], [sample("a", 2.0, 1, None)], symbols)
    assert "set `profile = true`" in told


def test_a_cluster_that_does_not_answer_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "cluster.toml"
    config.write_text(
        f'[cluster]\nname = "x"\n[[node]]\nname = "a"\nlisten = "unix:{tmp_path}/a.sock"\n'
    )
    command = ["top", "--config", str(config), "--once", "--interval", "0.1"]
    assert cli.main(command) == 1
    assert "no answer: " in capsys.readouterr().out
    assert cli.main([*command, "--symbols", str(tmp_path / "gone")]) == 2
    assert "can't read" in capsys.readouterr().err
    assert cli.main([*command, "--json"]) == 0
    assert "error" in json.loads(capsys.readouterr().out)["a"]


def test_nodes_without_a_machine_or_an_answer_are_shown(symbols: Symbols) -> None:
    plain = sample("a", 1.0, 1, None)
    assert plain.report is not None
    bare = Sample(plain.node, 1.0, {**plain.report, "vm": None}, None)
    gone = Sample(NodeSpec("b", "unix:/b"), 1.0, None, "nobody listens")
    told = render([bare, gone], [bare, gone], symbols)
    assert "no virtual machine" in told
    assert "no answer: nobody listens" in told
