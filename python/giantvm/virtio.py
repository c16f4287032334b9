"""Disks, network interfaces, consoles and random numbers of a virtual machine."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias

from giantvm._toml import Table
from giantvm.errors import ConfigError

__all__ = ["Disk", "Net", "Rng", "Virtio", "VirtioConsole", "native_virtio", "parse_virtio"]

_QUEUES: Final = range(1, 65)


@dataclass(frozen=True, slots=True)
class Disk:
    """A disk: a raw file, or a block device, of a host."""

    name: str
    """Its name, unique, at most 20 letters; the guest sees it as the serial number."""
    home: str
    """The node where it lives."""
    file: str | os.PathLike[str]
    """Its path on that node's host; a multiple of 512 bytes long."""
    read_only: bool = False
    """Whether the guest can only read it; any number of disks share a file then."""


@dataclass(frozen=True, slots=True)
class Net:
    """A network interface, whose packets go through a tap of a host."""

    name: str
    """Its name, unique."""
    home: str
    """The node where it lives."""
    tap: str
    """A tap of that node's host, made before: `ip tuntap add dev NAME mode tap multi_queue`."""
    mac: str | None = None
    """Its address; by default, one that follows from the names of machine and interface."""
    queues: int = 1
    """Pairs of queues, 1 to 64; each has a thread."""

    def __post_init__(self) -> None:
        if self.queues not in _QUEUES:
            raise ConfigError(
                f"network interface {self.name!r}: queues is {self.queues}: give 1 to 64"
            )


@dataclass(frozen=True, slots=True)
class VirtioConsole:
    """A console beside the serial port: `hvc0` for Linux. It takes no input."""

    name: str
    """Its name, unique."""
    home: str
    """The node where it lives."""
    output: str | os.PathLike[str] | None = None
    """The file on that node's host that its output is added to; by default, it is dropped."""


@dataclass(frozen=True, slots=True)
class Rng:
    """Random numbers of a host."""

    name: str
    """Its name, unique."""
    home: str
    """The node where it lives."""


Virtio: TypeAlias = Disk | Net | VirtioConsole | Rng
"""A virtio device. The guest finds them in the order of the description."""

NativeVirtio: TypeAlias = tuple[str, int, str, str, bool, str | None, int]
"""Name, home, kind, file or tap, read-only, address, queues."""


def native_virtio(device: Virtio, index: Callable[[str], int]) -> NativeVirtio:
    """What the native module takes; `index` is the position of a node."""
    name, home = device.name, index(device.home)
    match device:
        case Disk():
            return name, home, "disk", os.fspath(device.file), device.read_only, None, 1
        case Net():
            return name, home, "net", device.tap, False, device.mac, device.queues
        case VirtioConsole():
            output = "" if device.output is None else os.fspath(device.output)
            return name, home, "console", output, False, None, 1
        case Rng():
            return name, home, "rng", "", False, None, 1


def parse_virtio(vm: Table, directory: Path) -> tuple[Virtio, ...]:
    """The devices of a `[vm]` table: disks first, then network interfaces, consoles, random
    numbers.
    """
    return (
        *(_disk(table, directory) for table in _tables(vm, "disk", {"file", "read_only"})),
        *(_net(table) for table in _tables(vm, "net", {"tap", "mac", "queues"})),
        *(_console(table, directory) for table in _tables(vm, "console", {"output"})),
        *(Rng(table.text("name"), table.text("home")) for table in _tables(vm, "rng", set())),
    )


def _tables(vm: Table, key: str, keys: set[str]) -> list[Table]:
    return [
        Table(item, f"[[vm.{key}]] number {number}", {"name", "home", *keys})
        for number, item in enumerate(vm.items(key), start=1)
    ]


def _disk(table: Table, directory: Path) -> Disk:
    return Disk(
        name=table.text("name"),
        home=table.text("home"),
        file=directory / table.text("file"),
        read_only=table.flag("read_only"),
    )


def _net(table: Table) -> Net:
    return Net(
        name=table.text("name"),
        home=table.text("home"),
        tap=table.text("tap"),
        mac=table.optional("mac"),
        queues=table.integer("queues", 1),
    )


def _console(table: Table, directory: Path) -> VirtioConsole:
    output = table.optional("output")
    return VirtioConsole(
        name=table.text("name"),
        home=table.text("home"),
        output=None if output is None else directory / output,
    )
