"""Hosts of the testbed do what tests rely on, and this project's build runs on them."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from testbed import HostEndedError, Testbed, TestbedError, kernel
from testbed import __main__ as command
from testbed.agent import LENGTHS
from testbed.channel import Channel

PING = ("/bin/busybox", "ping", "-c", "1", "-W", "2")
PROGRAM = Path(__file__).parent / "testbed_programs.py"
PORT = 7001


def test_hosts_run_debians_kernel(bed: Testbed) -> None:
    for index, host in enumerate(bed.hosts):
        release = host.run(["/bin/uname", "-r"]).stdout.strip()
        assert release == host.kernel == kernel().release
        assert host.run(["/bin/hostname"]).stdout.strip() == f"h{index}"


def test_a_silent_host_is_nudged_once_it_is_up(tmp_path: Path) -> None:
    ours, theirs = socket.socketpair()
    channel = Channel("h", ours, tmp_path / "log", list)
    try:
        assert not select.select([theirs], [], [], 2.5)[0]
        ready = json.dumps({"event": "ready", "kernel": "6.12"}).encode()
        theirs.sendall(LENGTHS.pack(len(ready), 0) + ready)
        for _ in range(2):
            length, payload = LENGTHS.unpack(theirs.recv(LENGTHS.size))
            assert payload == 0
            assert json.loads(theirs.recv(length)) == {"do": "nudge", "id": 0}
    finally:
        channel.close()
        theirs.close()


def test_hosts_share_the_time_of_this_machine(bed: Testbed) -> None:
    """A year's difference would let certificates and `make` fail."""
    here = int(subprocess.run(["date", "+%s"], capture_output=True, check=True).stdout)
    there = int(bed.hosts[0].run(["/bin/date", "+%s"]).stdout)
    assert abs(there - here) < 24 * 3600


def test_output_input_and_status_of_a_command(bed: Testbed) -> None:
    script = "cat; echo wrong >&2; exit 3"
    done = bed.hosts[0].run(["/bin/sh", "-c", script], stdin=b"given", check=False)
    assert (done.status, done.stdout, done.stderr) == (3, "given", "wrong\n")
    with pytest.raises(TestbedError, match=r"h0: /bin/sh .* ended with 3; logs in (?s:.*)wrong"):
        bed.hosts[0].run(["/bin/sh", "-c", script])
    with pytest.raises(TestbedError, match="No such file"):
        bed.hosts[0].run(["/no/such/program"])


def test_commands_run_beside_each_other(bed: Testbed) -> None:
    """The first ends only after the second was started."""
    host = bed.hosts[0]
    first = host.start(["/bin/sh", "-c", "read line; echo got $line; exec sleep 1000"])
    host.run(["/bin/true"])
    first.write(b"it\n")
    first.wait_for("got it")
    assert first.status is None
    assert first.kill().status == -signal.SIGKILL


def test_a_command_can_be_interrupted(bed: Testbed) -> None:
    """An ignored SIGINT would be inherited by everything on the host."""
    process = bed.hosts[0].start(["/bin/sh", "-c", "echo up; exec sleep 1000"])
    process.wait_for("up")
    process.signal(signal.SIGINT)
    assert process.wait().status == -signal.SIGINT


def test_a_command_that_takes_too_long_is_ended_with_its_children(bed: Testbed) -> None:
    script = "sleep 4242 & echo said; wait"
    with pytest.raises(TestbedError, match=r"did not end within 3 s(?s:.*)said"):
        bed.hosts[0].run(["/bin/sh", "-c", script], timeout_s=3)
    assert "RIP=" in (bed.logs / "h0.commands").read_text()
    left = bed.hosts[0].run(["/bin/busybox", "pgrep", "-f", "sleep 4242"], check=False)
    assert left.stdout == ""


def test_copies_are_exact(bed: Testbed, tmp_path: Path) -> None:
    source, back = tmp_path / "source", tmp_path / "back"
    source.write_bytes(os.urandom(300_001))
    source.chmod(0o750)
    bed.hosts[0].copy_in(source, "/tmp/copied")
    mode = bed.hosts[0].run(["/usr/bin/stat", "-c", "%a", "/tmp/copied"]).stdout.strip()
    assert mode == "750"
    bed.hosts[0].copy_out("/tmp/copied", back)
    assert back.read_bytes() == source.read_bytes()
    with pytest.raises(TestbedError, match="can't be copied"):
        bed.hosts[0].copy_out("/tmp/not-there", back)


def test_a_host_changes_nothing_outside(bed: Testbed) -> None:
    mark = Path(__file__).parent / f"mark-of-a-host-{os.getpid()}"
    bed.hosts[0].run(["/bin/sh", "-c", 'echo x >"$1" && cat "$1"', "sh", mark])
    assert not mark.exists()
    assert bed.hosts[1].run(["/bin/cat", mark], check=False).status != 0


def test_a_cut_host_is_reached_by_commands_only(bed: Testbed) -> None:
    first, second = bed.hosts
    first.run([*PING, "h1"])
    second.cut()
    try:
        assert first.run([*PING, "h1"], check=False).status == 1
        assert second.run(["/bin/echo", "there"]).stdout == "there\n"
    finally:
        second.join()
    # More than one: the address has to be resolved anew.
    first.run(["/bin/busybox", "ping", "-c", "5", "-w", "60", "h1"])


def test_a_stopped_host_goes_on_where_it_was(bed: Testbed) -> None:
    first, second = bed.hosts
    echo = second.start(["/bin/cat"])
    second.stop()
    try:
        echo.write(b"late\n")
        assert first.run([*PING, "h1"], check=False).status == 1
        assert echo.stdout == ""
    finally:
        second.cont()
    echo.wait_for("late")
    echo.close_stdin()
    assert echo.wait().status == 0
    first.run(["/bin/busybox", "ping", "-c", "5", "-w", "60", "h1"])


def test_a_machine_of_kvm_is_made_and_runs(bed: Testbed) -> None:
    host = bed.hosts[0]
    assert host.run(["/bin/cat", "/sys/module/kvm_amd/parameters/npt"]).stdout == "Y\n"
    assert host.run(["/bin/cat", "/sys/module/kvm/parameters/halt_poll_ns"]).stdout == "0\n"
    done = host.run([sys.executable, PROGRAM, "kvm"])
    assert done.stdout == "port 0x10 got 42\n"


def test_a_region_is_shared_by_hosts_with_this_build(bed: Testbed, tmp_path: Path) -> None:
    config = tmp_path / "cluster.toml"
    nodes = (
        f'[[node]]\nname = "{host.name}"\nlisten = "{host.address}:{PORT}"\nmemory = "16MiB"\n'
        for host in bed.hosts
    )
    config.write_text('[cluster]\nname = "hosts"\ntimeout_ms = 20000\n' + "".join(nodes))
    running = []
    for host in bed.hosts:
        host.copy_in(config, "/tmp/cluster.toml")
        words = [sys.executable, "-m", "giantvm.node", "--config", "/tmp/cluster.toml"]
        words += ["--node", host.name, "--insecure", "--", f"{PROGRAM}:share"]
        running.append(host.start(words))
    done = [process.wait(100) for process in running]
    assert [result.status for result in done] == [0, 0], done
    assert done[1].stdout == "mode full, sum 2096128\n", done


def test_the_end_of_a_host_is_noticed() -> None:
    with Testbed(1, memory_mib=256) as bed:
        host = bed.hosts[0]
        process = host.start(["/bin/sleep", "1000"])
        host.kill()
        assert not host.running
        with pytest.raises(HostEndedError, match=r"h0 has ended; see .*h0\.commands"):
            process.wait()
        with pytest.raises(HostEndedError, match="h0 has ended"):
            host.run(["/bin/true"])
        with pytest.raises(HostEndedError, match="h0 has ended"):
            host.cut()


def test_hosts_end_with_the_process_that_made_them() -> None:
    script = (
        "import os, testbed\n"
        "with testbed.Testbed(1, memory_mib=256) as bed:\n"
        "    print(bed.hosts[0].pid, flush=True)\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parent)},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    try:
        qemu = os.pidfd_open(int(done.stdout))
    except ProcessLookupError:
        return
    try:
        assert select.select([qemu], [], [], 30)[0], "QEMU runs on"
    finally:
        os.close(qemu)


def test_a_host_that_can_not_boot_says_where_to_look(tmp_path: Path) -> None:
    with (
        pytest.raises(TestbedError, match=r"h0 ended while it booted; logs in .*") as raised,
        Testbed(1, memory_mib=256, append="PYTHON=/none", logs=tmp_path),
    ):
        pass
    assert str(tmp_path) in str(raised.value)
    assert "/none" in str(raised.value)


def test_what_is_missing_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", "/no/such/directory")
    assert command.main(["prepare"]) == 2
    said = capsys.readouterr().err
    assert "sudo apt-get install" in said
    assert "qemu-system-x86" in said
