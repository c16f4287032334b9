"""A virtual machine in a program: memory and vCPUs of giantvm, and a device of one's own.

Two nodes, each a process, with a vCPU each. The device lives on node b: the guest, which starts
on node a, gives it the address of a text, the device turns it into capitals in the guest's memory,
and the guest writes it to its serial port. The guest is a kernel for Multiboot, made here.

    python examples/embed_vcpus.py
"""

from __future__ import annotations

import multiprocessing
import struct
import sys
import tempfile
from pathlib import Path

import giantvm

LOAD = 0x100000
TEXT = b"written on node a, read and changed on node b\n\0"


class Capitals(giantvm.Device):
    """Turns the text at the address that is written to its port into capitals."""

    ranges = (giantvm.Pio(0x5E0, 4),)

    def write(self, offset: int, size: int, value: int) -> None:  # noqa: ARG002
        """Works in the guest's memory, which this node fetches as it touches it."""
        with self.memory(value, 4096) as memory:
            text = bytes(memory).split(b"\0")[0]
            memory[: len(text)] = text.upper()


def kernel(code: bytes) -> bytes:
    """An ELF file with `code`, which Multiboot loaders start at LOAD + 12, in 32-bit mode."""
    header = struct.pack("<III", 0x1BADB002, 0, -0x1BADB002 & 0xFFFFFFFF)
    image = header + code
    start, program = 0x1000, (1, 0x1000, LOAD, LOAD, len(image), len(image), 7, 0x1000)
    elf = struct.pack("<16sHHIIIIIHHHHHH", b"\x7fELF\1\1\1", 2, 3, 1, LOAD + 12, 52, *[0] * 2,
                      52, 32, 1, 0, 0, 0)  # fmt: skip
    return (elf + struct.pack("<8I", *program)).ljust(start, b"\0") + image


def guest() -> bytes:
    """Gives the device the text, writes it out, and ends with status 1."""
    text = struct.pack("<I", LOAD + 0x100)
    code = (
        b"\xba\xe0\x05\0\0"
        b"\xb8" + text + b"\xef"  # mov edx, 0x5e0; mov eax, text; out dx, eax
        b"\xbe" + text + b"\xba\xf8\x03\0\0"  # mov esi, text; mov edx, 0x3f8
        b"\xac\x84\xc0\x74\x03\xee\xeb\xf8"  # until a zero: lodsb; out dx, al
        b"\xba\xf4\0\0\0\x31\xc0\xef\xf4"  # mov edx, 0xf4; xor eax, eax; out dx, eax; hlt
    )
    return kernel(code.ljust(0x100 - 12, b"\0") + TEXT)


def node(name: str, specs: list[giantvm.NodeSpec], file: str) -> None:
    """The process of one node."""
    vm_spec = giantvm.VmSpec(
        "capitals",
        memory_bytes=16 << 20,
        vcpus=(giantvm.Vcpu("a"), giantvm.Vcpu("b")),
        kernel=file,
        devices=(giantvm.DeviceSpec("capitals", "b", Capitals),),
    )
    with giantvm.Node(nodes=specs, name=name) as node, giantvm.Vm(node, vm_spec) as vm:
        if name == "a":
            vm.run()
            while data := vm.console.read():
                print(data.decode(), end="")
        outcome = vm.wait()
        print(f"node {name}: {outcome.kind}, status {outcome.status}")


def main() -> int:
    """Runs both nodes; 0 if both succeed."""
    spawn = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory, "guest.elf")
        file.write_bytes(guest())
        specs = [giantvm.NodeSpec(n, f"unix:{directory}/{n}.sock", 64 << 20) for n in "ab"]
        arguments = [(spec.name, specs, str(file)) for spec in specs]
        processes = [spawn.Process(target=node, args=each) for each in arguments]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
    return max(abs(process.exitcode or 0) for process in processes)


if __name__ == "__main__":
    sys.exit(main())
