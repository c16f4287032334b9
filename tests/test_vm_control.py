"""What a program does with a virtual machine, and what it is told where that can't be."""

from __future__ import annotations

import contextlib
import os
import re
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("giantvm._native", reason="the native module is not built")

import giantvm
from cluster import ANSWER_S, Site, alone
from embed_vcpus import kernel
from giantvm import Device, DeviceSpec, GuestFault, Mmio, NodeLost, Pio, Vcpu, Vm, VmFailed, VmSpec
from vm_cluster import MIB, VmCluster, ask, begin, guest, outcome, said, spec, vm_of
from vm_device import TestDevice

LOOP = b"\xf0\xff\x05\0\0\x20\0\xeb\xf7"
"""lock inc dword [COUNT]; jmp back: 32-bit code that never ends."""
COUNT = 0x200000
POWER_OFF = b"\xba\0\x06\0\0\xb0\x34\xee\xf4"
"""mov edx, 0x600; mov al, 0x34 (S5, sleep); out dx, al; hlt."""


def made(directory: Path, code: bytes, **fields: Any) -> VmSpec:
    """A machine of two nodes whose guest is this code."""
    guest()  # Skips where it can't run.
    file = directory / "guest.elf"
    file.write_bytes(kernel(code))
    made = VmSpec("test", 16 * MIB, (Vcpu("a"), Vcpu("b")), kernel=file)
    return replace(made, **fields)


def count(site: Site) -> int:
    """How far the guest is."""
    with vm_of(site).view(COUNT, 4) as view:
        return int.from_bytes(view, "little")


def pause(site: Site) -> str:
    vm_of(site).pause(ANSWER_S)
    return vm_of(site).state


def wait_for_count(site: Site, more_than: int) -> None:
    while count(site) <= more_than:
        assert vm_of(site).state == "running"


def wait_for(site: Site, state: str) -> None:
    vm_of(site).wait_for(state, timeout_s=ANSWER_S)  # type: ignore[arg-type]


def test_pause_run_and_stop_reach_all_nodes(tmp_path: Path) -> None:
    with VmCluster(2, made(tmp_path, LOOP)) as machine:
        nodes = machine.cluster
        nodes.each(wait_for, "ready")
        nodes.call(1, ask, "run")
        nodes.call(1, wait_for, "running")
        nodes.call(1, wait_for_count, 1000)
        # The other node than that of the vCPU asks.
        assert nodes.call(1, pause) == "paused"
        nodes.call(0, wait_for, "paused")
        before = nodes.call(1, count)
        assert [nodes.call(0, count), nodes.call(1, count)] == [before, before]
        nodes.call(0, ask, "run")
        nodes.each(wait_for, "running")
        nodes.call(1, wait_for_count, before)
        nodes.call(1, ask, "stop")
        assert [found.kind for found in machine.outcomes()] == ["stopped", "stopped"]


def test_reset_starts_the_guest_and_the_devices_again(tmp_path: Path) -> None:
    devices = (DeviceSpec("test", "b", Resets),)
    with VmCluster(2, made(tmp_path, LOOP, devices=devices)) as machine:
        nodes = machine.cluster
        nodes.call(0, ask, "run")
        nodes.each(wait_for, "running")
        nodes.call(0, wait_for_count, 1000)
        assert nodes.call(1, resets) == 1
        nodes.call(1, ask, "reset")
        nodes.call(1, wait_for_resets, 2)
        nodes.each(wait_for, "running")


class Resets(Device):
    """Counts its resets."""

    ranges = (Pio(0x5E0, 16),)
    count = 0

    def reset(self) -> None:
        self.count += 1


def resets(site: Site) -> int:
    device = vm_of(site).devices["test"]
    assert isinstance(device, Resets)
    return device.count


def wait_for_resets(site: Site, wanted: int) -> None:
    while resets(site) < wanted:
        assert vm_of(site).state != "ended"


class Adds(Device):
    """Adds 1 to a number in the guest's memory when the guest writes to it."""

    def __init__(self, port: int) -> None:
        self.ranges = (Pio(port, 4),)

    def write(self, offset: int, size: int, value: int) -> None:  # noqa: ARG002
        with self.memory(COUNT, 4) as view:
            view[:] = (int.from_bytes(view, "little") + 1).to_bytes(4, "little")


TURNS = (
    b"\xb9\xc8\0\0\0"  # mov ecx, 200
    b"\xba\xe0\x05\0\0\xef\xba\xe8\x05\0\0\xef"  # out 0x5e0; out 0x5e8
    b"\xf0\xff\x05\0\0\x20\0\xe2\xeb"  # lock inc dword [COUNT]; loop
    b"\xba\xf4\0\0\0\x31\xc0\xef\xf4"  # out 0xf4
)


def test_devices_of_two_nodes_and_the_guest_write_one_page_in_turns(tmp_path: Path) -> None:
    devices = tuple(
        DeviceSpec(f"adds-{node}", node, Adds, (Pio(port, 4),), options={"port": port})
        for node, port in (("b", 0x5E0), ("c", 0x5E8))
    )
    with VmCluster(3, made(tmp_path, TURNS, devices=devices)) as machine:
        assert machine.run() == [("debug-exit", 1)] * 3
        assert machine.cluster.each(count) == [600] * 3


def test_a_guest_that_powers_off_ends_on_all_nodes(tmp_path: Path) -> None:
    with VmCluster(2, made(tmp_path, POWER_OFF)) as machine:
        assert machine.run() == [("power-off", None)] * 2


def test_the_end_of_one_node_in_good_order_is_the_end_of_all(tmp_path: Path) -> None:
    with VmCluster(2, made(tmp_path, LOOP)) as machine:
        machine.cluster.call(0, ask, "run")
        machine.cluster.each(wait_for, "running")
        machine.cluster.call(1, ask, "close")
        assert machine.cluster.call(0, outcome).kind == "stopped"


def fault(site: Site) -> tuple[str, dict[str, int]]:
    with pytest.raises(GuestFault) as error:
        vm_of(site).wait(ANSWER_S)
    found = vm_of(site).outcome
    assert found is not None
    return str(error.value), found.registers


def test_a_triple_fault_is_an_exception_with_registers() -> None:
    with VmCluster(2, spec("ab", "test=triplefault")) as machine:
        machine.cluster.call(0, ask, "run")
        for text, registers in machine.cluster.each(fault):
            assert text.startswith("vCPU 0 on node a: triple fault")
            assert registers["rip"] > 1 << 20
            assert registers["cr0"] & 1


def failure(site: Site) -> str:
    with pytest.raises(VmFailed) as error:
        vm_of(site).wait(ANSWER_S)
    return str(error.value)


class Faulty(TestDevice):
    """Fails where `method` says."""

    def __init__(self, method: str) -> None:
        self.method = method

    def read(self, offset: int, size: int) -> int:
        if self.method == "read":
            raise LookupError("no such register")
        if self.method == "too much":
            return 1 << 8 * size
        return super().read(offset, size)

    def write(self, offset: int, size: int, value: int) -> None:
        if self.method == "write":
            raise LookupError("no such register")
        if self.method == "dma":
            self.memory(64 * MIB - 4, 8)
        super().write(offset, size, value)

    def reset(self) -> None:
        if self.method == "reset":
            raise LookupError("no such register")
        super().reset()


@pytest.mark.parametrize(
    ("method", "told"),
    [
        ("read", r"read\(offset=0x\w+, size=4\) raised LookupError: no such register \(.*vm_"),
        ("write", r"write\(offset=0x\w+, size=\d, value=0x\w+\) raised LookupError: no such"),
        ("reset", r"reset\(\) raised LookupError: no such register"),
        ("too much", r"read\(.*\) raised ValueError: read returned 0x\w+, which is no number of 4"),
        ("dma", r"addresses 0x3fffffc to 0x4000004 are not all RAM: 0x0 to 0x4000000 is"),
    ],
)
def test_a_device_that_fails_ends_the_machine_with_the_reason(method: str, told: str) -> None:
    devices = (DeviceSpec("faulty", "b", Faulty, options={"method": method}),)
    with VmCluster(2, spec("ab", "test=io count=1", devices=devices)) as machine:
        machine.cluster.call(0, ask, "run")
        for reason in machine.cluster.each(failure):
            assert reason.startswith("node b: device 'faulty': ")
            assert re.search(told, reason), reason
        assert "Traceback" in machine.cluster.nodes[1].log()


def refusal(site: Site, vm: VmSpec) -> str:
    """Why a node can't begin its part."""
    with pytest.raises((giantvm.ConfigError, giantvm.ClusterError)) as error:
        Vm(site.node, vm, timeout_s=ANSWER_S)
    return str(error.value)


def device(*ranges: Pio | Mmio, name: str = "test") -> DeviceSpec:
    return DeviceSpec(name, "a", TestDevice, ranges=ranges)


REFUSALS: list[tuple[dict[str, Any], str]] = [
    ({"vcpus": (Vcpu("c"),)}, "vCPU 0 is on node 'c', which the cluster has not"),
    ({"vcpus": (Vcpu("a"),) * 256}, "256 vCPUs; a virtual machine has at most 255"),
    ({"platform": "z"}, "the platform is on node 'z', which the cluster has not"),
    ({"devices": (device(Pio(0x5E0, 1)), device(Pio(0x5F0, 1)))}, "two devices are named"),
    (
        {"devices": (device(Pio(0x5E0, 8)), device(Pio(0x5E4, 8), name="other"))},
        "device other claims ports 0x5e4 to 0x5eb, but test has ports 0x5e0 to 0x5e7: move one",
    ),
    ({"devices": (device(Pio(0x3F8, 1)),)}, "but COM1 has ports 0x3f8 to 0x3ff: move one of them"),
    ({"devices": (device(Mmio(0x100000, 4096)),)}, "where RAM is"),
    ({"devices": (device(),)}, "device 'test' answers nowhere: give `ranges`"),
    ({"kvm": "/nowhere/kvm"}, "node a: /nowhere/kvm does not exist: load kvm_intel or kvm_amd"),
    ({"kvm": "/dev/null"}, "node a: /dev/null can't be used as KVM"),
    ({"kernel": "/nowhere/kernel"}, "can't read /nowhere/kernel: No such file or directory"),
    ({"hide": ("warp",)}, 'unknown processor feature "warp"'),
    ({"memory_bytes": 4097}, "it must be a multiple of 4096, from 2 MiB to"),
    ({"memory_bytes": 1 << 40}, "raise `memory`, or open it with overcommit"),
]


@pytest.mark.parametrize(("fields", "told"), REFUSALS, ids=[told[:30] for _, told in REFUSALS])
def test_what_can_not_be_is_refused_with_the_reason(fields: dict[str, Any], told: str) -> None:
    vm = spec("a", devices=())
    assert told in alone(refuse_alone, replace(vm, **fields))


def refuse_alone(directory: Path, vm: VmSpec) -> str:
    nodes = [giantvm.NodeSpec(n, f"unix:{directory}/{n}.sock", 128 * MIB) for n in "a"]
    with giantvm.Node(nodes=nodes) as node:
        return refusal(Site(node, directory), vm)


def without_rights(directory: Path, vm: VmSpec) -> str:
    os.chmod(directory, 0o777)
    os.setresuid(65534, 65534, 65534)
    return refuse_alone(directory, vm)


def test_who_may_not_open_kvm_is_told_what_to_do(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can become somebody else")
    # As /dev/kvm is for those who are not in the group kvm.
    node = tmp_path / "kvm"
    node.touch(mode=0o600)
    for above in (tmp_path, *tmp_path.parents[:2]):
        above.chmod(0o755)
    told = alone(without_rights, spec("a", devices=(), kvm=os.fspath(node)))
    assert f"no permission to open {node}: run as root, or join the group kvm" in told


def begin_other(site: Site, vm: VmSpec, other: VmSpec) -> None:
    begin(site, vm if site.node.index == 0 else other)


def test_nodes_with_different_descriptions_are_told_so(tmp_path: Path) -> None:
    vm = made(tmp_path, LOOP)
    with VmCluster(2, vm, begin=begin_other, more=(replace(vm, hide=("avx2",)),)) as machine:
        for reason in machine.cluster.each(failure):
            assert "nodes a and b describe different virtual machines; give all nodes the" in reason


def test_a_kernel_that_is_none_fails_on_all_nodes_with_what_it_is() -> None:
    with VmCluster(2, spec("ab", kernel=__file__)) as machine:
        for reason in machine.cluster.each(failure):
            assert f"{__file__}: no kernel that can be loaded: this is" in reason


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
def test_nodes_begin_in_any_order(order: tuple[int, ...]) -> None:
    with VmCluster(3, spec("abc"), begin=None) as machine:
        nodes = machine.cluster
        for index in order[:-1]:
            nodes.call(index, begin, machine.spec)
            nodes.call(index, ask, "run")
            assert nodes.call(index, state) == "starting"
        nodes.call(order[-1], begin, machine.spec)
        assert [found.status for found in machine.outcomes()] == [1, 1, 1]
        assert "end: test=smp result=passed" in nodes.call(0, said)


def state(site: Site) -> str:
    return vm_of(site).state


def sockets(path: str) -> set[int]:
    """Descriptors of this process' connections to a node's socket."""
    found = set()
    for entry in map(int, os.listdir("/proc/self/fd")):
        with contextlib.suppress(OSError):
            copy = socket.socket(fileno=os.dup(entry))
            with copy:
                if copy.family == socket.AF_UNIX and str(copy.getpeername()).endswith(path):
                    found.add(entry)
    return found


def watch_vm(site: Site, vm: VmSpec) -> None:
    """Begins the part, and notes the connections that only then are watched."""
    from test_refusals import watched

    before = watched()
    begin(site, vm)
    site.kept["new"] = (watched() - before) & sockets("/a.sock")


def speak_nonsense(site: Site) -> None:
    for entry in site.kept["new"]:
        with socket.socket(fileno=os.dup(entry)) as copy:
            copy.sendall(b"GET / HTTP/1.1\r\n\r\n" * 20)


def lost(site: Site) -> str:
    with pytest.raises(NodeLost) as error:
        vm_of(site).wait(ANSWER_S)
    return str(error.value)


def test_nonsense_on_the_machines_connection_names_who_said_it(tmp_path: Path) -> None:
    with VmCluster(2, made(tmp_path, LOOP), begin=watch_vm) as machine:
        nodes = machine.cluster
        nodes.call(0, ask, "run")
        nodes.each(wait_for, "running")
        nodes.call(1, speak_nonsense)
        reason = nodes.call(0, lost)
        assert reason.startswith("node b is lost: ")
        assert "sent bytes that are no message" in reason
        nodes.call(1, lost)


def test_the_bus_tells_who_answers_and_what_nobody_did() -> None:
    with VmCluster(2, spec("ab", "test=io count=1")) as machine:
        assert machine.run() == [("debug-exit", 1)] * 2
        for node, name in ((0, "a"), (1, "b")):
            claims, _ = machine.cluster.call(node, bus)
            assert claims[Pio(0x5E0, 16)] == ("test", "b")
            assert claims[Pio(0x3F8, 8)] == ("COM1", "a")
            # Every node computes it.
            assert claims[Pio(0x608, 4)][1] == name
        # By the guest's first CPU.
        _, unclaimed = machine.cluster.call(0, bus)
        assert unclaimed.reads > 0


def bus(site: Site) -> Any:
    found = vm_of(site).bus
    return {claim.range: (claim.device, claim.node) for claim in found}, found.unclaimed()


def report(site: Site) -> giantvm.VmReport:
    return vm_of(site).report()


def test_the_report_has_clock_and_faults() -> None:
    with VmCluster(2, spec("ab")) as machine:
        machine.run()
        first, second = machine.cluster.each(report)
        assert first.state == second.state == "ended"
        assert first.clock.tsc_khz == second.clock.tsc_khz > 0
        assert second.memory.faults_total > 0


def foreign_console(site: Site) -> str:
    with pytest.raises(ValueError, match="the serial port is on node 'a'") as error:
        vm_of(site).console.read()
    return str(error.value)


def test_the_console_is_at_the_platforms_home() -> None:
    with VmCluster(2, spec("ab")) as machine:
        assert machine.cluster.call(1, foreign_console).endswith("this is 'b': use it there")
