"""Debian's unmodified kernel is one machine over two hosts."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from linux_guest import PATIENCE_S, SCHEDULING
from linux_run import BAD, CPUS, HEADER, MEMORY_MIB, PLACES, Run, check_console, put, row, run
from testbed import Testbed, kernel

OTHER_KERNELS = ("linux-image-6.12-amd64", "linux-image-cloud-amd64", "linux-image-amd64")
"""Debian's packages of 6.12 for any machine, and of 6.1 for clouds and for any machine."""


def check(ran: Run, cpus: int) -> None:
    """Each node ended well, and each processor did its part of the work."""
    for node in ran.nodes:
        assert node.powered_off(), f"{ran.console[-6000:]}\n{node.stderr[-3000:]}"
    check_console(ran.console, cpus)


@pytest.mark.timeout(2 * PATIENCE_S)
def test_linux_runs_on_both_hosts_as_one_machine(
    bed: Testbed, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put(bed.hosts, tmp_path)
    ran = run(bed.hosts, PLACES["two-hosts"])
    check(ran, CPUS)
    with capsys.disabled():
        print(f"\n{HEADER}")
        for index in range(len(ran.nodes)):
            print(row("two-hosts", index, ran))


@pytest.mark.long
@pytest.mark.timeout(2 * PATIENCE_S)
@pytest.mark.parametrize("package", OTHER_KERNELS)
def test_other_kernels_of_debian(bed: Testbed, tmp_path: Path, package: str) -> None:
    put(bed.hosts, tmp_path, package=package)
    ran = run(bed.hosts, PLACES["two-hosts"])
    check(ran, CPUS)
    assert f"init: kernel {kernel(package).release}" in ran.console


@pytest.mark.long
@pytest.mark.timeout(2 * PATIENCE_S)
def test_linux_uses_more_memory_than_any_host_gives(bed: Testbed, tmp_path: Path) -> None:
    """The loader, a disk on the second host and programs on both fill it; no byte is lost."""
    share_mib, copies = MEMORY_MIB * 9 // 16, 6
    content = os.urandom(16 << 20)
    (tmp_path / "disk").write_bytes(content)
    put(bed.hosts, tmp_path, "memory.sh", ("virtio_blk",))
    bed.hosts[1].copy_in(tmp_path / "disk", "/tmp/disk")
    ran = run(
        bed.hosts,
        PLACES["two-hosts"],
        f"{SCHEDULING} COPIES={copies}",
        late=True,
        node_options=[f"--share-mib={share_mib}", "--virtio=disk:vol0:1:/tmp/disk"],
    )

    said = [line.strip() for line in ran.console.splitlines()]
    for node in ran.nodes:
        assert node.powered_off(), f"{ran.console[-6000:]}\n{node.stderr[-3000:]}"
    for copy in range(1, copies + 1):
        line = f"memory: {copy} {hashlib.sha256(content).hexdigest()}"
        assert line in said, f"{line!r} is not in:\n{ran.console[-8000:]}"
    assert not [line for line in said if BAD.fullmatch(line)]
    assert all(node.stats()["pages_evicted"] for node in ran.nodes)
