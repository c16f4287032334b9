"""Runs commands on a testbed host, for the outer machine: one program, alone, on the host.

It speaks over a serial port of the machine, so that the network can be cut. A message is a header,
its length before it, and a payload: `<II` lengths, JSON, bytes. Requests name a command by a number
of the caller's choice; what happens to the command is told under the same number.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import pty
import selectors
import struct
import subprocess
import sys
import termios
import time
from typing import Any, BinaryIO

PORT = "/dev/vport0p1"
LENGTHS = struct.Struct("<II")
CHUNK = 64 << 10
OPEN_S = 10.0
REAP_S = 0.05
LAST_READS = 32
"""What a pipe or a terminal holds at most is read in so many steps."""

Header = dict[str, Any]


class Command:
    """A process that was asked for."""

    def __init__(self, number: int, process: subprocess.Popen[bytes]) -> None:
        self.number = number
        self.process = process
        self.stdin: int | None = None
        self.pending = bytearray()
        self.closing = False
        self.outputs: dict[int, int] = {}
        """Descriptor -> 1 for stdout, 2 for stderr."""


class Agent:
    """Everything that the outer machine asked for."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._received = bytearray()
        self._commands: dict[int, Command] = {}
        self._selector = selectors.DefaultSelector()
        self._selector.register(port, selectors.EVENT_READ, None)

    def serve(self) -> None:
        """Answers until the outer machine is gone."""
        self._tell({"event": "ready", "kernel": os.uname().release})
        while True:
            # A child's end is looked for after its output ended, or in a while if others hold that.
            for key, events in self._selector.select(REAP_S if self._commands else None):
                if key.data is None:
                    if not self._receive():
                        return
                elif events & selectors.EVENT_WRITE:
                    self._feed(key.data)
                else:
                    self._forward(key.data, key.fd)
            for command in list(self._commands.values()):
                self._reap(command)

    def _receive(self) -> bool:
        data = os.read(self._port, CHUNK)
        self._received += data
        while len(self._received) >= LENGTHS.size:
            header, payload = LENGTHS.unpack_from(self._received)
            end = LENGTHS.size + header + payload
            if len(self._received) < end:
                break
            request = json.loads(self._received[LENGTHS.size : LENGTHS.size + header])
            content = bytes(self._received[LENGTHS.size + header : end])
            del self._received[:end]
            self._do(request, content)
        return bool(data)

    def _do(self, request: Header, content: bytes) -> None:
        number = request["id"]
        if request["do"] == "start":
            try:
                self._start(request)
            except OSError as error:
                self._tell({"id": number, "event": "refused", "why": str(error)})
            return
        command = self._commands.get(number)
        if command is None:
            return
        if request["do"] == "signal":
            with contextlib.suppress(ProcessLookupError):
                os.killpg(command.process.pid, request["signal"])
        elif request["do"] == "input":
            self._input(command, content)
        elif request["do"] == "resize" and command.stdin is not None:
            size = struct.pack("HHHH", request["rows"], request["columns"], 0, 0)
            fcntl.ioctl(command.stdin, termios.TIOCSWINSZ, size)

    def _start(self, request: Header) -> None:
        terminal = request["terminal"]
        ours, theirs = pty.openpty() if terminal else (-1, subprocess.PIPE)
        try:
            process = subprocess.Popen(
                request["argv"],
                stdin=theirs,
                stdout=theirs,
                stderr=theirs,
                cwd=request["cwd"],
                env=request["env"],
                start_new_session=True,
                preexec_fn=_take_terminal if terminal else None,  # noqa: PLW1509 - one thread
            )
        except OSError:
            if terminal:
                os.close(ours)
            raise
        finally:
            if terminal:
                os.close(theirs)
        command = Command(request["id"], process)
        if terminal:
            command.stdin = ours
            command.outputs = {ours: 1}
        else:
            command.stdin = _taken(process.stdin)
            command.outputs = {_taken(process.stdout): 1, _taken(process.stderr): 2}
        for descriptor in {command.stdin, *command.outputs}:
            os.set_blocking(descriptor, False)
        for descriptor in command.outputs:
            self._selector.register(descriptor, selectors.EVENT_READ, command)
        self._commands[command.number] = command
        self._tell({"id": command.number, "event": "started", "pid": process.pid})

    def _input(self, command: Command, content: bytes) -> None:
        if command.stdin is None:
            return
        command.pending += content
        command.closing = command.closing or not content
        self._feed(command)

    def _feed(self, command: Command) -> None:
        stdin = command.stdin
        if stdin is None:
            return
        try:
            while command.pending:
                del command.pending[: os.write(stdin, command.pending)]
        except BlockingIOError:
            pass
        except OSError:
            command.pending.clear()
            command.closing = True
        waiting = bool(command.pending)
        if stdin in command.outputs:
            events = selectors.EVENT_READ | (selectors.EVENT_WRITE if waiting else 0)
            self._selector.modify(stdin, events, command)
        elif waiting and stdin not in self._selector.get_map():
            self._selector.register(stdin, selectors.EVENT_WRITE, command)
        elif not waiting:
            if stdin in self._selector.get_map():
                self._selector.unregister(stdin)
            if command.closing:
                os.close(stdin)
                command.stdin = None

    def _forward(self, command: Command, descriptor: int) -> None:
        try:
            data = os.read(descriptor, CHUNK)
        except BlockingIOError:
            return
        except OSError as error:
            # What a terminal answers once nobody has its other side open.
            if error.errno != errno.EIO:
                raise
            data = b""
        if data:
            stream = command.outputs[descriptor]
            self._tell({"id": command.number, "event": "output", "stream": stream}, data)
            return
        self._close(command, descriptor)

    def _close(self, command: Command, descriptor: int) -> None:
        self._selector.unregister(descriptor)
        del command.outputs[descriptor]
        if command.stdin == descriptor:
            command.stdin = None
        os.close(descriptor)

    def _reap(self, command: Command) -> None:
        status = command.process.poll()
        if status is None:
            return
        # What it wrote comes before its end; what its children still write is not waited for.
        for descriptor in list(command.outputs):
            for _ in range(LAST_READS):
                if descriptor in command.outputs:
                    self._forward(command, descriptor)
            if descriptor in command.outputs:
                self._close(command, descriptor)
        if command.stdin is not None:
            if command.stdin in self._selector.get_map():
                self._selector.unregister(command.stdin)
            os.close(command.stdin)
        del self._commands[command.number]
        self._tell({"id": command.number, "event": "ended", "status": status})

    def _tell(self, header: Header, payload: bytes = b"") -> None:
        encoded = json.dumps(header).encode()
        message = LENGTHS.pack(len(encoded), len(payload)) + encoded + payload
        while message:
            message = message[os.write(self._port, message) :]


def _taken(pipe: BinaryIO | Any) -> int:
    """A descriptor of its own for a pipe of `Popen`, whose object is closed."""
    descriptor = os.dup(pipe.fileno())
    pipe.close()
    return descriptor


def _take_terminal() -> None:
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def _open() -> int:
    end = time.monotonic() + OPEN_S
    while True:
        try:
            return os.open(PORT, os.O_RDWR)
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.01)


def main() -> int:
    """Serves until the outer machine is gone."""
    Agent(_open()).serve()
    return 0


if __name__ == "__main__":
    sys.exit(main())
