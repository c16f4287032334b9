"""The examples of embedding, run as a reader runs them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("giantvm._native", reason="the native module is not built")

from cluster import ANSWER_S, skip_without_kernel

EXAMPLES = Path(__file__).parent.parent / "examples"


def run(name: str) -> list[str]:
    """What an example prints, line by line."""
    skip_without_kernel()
    if not Path("/dev/kvm").exists():
        pytest.skip("this machine has no /dev/kvm")
    done = subprocess.run(
        [sys.executable, EXAMPLES / name],
        capture_output=True,
        text=True,
        timeout=ANSWER_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_a_monitor_of_its_own_runs_a_guest_on_a_regions_memory() -> None:
    total = sum(range(0x4000)) & 0xFFFF
    assert run("embed_vmm.py") == [f"node b: the guest on node a found {total}, which is True"]
    lines = (EXAMPLES / "embed_vmm.py").read_text().splitlines()
    assert len(lines) < 100


def test_a_device_of_ones_own_changes_the_guests_memory() -> None:
    lines = sorted(run("embed_vcpus.py"))
    assert lines == [
        "WRITTEN ON NODE A, READ AND CHANGED ON NODE B",
        "node a: debug-exit, status 1",
        "node b: debug-exit, status 1",
    ]
