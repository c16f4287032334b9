"""What tests run on hosts of the testbed: `kvm` by itself, `share` as a program of a node."""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import struct
import sys
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from giantvm import Node

KVM_CREATE_VM: Final = 0xAE01
KVM_GET_VCPU_MMAP_SIZE: Final = 0xAE04
KVM_CREATE_VCPU: Final = 0xAE41
KVM_SET_USER_MEMORY_REGION: Final = 0x4020AE46
KVM_RUN: Final = 0xAE80
KVM_GET_REGS: Final = 0x8090AE81
KVM_SET_REGS: Final = 0x4090AE82
KVM_GET_SREGS: Final = 0x8138AE83
KVM_SET_SREGS: Final = 0x4138AE84
KVM_EXIT_IO: Final = 2

CODE: Final = b"\xb0\x2a\xe6\x10"
"""mov al, 42; out 0x10, al"""

_REGS: Final = 18 * 8
_RIP: Final = 16 * 8
_SREGS: Final = 312
_CS_BASE, _CS_SELECTOR = 0, 12

WORDS: Final = 2048


def kvm() -> None:
    """A virtual machine of one instruction or two."""
    device = os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC)
    vm = fcntl.ioctl(device, KVM_CREATE_VM, 0)
    memory = mmap.mmap(-1, mmap.PAGESIZE)
    memory[: len(CODE)] = CODE
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    slot = struct.pack("<IIQQQ", 0, 0, 0, mmap.PAGESIZE, address)
    fcntl.ioctl(vm, KVM_SET_USER_MEMORY_REGION, slot)
    vcpu = fcntl.ioctl(vm, KVM_CREATE_VCPU, 0)
    run = mmap.mmap(vcpu, fcntl.ioctl(device, KVM_GET_VCPU_MMAP_SIZE, 0))
    sregs = bytearray(_SREGS)
    fcntl.ioctl(vcpu, KVM_GET_SREGS, sregs)
    struct.pack_into("<Q", sregs, _CS_BASE, 0)
    struct.pack_into("<H", sregs, _CS_SELECTOR, 0)
    fcntl.ioctl(vcpu, KVM_SET_SREGS, sregs)
    regs = bytearray(_REGS)
    struct.pack_into("<QQ", regs, _RIP, 0, 2)
    fcntl.ioctl(vcpu, KVM_SET_REGS, regs)
    fcntl.ioctl(vcpu, KVM_RUN, 0)
    (reason,) = struct.unpack_from("<I", run, 8)
    assert reason == KVM_EXIT_IO, f"exit {reason}"
    _, _, port, _, offset = struct.unpack_from("<BBHIQ", run, 32)
    print(f"port {port:#x} got {run[offset]}")


def share(node: Node, arguments: list[str]) -> int:  # noqa: ARG001 - the form of a program
    """The first node writes numbers, the second adds them up."""
    numbers = node.region("numbers", WORDS * 8).array(WORDS, "i8", name="numbers")
    if node.name == node.nodes[0]:
        numbers[:] = range(WORDS)
    node.barrier("written").wait()
    if node.name != node.nodes[0]:
        print(f"mode {node.status()['userfaultfd']}, sum {numbers.sum()}")
    node.barrier("read").wait()
    return 0


if __name__ == "__main__":
    {"kvm": kvm}[sys.argv[1]]()
