"""`make demo`: what it makes of the guest's session, and the demonstration itself."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
import termios
from typing import Final

import pytest

pytest.importorskip("giantvm._native", reason="the native module is not built")

import demo_linux
from demo_linux import Console, _check, _check_memory
from linux_guest import HIDE, LATE, slow_clock
from linux_machine import table
from test_vm_run import IN_TERMINAL
from testbed import Testbed
from testbed.kernel import ROOT

DIGEST: Final = "ab" * 32
SESSION: Final = f"""
== one machine

$ lscpu | grep -E '^(Arch|CPU|NUMA)'
CPU(s):                          2
NUMA node(s):                    2
NUMA node0 CPU(s):               0
NUMA node1 CPU(s):               1

$ grep MemTotal /sys/devices/system/node/node*/meminfo
/sys/devices/system/node/node0/meminfo:Node 0 MemTotal:         127552 kB
/sys/devices/system/node/node1/meminfo:Node 1 MemTotal:          90848 kB

== one process on all CPUs

$ primes 2 400000
thread 1 on CPU 1, NUMA node 1: marked 200000 to 399999, found 17984 primes in 0 to 199999
thread 0 on CPU 0, NUMA node 0: marked 0 to 199999, found 15876 primes in 200000 to 399999
2 threads of one process: 33860 primes below 400000

== a disk

$ mount /dev/vda /mnt && sha256sum /mnt/file
{DIGEST}  /mnt/file

$ cp /mnt/file /mnt/copy && sync && sha256sum /mnt/copy
{DIGEST}  /mnt/copy

== a network

$ ping -c 4 -W 20 198.18.7.1
4 packets transmitted, 4 packets received, 0% packet loss

$ wget -q -O - http://198.18.7.1/file | sha256sum
{DIGEST}  -

== a shell
"""


def console(text: str) -> Console:
    made = Console()
    made._text = text
    return made


def test_a_session_that_is_as_it_must_be() -> None:
    assert _check(console(SESSION), DIGEST) == []


@pytest.mark.parametrize(
    ("said", "instead", "problem"),
    [
        ("CPU(s):                          2", "CPU(s): 1", "lscpu shows two CPUs"),
        ("NUMA node(s):                    2", "", "lscpu shows two NUMA nodes"),
        ("node1/meminfo:Node 1 MemTotal:          90848", "", "node 1 gives memory"),
        ("thread 1 on CPU 1, NUMA node 1", "thread 1 on CPU 0, NUMA node 0", "ran on CPU 1"),
        ("33860 primes", "33859 primes", "count all primes"),
        (f"{DIGEST}  /mnt/copy", f"{'cd' * 32}  /mnt/copy", "the disk takes a copy"),
        ("4 packets received", "2 packets received", "packets come back"),
        (f"{DIGEST}  -", "", "HTTP brings the file"),
    ],
)
def test_what_is_wrong_is_named(said: str, instead: str, problem: str) -> None:
    assert said in SESSION
    found = _check(console(SESSION.replace(said, instead)), DIGEST)
    assert len(found) == 1
    assert problem in found[0]


def test_a_node_that_shares_nothing_is_named() -> None:
    faults = {"read": 3, "write": 2, "upgrade": 1, "first_touch": 0}
    busy = {"regions": [{"faults": faults, "bytes_sent": 8192, "bytes_received": 0}]}
    assert _check_memory({"h0": busy, "h1": busy}) == []
    found = _check_memory({"h0": busy, "h1": {"error": "it is asleep"}})
    assert found == ["node h1 does not share memory: it is asleep"]
    assert "8.0 KiB" in table({"h0": busy})


def test_primes_are_counted() -> None:
    assert demo_linux._primes(100) == 25


RELAY: Final = """
import threading
from demo_linux import _relay

class Guest:
    def write(self, data): print("keys", data, flush=True)
    def stop(self): print("stopped", flush=True)

runs = threading.Thread(target=threading.Event().wait, daemon=True)
runs.start()
_relay(Guest(), runs)
print("left", flush=True)
"""


def test_a_terminal_gets_the_shell_until_its_key_ends_the_machine() -> None:
    terminal, side = pty.openpty()
    before = termios.tcgetattr(side)
    places = (ROOT / "examples", ROOT / "tests")
    process = subprocess.Popen(
        [sys.executable, "-c", IN_TERMINAL, sys.executable, "-c", RELAY],
        stdin=side,
        stdout=side,
        stderr=side,
        start_new_session=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(map(str, places))},
    )
    shown = b""

    def wait_for(text: bytes) -> None:
        nonlocal shown
        while text not in shown:
            shown += os.read(terminal, 4096)

    try:
        wait_for(rb"keys b'\n'")
        os.write(terminal, b"ls\x03")
        wait_for(b"x03")
        os.write(terminal, b"\x1d")
        wait_for(b"left")
        assert process.wait() == 0
        assert b"stopped" in shown
        assert termios.tcgetattr(side) == before
    finally:
        process.kill()
        process.wait()
        os.close(terminal)
        os.close(side)


PASSED: Final = "PASS: Linux worked as one machine over two hosts"


@pytest.mark.long
@pytest.mark.timeout(900)
def test_the_demonstration_on_one_host_with_virtualization() -> None:
    """It finds the processor's own KVM, and starts both nodes there by `giantvm run`."""
    with Testbed(1, memory_mib=2048) as bed:
        host = bed.hosts[0]
        host.run(["/bin/sh", "-c", "modprobe tun"])
        demo = [sys.executable, "examples/demo_linux.py", "--hide", HIDE]
        demo += ["--options", f"{slow_clock(host)} {LATE}"]
        done = host.start(demo, cwd=ROOT, env={"PYTHONPATH": "tests"}).wait(600)
    assert done.status == 0, f"{done.stdout[-6000:]}\n{done.stderr[-2000:]}"
    assert "Two nodes on this machine" in done.stdout
    assert PASSED in done.stdout


@pytest.mark.long
@pytest.mark.timeout(600)
def test_the_demonstration_passes() -> None:
    done = subprocess.run(
        [sys.executable, "examples/demo_linux.py"],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        env=os.environ | {"PYTHONPATH": "tests"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-6000:]
    assert PASSED in done.stdout
