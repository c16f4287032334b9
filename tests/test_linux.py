"""Debian's unmodified kernel is one machine over two hosts."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path

import pytest

from linux_guest import LATE, PATIENCE_S, SCHEDULING, checksum
from linux_run import BYTES, HEADER, MEMORY_MIB, PLACES, WORK, put, row, run
from testbed import Testbed

BAD = re.compile(r".*(unstable|soft lockup|detected stall|Kernel panic|BUG:|Oops|FAILED).*")


@pytest.mark.timeout(2 * PATIENCE_S)
def test_linux_runs_on_both_hosts_as_one_machine(
    bed: Testbed, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put(bed.hosts, tmp_path)
    ran = run(bed.hosts, PLACES["two-hosts"])

    console = ran.console
    for node in ran.nodes:
        assert node.powered_off(), f"{console[-6000:]}\n{node.stderr[-3000:]}"
    said = [line.strip() for line in console.splitlines()]
    count = WORK[0] * WORK[2]
    for line in (
        "init: cpus 0-1",
        *(f"busy: cpu={cpu} loops={WORK[1]}" for cpu in range(2)),
        f"count: counter={count}",
        f"forks: cpus=2 each={WORK[3]}",
        f"tokens: turns={WORK[0] * WORK[4]}",
        *(f"checksum: cpu={cpu} bytes={BYTES} sum={checksum(2, BYTES):016x}" for cpu in range(2)),
        "init: the worker is content",
        "init: power off",
    ):
        assert line in said, f"{line!r} is not in:\n{console[-8000:]}"
    assert any(re.fullmatch(r"init: clocksource tsc(-early)?", line) for line in said)
    assert not [line for line in said if BAD.fullmatch(line)]
    assert re.search(r"node +#1, CPUs: +#1", console), "CPU 1 is on a NUMA node of its own"
    with capsys.disabled():
        print(f"\n{HEADER}")
        for index in range(len(ran.nodes)):
            print(row("two-hosts", index, ran))


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
        f"{SCHEDULING} {LATE} COPIES={copies}",
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
