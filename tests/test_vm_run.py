"""`giantvm run` and `python -m giantvm.node` with a virtual machine, as people use them."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import subprocess
import sys
import termios
from pathlib import Path

import pytest

pytest.importorskip("giantvm._native", reason="the native module is not built")

from cluster import ANSWER_S, skip_without_kernel
from vm_cluster import guest

HEAD = """
[cluster]
name = "vm"
timeout_ms = 3000
"""
DEVICE = """
from giantvm import Device, Pio

class Broken(Device):
    ranges = (Pio(0x5E0, 16),)

    def write(self, offset, size, value):
        self.total = value // 0
"""


def write(directory: Path, cmdline: str, nodes: str = "ab", more: str = "", **keys: str) -> Path:
    """A file for a machine with a vCPU on each of the nodes."""
    skip_without_kernel()
    parts = [HEAD]
    parts += [f'[[node]]\nname = "{n}"\nlisten = "unix:{directory}/{n}.sock"\n' for n in nodes]
    fields = {
        "memory": '"64MiB"',
        "vcpus": repr(list(nodes)),
        "kernel": f'"{guest()}"',
        "cmdline": f'"{cmdline}"',
        **keys,
    }
    parts.append("[vm]\n" + "\n".join(f"{key} = {value}" for key, value in fields.items()))
    path = directory / "vm.toml"
    path.write_text("\n".join([*parts, more]))
    return path


def run(path: Path) -> subprocess.CompletedProcess[str]:
    """The command, without a terminal."""
    return subprocess.run(
        command(path),
        check=False,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=ANSWER_S,
    )


def command(path: Path) -> list[str]:
    return [sys.executable, "-m", "giantvm", "run", os.fspath(path)]


def processes(path: Path) -> list[int]:
    """The processes that have this file on their command line."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = entry.read_bytes().split(b"\0")
        except OSError:
            continue
        if os.fsencode(path) in words and int(entry.parent.name) != os.getpid():
            found.append(int(entry.parent.name))
    return found


@pytest.mark.parametrize("nodes", ["a", "ab", "abc"])
def test_the_guests_status_and_output_are_those_of_the_command(tmp_path: Path, nodes: str) -> None:
    path = write(tmp_path, "test=smp", nodes)
    done = run(path)
    assert done.returncode == 1, done.stderr
    assert done.stdout.splitlines()[-1] == "end: test=smp result=passed"
    assert done.stderr == ""
    assert processes(path) == []


def test_a_guest_fault_is_told_once_with_its_registers(tmp_path: Path) -> None:
    done = run(write(tmp_path, "test=triplefault"))
    assert done.returncode == 84
    assert done.stderr.startswith(
        "giantvm: the guest can't go on: vCPU 0 on node a: triple fault\n"
    )
    assert re.search(r"rip 0x[0-9a-f]{16} rsp 0x[0-9a-f]{16}", done.stderr)
    assert done.stderr.count("triple fault") == 1


def test_a_device_that_raises_is_named(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text(DEVICE)
    device = '[[vm.device]]\nname = "trap"\nhome = "b"\nmodel = "broken.py:Broken"\n'
    done = run(write(tmp_path, "test=io count=1", more=device))
    assert done.returncode == 82
    assert (
        "giantvm: the virtual machine failed: node b: device 'trap': write(offset=" in done.stderr
    )
    assert "raised ZeroDivisionError" in done.stderr
    assert f'File "{tmp_path}/broken.py", line 8, in write' in done.stderr


def test_what_can_not_begin_is_said_once(tmp_path: Path) -> None:
    done = run(write(tmp_path, "", kvm='"/dev/null"'))
    assert done.returncode == 1
    assert "/dev/null can't be used as KVM" in done.stderr


def test_a_wrong_file_is_refused_before_anything_starts(tmp_path: Path) -> None:
    done = run(write(tmp_path, "", vcpus='["a", "nowhere"]'))
    assert done.returncode == 2
    assert done.stderr.endswith(
        "vCPU 1 is on node 'nowhere', which the cluster has not: its nodes are a, b\n"
    )


def test_nodes_of_other_machines_are_not_started_here(tmp_path: Path) -> None:
    path = write(tmp_path, "")
    path.write_text(path.read_text().replace(f"unix:{tmp_path}/b.sock", "192.0.2.1:7001"))
    done = run(path)
    assert done.returncode == 2
    assert "start `python -m giantvm.node` for each node" in done.stderr


LONG = "test=ipi count=100000000"


class Running:
    """The command in a terminal, for a `with` block."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.terminal, side = pty.openpty()
        self.before = termios.tcgetattr(side)
        # It needs the terminal in its foreground, as a shell would have it.
        self.process = subprocess.Popen(
            [sys.executable, "-c", IN_TERMINAL, *command(path)],
            stdin=side,
            stdout=side,
            stderr=side,
            start_new_session=True,
        )
        self.side = side
        self.shown = b""

    def wait_for(self, text: bytes) -> None:
        """Reads until the terminal shows it."""
        while text not in self.shown:
            self.shown += os.read(self.terminal, 4096)

    def __enter__(self) -> Running:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.terminal)
        os.close(self.side)


IN_TERMINAL = """
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.argv[1], sys.argv[1:])
"""


def test_ctrl_bracket_ends_it_and_restores_the_terminal(tmp_path: Path) -> None:
    path = write(tmp_path, LONG)
    with Running(path) as running:
        running.wait_for(b"guest: loader=")
        mode = termios.tcgetattr(running.side)
        assert not mode[3] & (termios.ICANON | termios.ECHO | termios.ISIG)
        os.write(running.terminal, b"\x03\x1d")
        assert running.process.wait(ANSWER_S) == 0
        assert termios.tcgetattr(running.side) == running.before
        assert processes(path) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_it_and_restores_the_terminal(tmp_path: Path, number: signal.Signals) -> None:
    path = write(tmp_path, LONG)
    with Running(path) as running:
        running.wait_for(b"guest: loader=")
        running.process.send_signal(number)
        assert running.process.wait(ANSWER_S) == 128 + number
        assert termios.tcgetattr(running.side) == running.before
        assert processes(path) == []


def nodes_of(running: Running) -> dict[str, int]:
    """The processes of the nodes."""
    found = {}
    for pid in processes(running.path):
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
        if "--node" in words:
            found[words[words.index("--node") + 1]] = pid
    return found


@pytest.mark.parametrize("node", ["a", "b"])
def test_a_node_that_is_killed_ends_it_with_the_reason(tmp_path: Path, node: str) -> None:
    path = write(tmp_path, LONG)
    with Running(path) as running:
        running.wait_for(b"guest: loader=")
        os.kill(nodes_of(running)[node], signal.SIGKILL)
        assert running.process.wait(ANSWER_S) == 86
        running.wait_for(f"node {node} is lost".encode())
        assert processes(path) == []


def test_nothing_outlives_a_command_that_is_killed(tmp_path: Path) -> None:
    path = write(tmp_path, LONG)
    with Running(path) as running:
        running.wait_for(b"guest: loader=")
        nodes = [os.pidfd_open(pid) for pid in nodes_of(running).values()]
        assert len(nodes) == 2
        running.process.kill()
        for node in nodes:
            wait_for_end(node)
            os.close(node)
        assert processes(path) == []


def wait_for_end(pidfd: int) -> None:
    """Waits for the end of a process."""
    waiter = select.poll()
    waiter.register(pidfd, select.POLLIN)
    assert waiter.poll(ANSWER_S * 1000), "the process does not end"
