"""What a virtual machine is made of: the same description for all nodes of its cluster."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, TypeGuard

from giantvm._load import load
from giantvm._toml import Table, suggestion
from giantvm.errors import ConfigError
from giantvm.virtio import Virtio, parse_virtio

if TYPE_CHECKING:
    from giantvm._device import Device

__all__ = [
    "DeviceSpec",
    "KernelFormat",
    "Mmio",
    "Module",
    "Pio",
    "TscSource",
    "Vcpu",
    "VmSpec",
    "parse_vm",
]

KernelFormat = Literal["pvh", "multiboot", "linux"]
"""How a kernel is started: Xen's PVH, Multiboot 1, or Linux' 64-bit boot protocol."""

TscSource = Literal["hosts", "shared", "nodes"]
"""What the hosts' time-stamp counters count: see `VmSpec.tsc`."""

_FORMATS: Final[tuple[KernelFormat, ...]] = ("pvh", "multiboot", "linux")
_SOURCES: Final[tuple[TscSource, ...]] = ("hosts", "shared", "nodes")
_PORTS: Final = 0x10000
_ADDRESSES: Final = 2**52


@dataclass(frozen=True, slots=True)
class Pio:
    """Ports: what the guest reaches by `in` and `out`."""

    start: int
    """The first port."""
    length: int
    """How many."""

    def __post_init__(self) -> None:
        _check_range("ports", self.start, self.length, _PORTS)


@dataclass(frozen=True, slots=True)
class Mmio:
    """Addresses where the guest finds a device instead of memory."""

    start: int
    """The first guest-physical address."""
    length: int
    """How many bytes."""

    def __post_init__(self) -> None:
        _check_range("addresses", self.start, self.length, _ADDRESSES)


@dataclass(frozen=True, slots=True)
class Vcpu:
    """Where a virtual processor runs."""

    node: str
    """The name of the node."""
    pin: int | None = None
    """The processor of that node's host that its thread stays on; by default, the host's choice."""


@dataclass(frozen=True, slots=True)
class Module:
    """A file that a PVH or Multiboot kernel is given."""

    file: str | os.PathLike[str]
    """Its path, on the node of the first vCPU."""
    cmdline: str = ""
    """The text that comes with it."""


@dataclass(frozen=True, slots=True)
class DeviceSpec:
    """A device in Python: what it is called, where it lives, and its class."""

    name: str
    """Its name in messages, unique."""
    home: str
    """The node where it lives: where the object is, and its methods are called."""
    model: type[Device] | str
    """The class, or its place: `MODULE:CLASS` or `SCRIPT.py:CLASS`."""
    ranges: tuple[Pio | Mmio, ...] | None = None
    """Where the guest finds it; by default, what the class says."""
    doorbells: tuple[tuple[int, int], ...] | None = None
    """Offsets at which writes are posted, as (first, how many); by default, what the class says."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Keyword arguments of the class."""
    directory: Path | None = None
    """What the path of a script is relative to."""

    @property
    def device_class(self) -> type[Device]:
        """The class; `ConfigError` if there is none."""
        from giantvm._device import Device  # noqa: PLC0415 - it needs this module

        if not isinstance(self.model, str):
            return self.model
        what = f"device {self.name!r}: model"
        place, colon, name = self.model.rpartition(":")
        if not colon:
            raise ConfigError(f"{what}: {self.model!r}: give MODULE:CLASS or SCRIPT.py:CLASS")
        found = load(what, "class", place, name, self.directory)
        if not (isinstance(found, type) and issubclass(found, Device)):
            raise ConfigError(f"{what}: {self.model} is not a class derived from giantvm.Device")
        return found

    def all_ranges(self) -> tuple[Pio | Mmio, ...]:
        """Where the guest finds it; `ConfigError` if nowhere."""
        ranges = tuple(self.device_class.ranges) if self.ranges is None else self.ranges
        if not ranges:
            raise ConfigError(
                f"device {self.name!r} answers nowhere: give `ranges`, here or in its class"
            )
        return ranges

    def all_doorbells(self) -> tuple[tuple[int, int], ...]:
        """Offsets at which writes are posted."""
        return tuple(self.device_class.doorbells) if self.doorbells is None else self.doorbells


@dataclass(frozen=True, slots=True)
class VmSpec:
    """A virtual machine over the nodes of a cluster.

    `ConfigError` where a field is wrong. What depends on the cluster, on the machine or on files is
    checked when a node begins its part.
    """

    name: str
    """Its name; the region that is its memory is called `vm:` and that."""
    memory_bytes: int
    """The guest's RAM, a multiple of 4096."""
    vcpus: tuple[Vcpu, ...]
    """Its processors; the first one boots."""
    kernel: str | os.PathLike[str] | None = None
    """What it is started with, a file on the node of the first vCPU."""
    cmdline: str = ""
    """The kernel's command line."""
    initrd: str | os.PathLike[str] | None = None
    """The initial RAM disk, a file on the node of the first vCPU."""
    modules: tuple[Module, ...] = ()
    """Files for PVH and Multiboot kernels."""
    kernel_format: KernelFormat | None = None
    """How the kernel is started; by default, what the file says."""
    platform: str | None = None
    """The node of the platform's devices (serial port, clocks, IOAPIC); by default, the first."""
    devices: tuple[DeviceSpec, ...] = ()
    """Devices in Python."""
    virtio: tuple[Virtio, ...] = ()
    """Disks, network interfaces, consoles and random numbers, in the guest's order."""
    hide: tuple[str, ...] = ()
    """Features of the processor that the guest is not told of, as /proc/cpuinfo calls them."""
    overcommit: bool = False
    """Whether the RAM may be more than the nodes give."""
    tsc: TscSource = "hosts"
    """`hosts`: the counters of different hosts drift apart, and are kept together. `shared`: they
    count one source. `nodes`: like `hosts`, with every node taken for a host, for tests."""
    walk_shared: bool | None = None
    """Whether page tables of the guest are writable at several nodes at once as long as nobody
    stores to them: right only for a guest that keeps nothing else in their pages, as Linux does.
    By default, where a host's processor asks to write page tables that it only walks, and the
    kernel is a bzImage."""
    kvm: str = "/dev/kvm"
    """The device file of KVM."""
    profile: bool = False
    """Whether `giantvm top` is to show where the guest waits for pages; it gets slower."""

    def __post_init__(self) -> None:
        if self.memory_bytes < 1:
            raise ConfigError(f"memory is {self.memory_bytes} bytes: give 2MiB or more")
        if not self.vcpus:
            raise ConfigError('there is no vCPU: name a node for each in `vcpus`, like ["a", "b"]')
        for number, vcpu in enumerate(self.vcpus):
            if vcpu.pin is not None and vcpu.pin < 0:
                raise ConfigError(f"vCPU {number}: pin is {vcpu.pin}: give 0 or more")
        if self.kernel is None and (self.initrd is not None or self.modules or self.cmdline):
            raise ConfigError("there is no kernel to give an initrd, modules or a cmdline to")
        if self.kernel_format is not None and not _is_format(self.kernel_format):
            raise ConfigError(
                f"kernel_format is {self.kernel_format!r}: use one of {', '.join(_FORMATS)}"
            )
        if not _is_source(self.tsc):
            raise ConfigError(f"tsc is {self.tsc!r}: use one of {', '.join(_SOURCES)}")

    def check_nodes(self, names: Sequence[str]) -> None:
        """Refuses nodes that are not among `names`."""
        for what, node in self._places():
            if node not in names:
                raise ConfigError(
                    f"{what} is on node {node!r}, which the cluster has not"
                    f"{suggestion(node, names)}: its nodes are {', '.join(names)}"
                )

    def platform_home(self, names: Sequence[str]) -> str:
        """The node of the platform's devices, of a cluster's nodes."""
        return names[0] if self.platform is None else self.platform

    def _places(self) -> Iterator[tuple[str, str]]:
        for number, vcpu in enumerate(self.vcpus):
            yield f"vCPU {number}", vcpu.node
        if self.platform is not None:
            yield "the platform", self.platform
        for device in self.devices:
            yield f"device {device.name!r}", device.home
        for virtio in self.virtio:
            yield f"device {virtio.name!r}", virtio.home


def parse_vm(entry: object, directory: Path, parse_size: Callable[[str], int]) -> VmSpec:
    """The `[vm]` table of a cluster file that lies in `directory`."""
    table = Table(entry, "[vm]", _VM_KEYS)
    devices = tuple(
        _parse_device(Table(item, f"[[vm.device]] number {number}", _DEVICE_KEYS), directory)
        for number, item in enumerate(table.items("device"), start=1)
    )
    kernel, initrd = table.optional("kernel"), table.optional("initrd")
    kernel_format, tsc = table.optional("kernel_format"), table.text("tsc", "hosts")
    # The description checks what these may be.
    return VmSpec(
        name=table.text("name", "vm"),
        memory_bytes=parse_size(table.text("memory")),
        vcpus=tuple(
            _parse_vcpu(item, f"[vm]: vCPU {number}")
            for number, item in enumerate(table.items("vcpus"))
        ),
        kernel=None if kernel is None else directory / kernel,
        cmdline=table.text("cmdline", ""),
        initrd=None if initrd is None else directory / initrd,
        modules=tuple(_parse_module(item, directory) for item in table.items("modules")),
        kernel_format=kernel_format,  # type: ignore[arg-type]
        platform=table.optional("platform"),
        devices=devices,
        virtio=parse_virtio(table, directory),
        hide=tuple(table.texts("hide")),
        overcommit=table.flag("overcommit"),
        tsc=tsc,  # type: ignore[arg-type]
        walk_shared=table.optional_flag("walk_shared"),
        kvm=table.text("kvm", "/dev/kvm"),
        profile=table.flag("profile"),
    )


_VM_KEYS: Final = {
    *("name", "memory", "vcpus", "kernel", "cmdline", "initrd", "modules", "kernel_format"),
    *("disk", "net", "console", "rng"),
    *("platform", "device", "hide", "overcommit", "tsc", "walk_shared", "kvm", "profile"),
}
_DEVICE_KEYS: Final = {"name", "home", "model", "ranges", "doorbells", "options"}


def _parse_vcpu(item: object, where: str) -> Vcpu:
    if isinstance(item, str):
        return Vcpu(item)
    table = Table(item, f"{where}, if it is no name of a node,", {"node", "pin"})
    return Vcpu(table.text("node"), table.integer("pin", 0) if "pin" in table else None)


def _parse_module(item: object, directory: Path) -> Module:
    if isinstance(item, str):
        return Module(directory / item)
    table = Table(item, "[vm]: a module that is no path", {"file", "cmdline"})
    return Module(directory / table.text("file"), table.text("cmdline", ""))


def _parse_device(table: Table, directory: Path) -> DeviceSpec:
    name = table.text("name")
    ranges = tuple(_parse_range(item, f"device {name!r}") for item in table.items("ranges"))
    doorbells = tuple(_parse_doorbell(item, name) for item in table.items("doorbells"))
    return DeviceSpec(
        name=name,
        home=table.text("home"),
        model=table.text("model"),
        ranges=ranges if "ranges" in table else None,
        doorbells=doorbells if "doorbells" in table else None,
        options=table.mapping("options"),
        directory=directory,
    )


def _parse_range(item: object, where: str) -> Pio | Mmio:
    table = Table(item, f"{where}: a range", {"port", "address", "length"})
    length = table.integer("length", 1)
    try:
        if "port" in table:
            return Pio(table.integer("port", 0), length)
        if "address" in table:
            return Mmio(table.integer("address", 0), length)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None
    raise ConfigError(f"{where}: a range needs a `port` or an `address`, and a `length`")


def _parse_doorbell(item: object, name: str) -> tuple[int, int]:
    match item:
        case [int(first), int(length)] if first >= 0 and length > 0:
            return first, length
    raise ConfigError(
        f"device {name!r}: a doorbell is [FIRST OFFSET, HOW MANY], like [0x10, 4], not {item!r}"
    )


def _check_range(what: str, start: int, length: int, end: int) -> None:
    if length < 1:
        raise ConfigError(f"{length} {what} from {start:#x}: give 1 or more")
    if start < 0 or start + length > end:
        raise ConfigError(f"{what} {start:#x} to {start + length - 1:#x}: the last is {end - 1:#x}")


def _is_format(text: str) -> TypeGuard[KernelFormat]:
    return text in _FORMATS


def _is_source(text: str) -> TypeGuard[TscSource]:
    return text in _SOURCES
