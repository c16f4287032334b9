"""A host: one QEMU machine with emulated SVM, one CPU, a Debian kernel, and the outer root."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from testbed.channel import Channel, Process, Result
from testbed.errors import HostEndedError, TestbedError
from testbed.kernel import Kernel
from testbed.qmp import Monitor

_BOOT_S: Final = 120.0
_ENDING_S: Final = 30.0
_STATE_SAMPLES: Final = 3
_STATE_APART_S: Final = 0.1
_START_S: Final = 30.0

_CPU: Final = "EPYC,+svm,+npt"

# Debian 12's QEMU computes wrong flags for cmpxchg16b, and Linux 6.12 crashes when it uses it. So
# the kernel, and with it KVM's guests, are not to know of it. CPUID says on: numpy insists on it.
_KERNEL_OPTIONS: Final = (
    "console=ttyS0 quiet panic=-1 mitigations=off random.trust_cpu=on no_timer_check "
    "clearcpuid=cx16"
)
_ENVIRONMENT: Final = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
    "LANG": "C.UTF-8",
}


@dataclass(frozen=True)
class Setting:
    """What all hosts of a testbed have in common."""

    kernel: Kernel
    initramfs: Path
    count: int
    memory_mib: int
    network: str
    """Where frames go: `ADDRESS:PORT`, a multicast group on the loopback device."""
    logs: Path
    append: str
    """More for the kernel's command line."""


class Host:
    """A host that boots when this is made; `ready` waits for it."""

    def __init__(self, setting: Setting, index: int) -> None:
        self.name = f"h{index}"
        self.address = f"10.0.0.{index + 1}"
        self._logs = setting.logs
        self._console = setting.logs / f"{self.name}.console"
        agent, agent_end = socket.socketpair()
        monitor, monitor_end = socket.socketpair()
        with agent_end, monitor_end, (setting.logs / f"{self.name}.qemu").open("wb") as log:
            self._qemu = subprocess.Popen(
                self._command(setting, index, agent_end.fileno(), monitor_end.fileno()),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=(agent_end.fileno(), monitor_end.fileno()),
                start_new_session=True,
            )
        self._monitor = Monitor(self.name, monitor)
        commands = setting.logs / f"{self.name}.commands"
        self._channel = Channel(self.name, agent, commands, self._state)

    def _command(self, setting: Setting, index: int, agent: int, monitor: int) -> list[str]:
        python = os.path.realpath(sys.executable)
        command_line = (
            f"{_KERNEL_OPTIONS} "
            f'HOST_INDEX={index} HOST_COUNT={setting.count} PYTHON="{python}" '
            f'MODULES="{setting.kernel.modules}" {setting.append}'
        )
        return [
            *("setpriv", "--pdeathsig", "KILL", "qemu-system-x86_64", "-name", self.name),
            *("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
            *("-accel", "tcg,thread=single", "-cpu", _CPU, "-smp", "1"),
            *("-m", str(setting.memory_mib)),
            *("-kernel", str(setting.kernel.image), "-initrd", str(setting.initramfs)),
            *("-append", command_line),
            *("-chardev", f"file,id=console,path={_escaped(self._console)}"),
            *("-serial", "chardev:console"),
            *("-chardev", f"socket,id=monitor,fd={monitor}"),
            *("-mon", "chardev=monitor,mode=control"),
            *("-device", "virtio-serial-pci"),
            *("-chardev", f"socket,id=agent,fd={agent}"),
            *("-device", "virtserialport,chardev=agent,nr=1,name=agent"),
            *("-netdev", f"socket,id=network,mcast={setting.network},localaddr=127.0.0.1"),
            # No boot ROM: its package may be missing, and it takes time.
            *("-device", f"virtio-net-pci,netdev=network,mac=52:54:00:00:00:{index:02x},romfile="),
            *("-fsdev", "local,id=outer,path=/,security_model=none,readonly=on,multidevs=remap"),
            *("-device", "virtio-9p-pci,fsdev=outer,mount_tag=outer"),
        ]

    @property
    def pid(self) -> int:
        """The QEMU process."""
        return self._qemu.pid

    @property
    def kernel(self) -> str:
        """The release of its kernel."""
        return self._channel.kernel or ""

    @property
    def running(self) -> bool:
        """Whether its QEMU process is there."""
        return self._qemu.poll() is None

    def ready(self, timeout_s: float = _BOOT_S) -> None:
        """Waits until commands can be run."""
        try:
            if self._channel.wait(lambda: self._channel.kernel is not None, timeout_s):
                return
            problem = f"is not up after {timeout_s:g} s"
        except HostEndedError:
            problem = "ended while it booted"
        raise TestbedError(f"{self.name} {problem}; logs in {self._logs}:\n{self.last_words()}")

    def _state(self) -> Iterator[str]:
        """Where its processor is, some times: a host that says nothing may hang."""
        for _ in range(_STATE_SAMPLES):
            try:
                yield self._monitor.registers()
            except TestbedError as error:
                yield str(error)
            time.sleep(_STATE_APART_S)

    def last_words(self) -> str:
        """The end of what QEMU and the console said."""
        texts = [self._logs / f"{self.name}.qemu", self._console]
        return "".join(text.read_text(errors="replace")[-2000:] for text in texts if text.exists())

    def start(
        self,
        argv: Sequence[str | os.PathLike[str]],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | os.PathLike[str] = "/",
        terminal: bool = False,
    ) -> Process:
        """Starts a command, in a process group of its own.

        `env` comes on top of a small standard environment; nothing is taken from the outer one.
        With `terminal` it gets one, and all of its output is stdout.
        """
        return self._channel.start(
            [os.fspath(word) for word in argv],
            env=_ENVIRONMENT | dict(env or {}),
            cwd=os.fspath(cwd),
            terminal=terminal,
            timeout_s=_START_S,
        )

    def run(
        self,
        argv: Sequence[str | os.PathLike[str]],
        *,
        stdin: bytes = b"",
        timeout_s: float = 60.0,
        check: bool = True,
        env: Mapping[str, str] | None = None,
        cwd: str | os.PathLike[str] = "/",
    ) -> Result:
        """Runs a command to its end; kills it, and raises, if that takes too long.

        With `check`, an exit status other than 0 is an error too.
        """
        process = self._run(argv, stdin, timeout_s, env=env, cwd=cwd)
        result = process.wait(_ENDING_S)
        if check and result.status != 0:
            words = " ".join(os.fspath(word) for word in argv)
            raise TestbedError(
                f"{self.name}: {words} ended with {result.status}; logs in {self._logs}\n"
                f"stdout: {result.stdout[-4000:]}\nstderr: {result.stderr[-4000:]}"
            )
        return result

    def _run(
        self,
        argv: Sequence[str | os.PathLike[str]],
        stdin: bytes,
        timeout_s: float,
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | os.PathLike[str] = "/",
    ) -> Process:
        process = self.start(argv, env=env, cwd=cwd)
        process.write(stdin)
        process.close_stdin()
        try:
            process.wait(timeout_s)
        except HostEndedError:
            raise
        except TestbedError as error:
            error.add_note(f"logs in {self._logs}")
            with contextlib.suppress(TestbedError):
                process.kill()
            raise
        return process

    def copy_in(self, source: Path, target: str, *, timeout_s: float = 60.0) -> None:
        """Copies a file to the host. What was there before the host started is there anyway."""
        script = 'cat >"$1" && chmod "$2" "$1"'
        mode = f"{source.stat().st_mode & 0o777:o}"
        command = ["/bin/sh", "-c", script, "sh", target, mode]
        self.run(command, stdin=source.read_bytes(), timeout_s=timeout_s)

    def copy_out(self, source: str, target: Path, *, timeout_s: float = 60.0) -> None:
        """Copies a file from the host."""
        process = self._run(["/bin/cat", source], b"", timeout_s)
        if process.status != 0:
            raise TestbedError(f"{self.name}: {source} can't be copied: {process.stderr.strip()}")
        target.write_bytes(process.bytes_of(1))

    def cut(self) -> None:
        """Pulls the network cable. The host runs on, and commands can still be run."""
        self._monitor.execute("set_link", name="network", up=False)

    def join(self) -> None:
        """Plugs it in again."""
        self._monitor.execute("set_link", name="network", up=True)

    def stop(self) -> None:
        """Freezes the machine, its clocks included."""
        self._monitor.execute("stop")

    def cont(self) -> None:
        """Lets it go on."""
        self._monitor.execute("cont")

    def kill(self) -> None:
        """Pulls the power plug."""
        self._qemu.kill()
        self._qemu.wait(_ENDING_S)

    def close(self) -> None:
        """Ends it, whatever it does."""
        self.kill()
        self._channel.close()
        self._monitor.close()


def _escaped(path: Path) -> str:
    """A path as part of a QEMU option."""
    return str(path).replace(",", ",,")
