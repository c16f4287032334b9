"""Virtio devices in a cluster file, and what is wrong with some."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("giantvm._native", reason="the native module is not built")

from giantvm import ConfigError, Disk, Net, Rng, VirtioConsole
from giantvm.config import parse_size
from giantvm.virtio import native_virtio
from giantvm.vmspec import VmSpec, parse_vm
from test_vm_run import run, write

VM: dict[str, object] = {"memory": "64MiB", "vcpus": ["a", "b"]}


def parse(**devices: object) -> VmSpec:
    return parse_vm(VM | devices, Path("/there"), parse_size)


def test_devices_come_in_the_order_of_their_kinds() -> None:
    spec = parse(
        rng=[{"name": "r", "home": "a"}],
        console=[
            {"name": "c", "home": "b", "output": "log"},
            {"name": "d", "home": "b"},
        ],
        net=[
            {"name": "n", "home": "b", "tap": "tap0"},
            {"name": "m", "home": "a", "tap": "t", "mac": "52:54:00:00:00:01", "queues": 4},
        ],
        disk=[
            {"name": "root", "home": "a", "file": "root.img"},
            {"name": "cd", "home": "b", "file": "/cd.iso", "read_only": True},
        ],
    )
    assert spec.virtio == (
        Disk("root", "a", Path("/there/root.img")),
        Disk("cd", "b", Path("/cd.iso"), read_only=True),
        Net("n", "b", "tap0"),
        Net("m", "a", "t", mac="52:54:00:00:00:01", queues=4),
        VirtioConsole("c", "b", Path("/there/log")),
        VirtioConsole("d", "b"),
        Rng("r", "a"),
    )
    assert [native_virtio(device, ["a", "b"].index) for device in spec.virtio] == [
        ("root", 0, "disk", "/there/root.img", False, None, 1),
        ("cd", 1, "disk", "/cd.iso", True, None, 1),
        ("n", 1, "net", "tap0", False, None, 1),
        ("m", 0, "net", "t", False, "52:54:00:00:00:01", 4),
        ("c", 1, "console", "/there/log", False, None, 1),
        ("d", 1, "console", "", False, None, 1),
        ("r", 0, "rng", "", False, None, 1),
    ]


@pytest.mark.parametrize(
    ("devices", "message"),
    [
        (
            {"disk": [{"name": "d", "home": "a"}]},
            r"\[\[vm.disk\]\] number 1: file is missing",
        ),
        (
            {"disk": [{"name": "d", "home": "a", "file": "f", "readonly": True}]},
            r"unknown key 'readonly' \(did you mean 'read_only'\?\)",
        ),
        (
            {"net": [{"name": "n", "home": "a", "tap": "t", "queues": 0}]},
            "network interface 'n': queues is 0: give 1 to 64",
        ),
        ({"rng": [{"name": "r"}]}, r"\[\[vm.rng\]\] number 1: home is missing"),
        ({"console": {"name": "c"}}, "console must be an array"),
    ],
)
def test_what_is_wrong_is_named(devices: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse(**devices)


def test_a_home_must_be_a_node() -> None:
    spec = parse(rng=[{"name": "r", "home": "c"}])
    with pytest.raises(ConfigError, match="device 'r' is on node 'c', which the cluster has not"):
        spec.check_nodes(["a", "b"])


@pytest.mark.parametrize(
    ("device", "message"),
    [
        (
            '[[vm.disk]]\nname = "root"\nhome = "b"\nfile = "missing.img"',
            'disk "root": there is no {directory}/missing.img; make a disk with: truncate -s 8G',
        ),
        (
            '[[vm.disk]]\nname = "root"\nhome = "b"\nfile = "vm.toml"',
            "but a disk has a multiple of 512; make it longer with: truncate -s %512",
        ),
        (
            '[[vm.net]]\nname = "net"\nhome = "b"\ntap = "gvm-missing"',
            'network interface "net": there is no tap gvm-missing; make it with: ip tuntap add dev',
        ),
        (
            '[[vm.net]]\nname = "net"\nhome = "b"\ntap = "t"\nmac = "53:00:00:00:00:00"',
            '"53:00:00:00:00:00" is no address of a network interface',
        ),
        (
            '[[vm.console]]\nname = "con"\nhome = "b"\noutput = "missing/log"',
            'console "con": can\'t write {directory}/missing/log',
        ),
        (
            '[[vm.rng]]\nname = "r"\nhome = "b"\n' * 2,
            'two devices are named "r"',
        ),
    ],
)
def test_a_device_that_can_not_be_had_says_what_to_do(
    tmp_path: Path, device: str, message: str
) -> None:
    done = run(write(tmp_path, "test=smp", more=device))
    assert done.returncode != 0
    assert message.format(directory=tmp_path) in done.stderr


def test_a_guest_runs_beside_devices_it_does_not_use(tmp_path: Path) -> None:
    (tmp_path / "disk").write_bytes(bytes(4096))
    devices = """
[[vm.disk]]
name = "root"
home = "b"
file = "disk"

[[vm.console]]
name = "con"
home = "a"
output = "log"

[[vm.rng]]
name = "random"
home = "b"
"""
    done = run(write(tmp_path, "test=reset ways=3", more=devices))
    assert done.returncode == 1, done.stderr  # what a test guest that passed ends with
    assert "result=passed" in done.stdout
    assert (tmp_path / "log").read_bytes() == b""
