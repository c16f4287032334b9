"""A virtual machine monitor of its own, with giantvm for nothing but the guest's memory.

Two nodes, each a process. Node b writes numbers into the region. Node a gives the region to KVM as
the memory of a guest, by ioctls of its own; the guest, a few instructions of 16-bit code, adds the
numbers up and writes the sum, which node b finds in its memory.

    python examples/embed_vmm.py
"""

from __future__ import annotations

import fcntl
import mmap
import multiprocessing
import os
import struct
import sys
import tempfile

import numpy as np

import giantvm

MEMORY = 1 << 20
CODE, NUMBERS, COUNT, SUM = 0x1000, 0x2000, 0x4000, 0xA000
GUEST = bytes.fromhex(
    "be0020"  # mov si, NUMBERS
    "b90040"  # mov cx, COUNT
    "31c0"  # xor ax, ax
    "0304"  # add ax, [si]
    "83c602"  # add si, 2
    "e2f9"  # loop back to the addition
    "a300a0"  # mov [SUM], ax
    "f4"  # hlt
)

CREATE_VM, VCPU_MMAP_SIZE, CREATE_VCPU, SET_TSS, RUN = 0xAE01, 0xAE04, 0xAE41, 0xAE47, 0xAE80
SET_MEMORY, SET_REGS, GET_SREGS, SET_SREGS = 0x4020AE46, 0x4090AE82, 0x8138AE83, 0x4138AE84
EXIT_HLT = 5


def run_guest(address: int) -> int:
    """Runs the guest on memory that is mapped at `address`; why it stopped, as KVM says."""
    kvm = os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC)
    vm = fcntl.ioctl(kvm, CREATE_VM, 0)
    fcntl.ioctl(vm, SET_TSS, 0x7FFBD000)
    fcntl.ioctl(vm, SET_MEMORY, struct.pack("=IIQQQ", 0, 0, 0, MEMORY, address))
    vcpu = fcntl.ioctl(vm, CREATE_VCPU, 0)
    sregs = bytearray(312)
    fcntl.ioctl(vcpu, GET_SREGS, sregs)
    struct.pack_into("=Q", sregs, 0, 0)  # cs.base
    struct.pack_into("=H", sregs, 12, 0)  # cs.selector
    fcntl.ioctl(vcpu, SET_SREGS, bytes(sregs))
    fcntl.ioctl(vcpu, SET_REGS, struct.pack("=18Q", *[0] * 16, CODE, 2))  # rip, rflags
    with mmap.mmap(vcpu, fcntl.ioctl(kvm, VCPU_MMAP_SIZE, 0)) as run:
        # The guest waits for pages in here, without Python's lock.
        fcntl.ioctl(vcpu, RUN, 0)
        reason: int = struct.unpack_from("=I", run, 8)[0]
    return reason


def node(name: str, specs: list[giantvm.NodeSpec]) -> None:
    """The process of one node."""
    with giantvm.Node(nodes=specs, name=name) as node:
        take_part(node)


def take_part(node: giantvm.Node) -> None:
    """What the two do."""
    memory = node.region("guest", MEMORY).array(MEMORY, np.uint8)
    if node.name == "b":
        memory[NUMBERS : NUMBERS + 2 * COUNT].view("<u2")[:] = np.arange(COUNT)
        node.barrier("written").wait()
        node.barrier("added").wait()
        found, wanted = memory[SUM : SUM + 2].view("<u2")[0], sum(range(COUNT)) & 0xFFFF
        print(f"node b: the guest on node a found {found}, which is {found == wanted}")
    else:
        memory[CODE : CODE + len(GUEST)] = np.frombuffer(GUEST, np.uint8)
        node.barrier("written").wait()
        if (reason := run_guest(memory.ctypes.data)) != EXIT_HLT:
            raise SystemExit(f"the guest stopped for reason {reason}")
        node.barrier("added").wait()


def main() -> int:
    """Runs both nodes; 0 if both succeed."""
    spawn = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as directory:
        specs = [giantvm.NodeSpec(n, f"unix:{directory}/{n}.sock", 64 << 20) for n in "ab"]
        processes = [spawn.Process(target=node, args=(spec.name, specs)) for spec in specs]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
    return max(abs(process.exitcode or 0) for process in processes)


if __name__ == "__main__":
    sys.exit(main())
