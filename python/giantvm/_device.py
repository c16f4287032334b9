"""Devices in Python, and the thread that serves them."""

from __future__ import annotations

import logging
import threading
import traceback
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from giantvm._native import NativeRequest, NativeVm
from giantvm.vmspec import Mmio, Pio

if TYPE_CHECKING:
    from giantvm._vm import Vm

__all__ = ["Device", "Server"]

_log = logging.getLogger("giantvm.vm")

_MSI_ADDRESS = 0xFEE00000


class Device:
    """A device of a virtual machine: derive from it, and override `read`, `write` and `reset`.

    The object lives on one node, its home. Its methods are called there, by one thread that serves
    all devices of the node, one call after the other: no lock is needed, and a method that takes
    long keeps the vCPU that waits for it, and the other devices of that node. A device may start
    threads of its own: the methods that are not to be overridden may be called from any.

    A method that raises ends the virtual machine on all nodes, with that reason.
    """

    ranges: Sequence[Pio | Mmio] = ()
    """Where the guest finds it. Offsets go on from one range to the next, in this order."""
    doorbells: Sequence[tuple[int, int]] = ()
    """Offsets, as (first, how many), at which a vCPU of another node goes on before the write has
    taken effect. Elsewhere it waits, as on one machine."""

    _vm: Vm | None = None
    _name = "?"

    # To be overridden.

    def read(self, offset: int, size: int) -> int:  # noqa: ARG002 - the form of it
        """What the guest reads: `size` bytes (1, 2, 4 or 8) at `offset`, as a number.

        Unless overridden it finds all ones, as where there is no device.
        """
        return (1 << 8 * size) - 1

    def write(self, offset: int, size: int, value: int) -> None:
        """The guest writes `value`, a number of `size` bytes, at `offset`."""

    def reset(self) -> None:
        """Goes into the state after power-on. Called first of all, and whenever the guest resets.

        No access is served, and after a reset the guest does not start, before it has returned.
        What the device has under way must have ended then.
        """

    # To be used.

    @property
    def name(self) -> str:
        """Its name."""
        return self._name

    @property
    def vm(self) -> Vm:
        """The virtual machine that it belongs to."""
        if self._vm is None:
            raise RuntimeError("this device belongs to no virtual machine yet")
        return self._vm

    def memory(self, address: int, size: int) -> memoryview:
        """`size` bytes of the guest's RAM from guest-physical `address`: for DMA.

        Reading and writing it is coherent with all vCPUs, with nothing to be pinned or flushed.
        `ValueError` if it is not all RAM.
        """
        return self.vm.view(address, size)

    def set_line(self, pin: int, high: bool) -> None:
        """Drives the line to a pin of the IOAPIC."""
        self.vm.set_line(pin, high)

    def send_msi(self, address: int, data: int) -> None:
        """Sends a message-signalled interrupt, as a PCI device does, to any vCPU."""
        self.vm.send_msi(address, data)

    def interrupt(self, vcpu: int, vector: int) -> None:
        """Interrupts a vCPU, edge-triggered, with `vector` (16 to 255)."""
        if not 0 <= vcpu < len(self.vm.spec.vcpus):
            raise ValueError(f"there is no vCPU {vcpu}: there are {len(self.vm.spec.vcpus)}")
        if not 16 <= vector <= 255:
            raise ValueError(f"vector {vector}: give 16 to 255")
        self.vm.send_msi(_MSI_ADDRESS | vcpu << 12, vector)


class Server:
    """The thread that serves the devices of one node."""

    def __init__(self, native: NativeVm, node: str, devices: Mapping[int, Device]) -> None:
        self._native = native
        self._node = node
        self._devices = devices
        self._failed = False
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="giantvm-devices", daemon=True)

    def start(self) -> None:
        """Starts it, and waits until all devices are in the state after power-on."""
        self._thread.start()
        self._ready.wait()

    def join(self) -> None:
        """Waits for its end, once the virtual machine is closed; not if a device closes it."""
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _serve(self) -> None:
        for device in self._devices.values():
            try:
                device.reset()
            except BaseException as error:
                self._fail(device, "reset()", error)
        self._ready.set()
        while (request := self._native.next_request()) is not None:
            # After a failure the rest is answered as nobody would.
            if not self._failed:
                self._answer(request)

    def _answer(self, request: NativeRequest) -> None:
        device, offset, size = self._devices[request.device], request.offset, request.size
        try:
            match request.kind:
                case "read":
                    request.answer(_checked(device.read(offset, size), size))
                case "write":
                    device.write(offset, size, request.value)
                    request.answer(None)
                case _:
                    device.reset()
                    request.answer(None)
        except BaseException as error:
            call = {
                "read": f"read(offset={offset:#x}, size={size})",
                "write": f"write(offset={offset:#x}, size={size}, value={request.value:#x})",
            }.get(request.kind, "reset()")
            self._fail(device, call, error)

    def _fail(self, device: Device, call: str, error: BaseException) -> None:
        self._failed = True
        _log.error("device %r of node %s: %s", device.name, self._node, call, exc_info=error)
        frames = traceback.extract_tb(error.__traceback__)
        place = f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames else ""
        what = "".join(traceback.format_exception_only(error)).strip()
        self._native.fail(f"device {device.name!r}: {call} raised {what}{place}")


def _checked(value: int, size: int) -> int:
    if not isinstance(value, int):
        raise TypeError(f"read must return a number, not {value!r}")
    if not 0 <= value < 1 << 8 * size:
        raise ValueError(f"read returned {value:#x}, which is no number of {size} bytes")
    return value
