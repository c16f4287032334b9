"""`giantvm run`: all nodes of a virtual machine on this machine, each a process."""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from types import FrameType
from typing import Final

from giantvm._machine import exit_status, report, say
from giantvm._terminal import ESCAPE, RawTerminal
from giantvm._vm import Outcome
from giantvm.config import Config
from giantvm.errors import ConfigError

__all__ = ["run"]

_END_S: Final = 15.0
"""How long nodes that were told to end may take; a vCPU may wait for memory."""
_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class _SignalError(BaseException):
    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def run(config: Config, path: str) -> int:
    """Runs the virtual machine of the cluster file at `path`; the exit status.

    That of the guest's debug exit, 0 after a power-off and after Ctrl-], 84 if the guest can't go
    on, 82 if a node or a device can't, 86 if a node was lost, 128 and its number after a signal.
    """
    if config.vm is None:
        raise ConfigError(f"{config.source}: there is no virtual machine: add a [vm] table")
    if config.etcd:
        raise ConfigError(
            f"{config.source}: with etcd, start `python -m giantvm.node` for each node"
        )
    for node in config.nodes:
        if not node.is_local:
            raise ConfigError(
                f"{config.source}: node {node.name!r} listens on {node.listen!r}, which may be "
                "another machine: start `python -m giantvm.node` for each node, where it belongs"
            )
    previous = [(number, signal.signal(number, _raise)) for number in _SIGNALS]
    run = _Run(config, path)
    try:
        with RawTerminal(0) as terminal:
            try:
                run.start()
                if terminal.is_raw:
                    say("giantvm: Ctrl-] ends the virtual machine")
                run.relay(escapes=terminal.is_raw)
                stopped = 0
            except _SignalError as error:
                stopped = 128 + error.number
            # From here on nothing but the end of the nodes counts.
            for number in _SIGNALS:
                signal.signal(number, signal.SIG_IGN)
            run.end()
        return stopped or run.status()
    finally:
        run.kill()
        for number, handler in previous:
            signal.signal(number, handler)


def _raise(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - the form of a handler
    raise _SignalError(number)


class _Run:
    """The processes of the nodes."""

    def __init__(self, config: Config, path: str) -> None:
        self._config = config
        self._path = path
        self._home = ""
        if config.vm is not None:
            self._home = config.vm.platform_home([node.name for node in config.nodes])
        self._nodes: list[subprocess.Popen[bytes]] = []
        self._outcomes: list[Outcome] = []
        self._input: int | None = None
        self._waiting = b""
        self._escaped = False
        self._selector = selectors.PollSelector()

    def start(self) -> None:
        """Starts a process for each node."""
        for node in self._config.nodes:
            told, tells = os.pipe()
            try:
                self._nodes.append(self._start(node.name, tells))
            finally:
                os.close(tells)
            self._watch(told, partial(self._hear, told))
            process = self._nodes[-1]
            pidfd = os.pidfd_open(process.pid)
            self._watch(pidfd, partial(self._forget, pidfd))

    def _start(self, name: str, tells: int) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "giantvm.node", "--config", self._path, "--node", name]
        command += ["--parent", str(os.getpid()), "--outcome-fd", str(tells)]
        stdin: int = subprocess.DEVNULL
        reads = None
        if name == self._home:
            reads, self._input = os.pipe()
            os.set_blocking(self._input, False)
            stdin = reads
        try:
            return subprocess.Popen(command, stdin=stdin, pass_fds=(tells,))
        finally:
            if reads is not None:
                os.close(reads)

    def relay(self, *, escapes: bool) -> None:
        """Passes input on until a node ends, or Ctrl-]."""
        self._watch(0, partial(self._read_input, escapes=escapes))
        while not self._escaped and all(process.poll() is None for process in self._nodes):
            self._look(None)

    def end(self) -> None:
        """Waits for the nodes: they end by themselves when one has, or are told to."""
        self._unwatch(0)
        self._close_input()
        # The others find out that a node is lost by its silence.
        patience_s = 0.0 if self._escaped else 2 * self._config.timeout_ms / 1000
        running = any(process.poll() is not None for process in self._nodes)
        for number, wait_s in ((0, patience_s if running else 0.0), (signal.SIGTERM, _END_S)):
            for process in self._nodes:
                if number and process.poll() is None:
                    process.send_signal(number)
            deadline = time.monotonic() + wait_s
            while self._running() and (left := deadline - time.monotonic()) > 0:
                self._look(left)

    def kill(self) -> None:
        """Leaves no process behind."""
        for process in self._nodes:
            process.kill()
            process.wait()
        self._selector.close()

    def status(self) -> int:
        """What it comes to; tells people, if there is something to tell."""
        for key in list(self._selector.get_map().values()):
            # What was told and not yet heard.
            if key.fd != 0:
                key.data()
        if self._escaped:
            return 0
        statuses = [process.wait() for process in self._nodes]
        # A node that could not begin has said why; to the others it is only lost.
        refused = [status for status in statuses if status in (1, 2)]
        reasons = [it for it in self._outcomes if it.kind != "lost"]
        if refused and not reasons:
            return refused[0]
        reasons = reasons or self._outcomes
        if reasons:
            if (text := report(reasons[0])) is not None:
                say(text)
            return exit_status(reasons[0])
        return max(statuses, default=0) if max(statuses, default=0) > 0 else 1

    def _running(self) -> bool:
        return any(process.poll() is None for process in self._nodes)

    def _watch(self, fd: int, call: Callable[[], None], events: int = selectors.EVENT_READ) -> None:
        self._selector.register(fd, events, call)

    def _unwatch(self, fd: int) -> None:
        if fd in self._selector.get_map():
            self._selector.unregister(fd)

    def _look(self, timeout_s: float | None) -> None:
        for key, _ in self._selector.select(timeout_s):
            key.data()

    def _forget(self, fd: int) -> None:
        self._unwatch(fd)
        os.close(fd)

    def _hear(self, fd: int) -> None:
        # One line, written at once: a pipe gives it whole, or its end.
        line = os.read(fd, 65536)
        if line:
            self._outcomes.append(Outcome(**json.loads(line)))
        else:
            self._forget(fd)

    def _read_input(self, *, escapes: bool) -> None:
        data = os.read(0, 4096)
        if escapes and ESCAPE in data:
            self._escaped = True
            return
        if not data:
            self._unwatch(0)
            self._close_input()
            return
        self._waiting += data
        # More is read when this has gone.
        self._unwatch(0)
        if self._input is not None:
            write = partial(self._write_input, escapes=escapes)
            self._watch(self._input, write, selectors.EVENT_WRITE)

    def _write_input(self, *, escapes: bool) -> None:
        if self._input is None:
            return
        try:
            self._waiting = self._waiting[os.write(self._input, self._waiting) :]
        except BlockingIOError:
            return
        except OSError:
            # The node is ending.
            self._close_input()
            return
        if not self._waiting:
            self._unwatch(self._input)
            self._watch(0, partial(self._read_input, escapes=escapes))

    def _close_input(self) -> None:
        if self._input is not None:
            self._unwatch(self._input)
            os.close(self._input)
            self._input = None
