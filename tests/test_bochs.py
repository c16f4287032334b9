"""The guest does on Intel hosts with EPT what it does on this machine."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from linux_guest import CMDLINE, image, initramfs, scheduling
from linux_run import CPUS, MEMORY_MIB, check_console, worker
from testbed import MissingError, TestbedError, bochs_image
from testbed.bochs import BochsHost
from testbed.bochs_image import check_bochs
from testbed.guest_run import (
    TESTS,
    Programs,
    build,
    logs_directory,
    run_here,
    run_on_one,
    script,
    told,
)
from testbed.programs import libraries

RUN_S = 900
LINUX_S = 2400

# How much slower the guest's clock runs. Bochs counts instructions for time, and pages come soon.
SLOWER = 8


@pytest.fixture(scope="module")
def programs() -> Programs:
    try:
        check_bochs()
        return build()
    except MissingError as error:
        pytest.skip(str(error))


@pytest.fixture
def here(programs: Programs, tmp_path: Path) -> str:
    """What the guest says on this machine's own KVM."""
    try:
        return told(run_here(programs, tmp_path))
    except MissingError as error:
        pytest.skip(str(error))


@pytest.mark.long
@pytest.mark.timeout(RUN_S + 300)
def test_guest_on_two_nodes_of_an_intel_host(programs: Programs, here: str) -> None:
    """SMP start and every kind of IPI, by kvm_intel with EPT and its accessed bits."""
    assert here.count("result=passed") == len(TESTS)
    assert told(run_on_one(programs, logs_directory(), RUN_S).output) == here


def linux(files: Sequence[str], words: str) -> str:
    """The commands that run Linux over two nodes until it would power off; they print its console.

    A processor that stops for good halts with interrupts off. A real one still leaves the guest for
    the next interrupt of the host; Bochs would stay there for ever.
    """
    node = f"./vm_node $node unix:./n0,unix:./n1 0,1 {MEMORY_MIB} {' '.join(files)}"
    return f"""
khz=$(busybox dmesg | busybox sed -n 's/.*tsc: Detected \\([0-9]*\\)[.]\\([0-9]*\\) MHz.*/\\1\\2/p')
words="{words} tsc_early_khz=$(({SLOWER} * khz))"
node=1; {node} "$words STAY=1" --tsc=shared >/dev/null & second=$!
node=0; {node} "$words STAY=1" --tsc=shared >console & first=$!
until busybox grep -q "init: power off" console; do
    kill -0 $first && kill -0 $second || break
    busybox sleep 1
done
busybox cat console
kill $first $second
"""


@pytest.mark.long
@pytest.mark.timeout(LINUX_S + 300)
def test_linux_on_two_nodes_of_an_intel_host(programs: Programs, tmp_path: Path) -> None:
    files = {
        "image": image(tmp_path),
        "guest.cpio": initramfs(tmp_path, "init", (), "worker"),
        "vm_node": programs.node,
    }
    words = f"{CMDLINE} nokaslr {scheduling(CPUS)} {worker(CPUS)}"
    job = linux(("image", "guest.cpio"), words)
    with BochsHost(job, files, logs=logs_directory(), memory_mib=1024) as host:
        done = host.wait(LINUX_S)
        assert done.status == 0, host.last_words()
    check_console(done.output, CPUS)


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bochs_image, "find", lambda _: None)
    with pytest.raises(MissingError, match=r"apt-get install .*\bbochs .*\bxorriso\b"):
        check_bochs()


def test_programs_travel_with_their_libraries(tmp_path: Path) -> None:
    found = libraries(Path("/bin/sh"))
    assert all(library.is_file() for library in found)
    names = {library.name for library in found}
    assert "libc.so.6" in names
    assert any(name.startswith("ld-linux") for name in names)
    broken = tmp_path / "text"
    broken.write_text("no program")
    with pytest.raises(TestbedError, match="its libraries are not known"):
        libraries(broken)


def test_a_failing_node_ends_the_script_with_its_status(tmp_path: Path) -> None:
    node = tmp_path / "vm_node"
    node.write_text('#!/bin/sh\necho "$@"\n[ "$1" = 0 ] || exit 7\n')
    node.chmod(0o755)
    job = script([0, 1], ["unix:./a{test}", "unix:./b{test}"], ["test=x count=1", "test=y"])
    done = subprocess.run(
        ["/bin/sh", "-c", job], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 7
    assert done.stdout == "0 unix:./a0,unix:./b0 0,1 64 guest.elf - test=x count=1\n"
