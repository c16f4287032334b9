"""Debian's unmodified kernel is one machine over two hosts."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from linux_guest import CMDLINE, HIDE, PATIENCE_S, image, initramfs, rate
from testbed import Testbed
from testbed.guest_run import build

PORT = 7300
BYTES = 131072
# CPUs, loops, increments, forks, turns of the token, bytes.
WORK = (2, 1_000_000, 1000, 5, 20, BYTES)
BAD = re.compile(r".*(unstable|soft lockup|detected stall|Kernel panic|BUG:|Oops|FAILED).*")


def checksum(cpus: int, size: int) -> int:
    """Of what the worker fills, slice by slice."""
    total = 0xCBF29CE484222325
    for cpu in range(cpus):
        state = 12345 + cpu
        for _ in range(size // cpus):
            state = (state * 1103515245 + 12345) & 0xFFFFFFFF
            total = ((total ^ (state >> 16 & 0xFF)) * 0x100000001B3) & (2**64 - 1)
    return total


def stats(stderr: str, node: int) -> dict[str, Any]:
    """What a node's memory did, as it told at its end."""
    told = re.findall(rf"^\[n{node} [\d.]+\] stats: (\{{.*\}})$", stderr, re.MULTILINE)
    found: dict[str, Any] = json.loads(told[-1])
    return found


def summary(name: str, told: dict[str, Any]) -> str:
    """One row of the table in docs/linux.md."""
    faults, counters = told["faults"], told["counters"]
    unchanged = counters["left_unchanged"]
    share = 100 * unchanged // (counters["pages_sent"] or 1)
    return (
        f"{name}: read {faults['read']}, write {faults['write']}, upgrade {faults['upgrade']}, "
        f"pages sent {counters['pages_sent']}, without data {counters['sent_without_data']}, "
        f"left unchanged {unchanged} ({share} %)"
    )


@pytest.mark.timeout(2 * PATIENCE_S)
def test_linux_runs_on_both_hosts_as_one_machine(
    bed: Testbed, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    program = build().node
    files = [image(tmp_path), initramfs(tmp_path, "init", (), "worker"), program]
    for host in bed.hosts:
        for source in files:
            host.copy_in(source, f"/tmp/{source.name}")
    khz = rate(bed.hosts[0])
    work = ",".join(str(number) for number in WORK)
    command_line = f"{CMDLINE} nokaslr isolcpus=1 rcu_nocbs=1 tsc_early_khz={khz} lpj={4 * khz} "
    addresses = ",".join(f"{host.address}:{PORT}" for host in bed.hosts)
    nodes = [
        host.start(
            [
                *("/tmp/vm_node", str(index), addresses, "0,1", "192", "/tmp/image"),
                *("/tmp/guest.cpio", f"{command_line} WORK={work}", HIDE, "--tsc=shared"),
            ]
        )
        for index, host in enumerate(bed.hosts)
    ]
    ended = [node.wait(PATIENCE_S) for node in nodes]

    console = ended[0].stdout
    for index, node in enumerate(ended):
        assert node.status == 0, f"{console[-6000:]}\n{node.stderr[-3000:]}"
        assert re.search(rf"^\[n{index} [\d.]+\] ended: PowerOff$", node.stderr, re.MULTILINE)
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
        for index, node in enumerate(ended):
            print(f"\nLinux, node {index}: {summary(f'n{index}', stats(node.stderr, index))}")
