"""A process that runs one node's part of a virtual machine, and how it tells the end."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import threading
import time
from dataclasses import asdict
from typing import Final

from giantvm._node import Node
from giantvm._terminal import ESCAPE, RawTerminal, is_foreground_terminal
from giantvm._vm import Console, Outcome, Vm
from giantvm.errors import TimeoutError

__all__ = [
    "EXIT_FAILED",
    "EXIT_FAULT",
    "EXIT_LOST",
    "StoppedError",
    "die_with",
    "exit_status",
    "report",
    "say",
    "serve",
    "tell",
]

EXIT_LOST: Final = 86
"""Exit status of a process whose cluster lost a node."""
EXIT_FAULT: Final = 84
"""Exit status if the guest can't go on."""
EXIT_FAILED: Final = 82
"""Exit status if a node or a device can't go on."""

_END_S: Final = 10.0
_FULL_S: Final = 0.05
_PR_SET_PDEATHSIG: Final = 1


class StoppedError(BaseException):
    """SIGTERM or SIGINT came. Not an `Exception`: no program should swallow it."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def serve(node: Node) -> Outcome:
    """Runs the node's part of the cluster file's virtual machine to its end.

    At the platform's home the guest's serial port is on stdin and stdout. SIGTERM, SIGINT, and
    Ctrl-] in a terminal, end the virtual machine in good order.
    """
    with Vm(node) as vm, RawTerminal(0) as terminal:
        relay = None
        if node.name == vm.spec.platform_home(node.nodes):
            relay = _Relay(vm.console, escapes=terminal.is_raw)
        try:
            if node.index == 0:
                vm.run()
            vm.wait_for("ended")
        except StoppedError:
            vm.stop()
            try:
                vm.wait_for("ended", timeout_s=_END_S)
            except TimeoutError:
                # Nodes are missing: the end of this one is all that can be done.
                return Outcome("stopped")
        if relay is not None:
            relay.finish()
        outcome = vm.outcome
        return outcome if outcome is not None else Outcome("stopped")


class _Relay:
    """Threads that copy between the guest's serial port and this process' stdin and stdout."""

    def __init__(self, console: Console, *, escapes: bool) -> None:
        self._console = console
        self._escapes = escapes
        self._output = threading.Thread(target=self._copy_output, name="console", daemon=True)
        self._output.start()
        if escapes or not os.isatty(0) or is_foreground_terminal(0):
            threading.Thread(target=self._copy_input, name="keys", daemon=True).start()

    def finish(self) -> None:
        """Waits until all that the guest wrote is out."""
        self._output.join()

    def _copy_output(self) -> None:
        while data := self._console.read():
            try:
                while data:
                    data = data[os.write(1, data) :]
            except OSError:
                # Whoever read it has gone: the guest goes on.
                return

    def _copy_input(self) -> None:
        while True:
            try:
                data = os.read(0, 4096)
            except OSError:
                return
            if not data:
                return
            if self._escapes and ESCAPE in data:
                os.kill(os.getpid(), signal.SIGTERM)
                return
            while data:
                data = data[self._console.write(data) :]
                if data:
                    # The guest reads slowly, and nothing tells when it has.
                    time.sleep(_FULL_S)


def exit_status(outcome: Outcome) -> int:
    """The status of a process that ran a virtual machine to this end."""
    match outcome.kind:
        case "debug-exit":
            return min(outcome.status or 0, 255)
        case "guest-fault":
            return EXIT_FAULT
        case "failed":
            return EXIT_FAILED
        case "lost":
            return EXIT_LOST
    return 0


def report(outcome: Outcome) -> str | None:
    """What to tell people of it; nothing of an end in good order."""
    what = {
        "guest-fault": "the guest can't go on",
        "failed": "the virtual machine failed",
        "lost": "the virtual machine is lost",
    }.get(outcome.kind)
    if what is not None:
        return f"giantvm: {what}: {outcome.reason}"
    if outcome.status is not None and outcome.status > 255:
        return f"giantvm: the guest's status is {outcome.status}; a process has at most 255"
    return None


def tell(outcome: Outcome, fd: int | None) -> None:
    """Tells people on stderr, or a program through a pipe."""
    if fd is None:
        if (text := report(outcome)) is not None:
            say(text)
        return
    os.write(fd, json.dumps(asdict(outcome)).encode() + b"\n")


def say(text: str) -> None:
    """Tells people."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


def die_with(parent: int) -> None:
    """Has this process end when `parent`, which started it, does, however that ends."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), "prctl")
    if os.getppid() != parent:
        # It has ended already.
        os.kill(os.getpid(), signal.SIGKILL)
