"""A virtual machine: one node's part of it."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Literal, cast

from giantvm._bus import Bus
from giantvm._device import Device, Server
from giantvm._native import NativeVm
from giantvm._node import Node
from giantvm._region import Region
from giantvm._time import milliseconds
from giantvm.errors import ConfigError, GuestFault, NodeLost, VmFailed
from giantvm.stats import RegionStats
from giantvm.virtio import native_virtio
from giantvm.vmspec import Pio, VmSpec

__all__ = ["ClockReport", "Console", "Outcome", "OutcomeKind", "Vm", "VmReport", "VmState"]

VmState = Literal["starting", "ready", "running", "paused", "ended"]
"""What a virtual machine is doing: see `Vm.state`."""

OutcomeKind = Literal["power-off", "debug-exit", "stopped", "guest-fault", "failed", "lost"]
"""How a virtual machine ended: see `Outcome`."""

_REGISTER: Final = re.compile(r"\b([a-z][a-z0-9]*) +(0x[0-9a-f]+)")


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a virtual machine ended; the same on all nodes, as far as they can know."""

    kind: OutcomeKind
    """`power-off` by the guest; `debug-exit`: the guest wrote to the debug-exit device; `stopped`
    by a program; `guest-fault`: a vCPU can't go on; `failed`: a node or a device can't; `lost`: a
    node was lost."""
    status: int | None = None
    """Of a debug exit: what the guest wrote, times two, plus one."""
    reason: str = ""
    """For people, unless the guest or a program ended it in good order."""

    @property
    def registers(self) -> dict[str, int]:
        """After a guest fault: the registers of the vCPU, by name."""
        return {name: int(value, 16) for name, value in _REGISTER.findall(self.reason)}

    def check(self) -> Outcome:
        """Returns itself after a power-off, a debug exit or a stop; raises otherwise.

        `giantvm.GuestFault`, `giantvm.VmFailed`, or `giantvm.NodeLost`.
        """
        if self.kind == "guest-fault":
            raise GuestFault(self.reason)
        if self.kind == "failed":
            raise VmFailed(self.reason)
        if self.kind == "lost":
            raise NodeLost(self.reason)
        return self


@dataclass(frozen=True, slots=True)
class ClockReport:
    """The guest's time-stamp counter at this node."""

    tsc_khz: int
    """Its rate."""
    tsc_offset: int
    """What is added to the host's."""
    error_ns: float
    """The most that it differs from that of the first node's host, in nanoseconds."""
    drift_ppm: float
    """How much faster the first node's host counts, in parts per million; 0 if not measured."""


@dataclass(frozen=True, slots=True)
class VmReport:
    """How a virtual machine does at this node."""

    state: VmState
    """What it is doing."""
    clock: ClockReport
    """Its clock."""
    unclaimed_reads: int
    """Reads of this node's vCPUs that nobody answered."""
    unclaimed_writes: int
    """Writes of this node's vCPUs that nobody answered."""
    memory: RegionStats
    """What this node did for the guest's memory."""


class Console:
    """The guest's serial port (COM1), at the platform's home. Made by `Vm.console`."""

    def __init__(self, native: NativeVm, node: str, home: str) -> None:
        self._native = native
        self._node = node
        self._home = home

    def read(self, timeout_s: float | None = None) -> bytes:
        """Waits until the guest has written something, and returns all of it.

        Returns nothing at the end of the virtual machine. Of what nobody reads, the last MiB is
        kept. `giantvm.TimeoutError` if nothing comes within `timeout_s` seconds.
        """
        self._check()
        return self._native.console_read(milliseconds(timeout_s))

    def write(self, data: bytes) -> int:
        """Input for the guest; how many bytes, from the first, there was room for."""
        self._check()
        return self._native.console_write(data)

    @property
    def dropped(self) -> int:
        """Bytes that nobody read in time."""
        return self._native.console_dropped()

    def _check(self) -> None:
        if self._node != self._home:
            raise ValueError(
                f"the serial port is on node {self._home!r}, this is {self._node!r}: use it there"
            )


class Vm:
    """One node's part of the virtual machine that `spec` describes. Use it in a `with` block.

    Every node of the cluster makes its part, in any order, with the same description; by default
    the one of the cluster file. The guest starts when all have, and one has called `run`. What one
    node asks for (`run`, `pause`, `reset`, `stop`) happens on all.

    `devices` are objects for devices of the description that live here, by name; without one, the
    device's class is called with its options.

    Raises `giantvm.ConfigError` for a description that can't be, and `giantvm.ClusterError` if this
    machine can't run its part.
    """

    def __init__(
        self,
        node: Node,
        spec: VmSpec | None = None,
        *,
        devices: Mapping[str, Device] | None = None,
        timeout_s: float | None = None,
    ) -> None:
        spec = node.config.vm if spec is None else spec
        if spec is None:
            raise ConfigError(
                f"{node.config.source}: there is no virtual machine: add a [vm] table, or give a "
                "VmSpec"
            )
        spec.check_nodes(node.nodes)
        self._node = node
        self._spec = spec
        here = _make_devices(spec, node.name, devices or {})
        self._native = _native(node, spec, timeout_s)
        self._memory: Region | None = None
        self._devices = {device.name: device for device in here.values()}
        self._server = Server(self._native, node.name, here) if here else None
        node._adopt(self)
        for device in here.values():
            device._vm = self
        if self._server is not None:
            self._server.start()

    @property
    def node(self) -> Node:
        """The node whose part this is."""
        return self._node

    @property
    def spec(self) -> VmSpec:
        """The description."""
        return self._spec

    @property
    def state(self) -> VmState:
        """What it is doing, as this node knows.

        `starting`: nodes are missing, or making their parts; `ready`: nobody has asked it to run;
        `running`; `paused`: the vCPUs of this node have stopped; `ended`.
        """
        return cast("VmState", self._native.state()[0])

    @property
    def outcome(self) -> Outcome | None:
        """How it ended, once it has."""
        return _outcome(self._native.state()[1])

    def run(self) -> None:
        """Has the guest run, or go on after a pause, as soon as all nodes are ready."""
        self._native.run()

    def pause(self, timeout_s: float | None = None) -> None:
        """Has all vCPUs stop, and waits for those of this node. The guest's clock goes on.

        `giantvm.TimeoutError`, and what `wait` raises if it ends meanwhile.
        """
        self.wait_for("ready", "running", "paused", timeout_s=timeout_s)
        self._native.pause()
        self.wait_for("paused", timeout_s=timeout_s)

    def reset(self) -> None:
        """Has the guest start again, as by its reset button."""
        self._native.reset()

    def stop(self) -> None:
        """Ends it on all nodes."""
        self._native.stop()

    def wait(self, timeout_s: float | None = None) -> Outcome:
        """Waits for its end, and tells how it was: power-off, debug exit, or stopped.

        Raises `giantvm.GuestFault`, `giantvm.VmFailed` or `giantvm.NodeLost` where it could not go
        on, and `giantvm.TimeoutError`.
        """
        _, found = self._native.wait(["ended"], milliseconds(timeout_s))
        return cast("Outcome", _outcome(found)).check()

    def wait_for(self, *states: VmState, timeout_s: float | None = None) -> VmState:
        """Waits until it is in one of `states`, and returns which.

        If it ends instead: what `wait` raises, or `giantvm.VmFailed`.
        """
        state, found = self._native.wait(list(states), milliseconds(timeout_s))
        outcome = _outcome(found)
        if outcome is not None and "ended" not in states:
            outcome.check()
            raise VmFailed(f"the virtual machine has ended: {outcome.kind}")
        return cast("VmState", state)

    @property
    def memory(self) -> Region:
        """The region that is the guest's RAM, to read and write at any time.

        Below 3 GiB an offset is the guest-physical address; the rest of the RAM begins at 4 GiB.
        `view` takes addresses.
        """
        if self._memory is None:
            self._memory = Region(self._node._native, f"vm:{self._spec.name}", None, False, None)
        return self._memory

    def view(self, address: int, size: int) -> memoryview:
        """`size` bytes of RAM from guest-physical `address`; `ValueError` if it is not all RAM."""
        for start, offset, length in self._native.ram():
            if start <= address and size >= 0 and address + size <= start + length:
                first = offset + address - start
                return memoryview(self.memory)[first : first + size]
        raise ValueError(
            f"guest-physical addresses {address:#x} to {address + size:#x} are not all RAM: "
            + ", ".join(f"{s:#x} to {s + n:#x} is" for s, _, n in self._native.ram())
        )

    @property
    def devices(self) -> Mapping[str, Device]:
        """The devices in Python that live on this node, by name."""
        return self._devices

    @property
    def bus(self) -> Bus:
        """Who answers which ports and addresses."""
        return Bus(self._native, self._node.name, self._node.nodes)

    @property
    def console(self) -> Console:
        """The guest's serial port; to be used at the platform's home."""
        return Console(self._native, self._node.name, self._spec.platform_home(self._node.nodes))

    def set_line(self, pin: int, high: bool) -> None:
        """Drives the line to a pin of the IOAPIC, from any node."""
        self._native.set_line(pin, high)

    def send_msi(self, address: int, data: int) -> None:
        """Sends a message-signalled interrupt, from any node to any vCPU."""
        self._native.send_msi(address, data)

    def report(self) -> VmReport:
        """How it does at this node."""
        unclaimed = self.bus.unclaimed()
        return VmReport(
            state=self.state,
            clock=ClockReport(*self._native.clock()),
            unclaimed_reads=unclaimed.reads,
            unclaimed_writes=unclaimed.writes,
            memory=self.memory.stats(),
        )

    def close(self) -> None:
        """Ends the virtual machine on all nodes, if it has not ended; more than once is fine."""
        self._native.close()
        if self._server is not None:
            self._server.join()
        if self._memory is not None:
            # Views of it stay valid, and keep the node open.
            with contextlib.suppress(BufferError):
                self._memory.close()

    def __enter__(self) -> Vm:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<giantvm.Vm {self._spec.name!r} on node {self._node.name!r}>"


def _make_devices(spec: VmSpec, node: str, given: Mapping[str, Device]) -> dict[int, Device]:
    """The devices that live on `node`, by their position in the description."""
    here = {number: it for number, it in enumerate(spec.devices) if it.home == node}
    unknown = set(given) - {it.name for it in here.values()}
    if unknown:
        raise ConfigError(
            f"devices {', '.join(sorted(unknown))} were given on node {node!r}, where the "
            "description has none of that name"
        )
    made = {}
    for number, it in here.items():
        device = given.get(it.name)
        made[number] = it.device_class(**it.options) if device is None else device
        made[number]._name = it.name
    return made


def _native(node: Node, spec: VmSpec, timeout_s: float | None) -> NativeVm:
    index = node.nodes.index
    devices = [
        (
            it.name,
            index(it.home),
            [(isinstance(r, Pio), r.start, r.length) for r in it.all_ranges()],
            list(it.all_doorbells()),
        )
        for it in spec.devices
    ]
    return NativeVm(
        node._native,
        spec.name,
        spec.memory_bytes,
        [(index(vcpu.node), vcpu.pin) for vcpu in spec.vcpus],
        None if spec.kernel is None else os.fspath(spec.kernel),
        spec.kernel_format,
        spec.cmdline,
        None if spec.initrd is None else os.fspath(spec.initrd),
        [(os.fspath(module.file), module.cmdline) for module in spec.modules],
        index(spec.platform_home(node.nodes)),
        devices,
        [native_virtio(it, index) for it in spec.virtio],
        list(spec.hide),
        spec.overcommit,
        spec.tsc,
        spec.walk_shared,
        spec.kvm,
        spec.profile,
        milliseconds(timeout_s),
    )


def _outcome(found: tuple[str, int | None, str] | None) -> Outcome | None:
    if found is None:
        return None
    kind, status, reason = found
    return Outcome(cast("OutcomeKind", kind), status, reason)
