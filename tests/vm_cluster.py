"""Virtual machines over nodes that are processes, for tests."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest

import giantvm
from cluster import ANSWER_S, NAMES, Cluster, Site
from giantvm import Device, DeviceSpec, Vcpu, Vm, VmSpec
from vm_device import TestDevice

GUEST_S = 50.0
"""Far more than any guest takes."""

MIB = 1 << 20


def guest() -> Path:
    """The guest that `make guests` builds; skips the test where it can't run."""
    if not Path("/dev/kvm").exists():
        pytest.skip("this machine has no /dev/kvm")
    default = Path(__file__).parent.parent / "target/guests/guest.elf"
    found = Path(os.environ.get("GIANTVM_GUEST", default))
    if not found.exists():
        pytest.skip(f"{found} is not built: run make guests")
    return found


def places(nodes: int, vcpus: int = 3) -> list[str]:
    """The nodes of so many vCPUs, all used."""
    return [NAMES[min(number, nodes - 1)] for number in range(vcpus)]


def spec(nodes: Sequence[str], cmdline: str = "test=smp", **fields: Any) -> VmSpec:
    """A small machine with a vCPU on each of these nodes and the test device far from the first."""
    devices = (DeviceSpec("test", max(nodes), TestDevice),)
    made = VmSpec(
        "test",
        64 * MIB,
        tuple(Vcpu(node) for node in nodes),
        kernel=guest(),
        cmdline=cmdline,
        devices=devices,
    )
    return replace(made, **fields)


def vm_of(site: Site) -> Vm:
    """The node's part of the virtual machine."""
    found: Vm = site.kept["vm"]
    return found


def device_of(site: Site, name: str = "test") -> Device:
    """A device of the node."""
    return vm_of(site).devices[name]


def begin(site: Site, vm: VmSpec) -> None:
    """Makes the node's part."""
    part = site.kept["vm"] = Vm(site.node, vm, timeout_s=ANSWER_S)
    if part.node.name != vm.platform_home(part.node.nodes):
        return
    text = site.kept["text"] = bytearray()
    read = site.kept["reader"] = threading.Thread(target=_read, args=(part, text), daemon=True)
    read.start()


def _read(part: Vm, text: bytearray) -> None:
    while found := part.console.read():
        text += found


def ask(site: Site, what: str) -> None:
    """Calls a method of the virtual machine without arguments."""
    getattr(vm_of(site), what)()


def outcome(site: Site) -> giantvm.Outcome:
    """Waits for the end."""
    part = vm_of(site)
    part.wait_for("ended", timeout_s=GUEST_S)
    found = part.outcome
    assert found is not None
    return found


def said(site: Site) -> str:
    """What the guest wrote; all of it once it has ended."""
    if vm_of(site).state == "ended":
        site.kept["reader"].join()
    return bytes(site.kept["text"]).decode("ascii", "replace")


def close(site: Site) -> None:
    """Ends the node's part."""
    with contextlib.suppress(KeyError):
        site.kept.pop("vm").close()


class VmCluster:
    """A cluster whose nodes each have their part of a virtual machine, for a `with` block."""

    def __init__(
        self,
        nodes: int,
        vm: VmSpec,
        *,
        begin: Callable[..., None] | None = begin,
        more: Sequence[object] = (),
    ) -> None:
        self.spec = vm
        self.cluster = Cluster(NAMES[:nodes], memory_bytes=128 * MIB)
        try:
            if begin is not None:
                self.cluster.each(begin, vm, *more)
        except BaseException:
            self.cluster.__exit__(AssertionError, None, None)
            raise

    def run(self) -> list[tuple[str, int | None]]:
        """Runs the guest to its end; how that was on each node."""
        self.cluster.call(0, ask, "run")
        return [(outcome.kind, outcome.status) for outcome in self.outcomes()]

    def outcomes(self) -> list[giantvm.Outcome]:
        """How it ended on each node."""
        return self.cluster.each(outcome)

    def said(self) -> str:
        """What the guest wrote to its serial port so far."""
        text: str = self.cluster.call(0, said)
        return text

    def __enter__(self) -> VmCluster:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if error is None:
                self.cluster.each(close)
        finally:
            self.cluster.__exit__(kind, error, trace)
