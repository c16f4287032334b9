"""The outer machine's side of a host's agent: commands, and what becomes of them."""

from __future__ import annotations

import json
import select
import socket
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from testbed.agent import LENGTHS
from testbed.errors import HostEndedError, TestbedError

_CHUNK: Final = 64 << 10
_ENDING_S: Final = 10.0
_KILL: Final = 9

_SILENCE_S: Final = 1.0
"""After so long without a word, a host is nudged: QEMU 7.2 loses an interrupt of a processor with
SVM now and then. One was found halted with interrupts on and its timer's vector in the APIC's IRR;
what interrupts it next wakes it. Other hosts of a network do; a host alone would sleep for ever.
"""


@dataclass(frozen=True)
class Result:
    """How a command ended."""

    status: int
    """Exit status, negative for a signal."""
    stdout: str
    stderr: str


class Process:
    """A command on a host; output is kept as it comes."""

    def __init__(self, channel: Channel, number: int, what: str) -> None:
        self._channel = channel
        self._number = number
        self._what = what
        self._output: dict[int, bytearray] = {1: bytearray(), 2: bytearray()}
        self._status: int | None = None
        self._refused: str | None = None
        self._started = False
        self.on_output: Callable[[bytes], None] | None = None
        """Called with each piece of stdout, in a thread of the testbed."""

    @property
    def stdout(self) -> str:
        """What it wrote so far."""
        return self.bytes_of(1).decode(errors="replace")

    @property
    def stderr(self) -> str:
        """What it wrote so far."""
        return self.bytes_of(2).decode(errors="replace")

    @property
    def status(self) -> int | None:
        """Its exit status, negative for a signal; None as long as it runs."""
        return self._status

    def bytes_of(self, stream: int) -> bytes:
        """What it wrote so far to stdout (1) or stderr (2)."""
        with self._channel.changed:
            return bytes(self._output[stream])

    def wait(self, timeout_s: float = 60.0) -> Result:
        """Waits for its end; `TestbedError` if it runs on, `HostEndedError` if the host ended."""
        self._until(lambda: self._status is not None, timeout_s, "end")
        assert self._status is not None
        return Result(self._status, self.stdout, self.stderr)

    def wait_for(self, text: str, timeout_s: float = 60.0) -> None:
        """Waits until stdout or stderr has `text`, or raises as `wait`; also if it ended before."""
        wanted = text.encode()

        def written() -> bool:
            return any(wanted in output for output in self._output.values())

        self._until(lambda: written() or self._status is not None, timeout_s, f"say {text!r}")
        if not written():
            raise TestbedError(f"{self._what} ended without saying {text!r}\n{self._tail()}")

    def write(self, data: bytes) -> None:
        """Sends to its stdin."""
        for start in range(0, len(data), _CHUNK):
            self._ask("input", payload=data[start : start + _CHUNK])

    def close_stdin(self) -> None:
        """Ends its stdin."""
        self._ask("input")

    def signal(self, number: int) -> None:
        """Sends a signal to it and to all that it started."""
        self._ask("signal", signal=number)

    def kill(self) -> Result:
        """Ends it, and waits for that."""
        self.signal(_KILL)
        return self.wait(_ENDING_S)

    def resize(self, rows: int, columns: int) -> None:
        """The size of its terminal."""
        self._ask("resize", rows=rows, columns=columns)

    def started(self, timeout_s: float) -> None:
        """Waits until it runs."""
        self._until(lambda: self._started or self._refused is not None, timeout_s, "start")
        if self._refused is not None:
            raise TestbedError(f"{self._what}: {self._refused}")

    def told(self, header: Mapping[str, Any], payload: bytes) -> None:
        """What the agent says of it; called with `changed` held."""
        match header["event"]:
            case "started":
                self._started = True
            case "refused":
                self._refused = header["why"]
            case "output":
                self._output[header["stream"]] += payload
                if self.on_output is not None and header["stream"] == 1:
                    self.on_output(payload)
            case "ended":
                self._status = header["status"]

    def _ask(self, what: str, payload: bytes = b"", **arguments: object) -> None:
        self._channel.send({"do": what, "id": self._number, **arguments}, payload)

    def _until(self, done: Callable[[], bool], timeout_s: float, what: str) -> None:
        if not self._channel.wait(done, timeout_s):
            raise TestbedError(
                f"{self._what} did not {what} within {timeout_s:g} s\n{self._tail()}"
            )

    def _tail(self) -> str:
        return f"stdout: {self.stdout[-2000:]}\nstderr: {self.stderr[-2000:]}"


class Channel:
    """The connection to one host's agent."""

    def __init__(
        self, name: str, link: socket.socket, log: Path, state: Callable[[], Iterable[str]]
    ) -> None:
        """`state` tells what the host does; it is asked, and logged, when a wait takes too long."""
        self._name = name
        self._state = state
        self._link = link
        self._log = log.open("w")
        self._sending = threading.Lock()
        self.changed = threading.Condition()
        """Notified whenever the agent said something, or can't any more."""
        self.kernel: str | None = None
        """The release of the host's kernel, once it is up."""
        self._ended = False
        self._processes: dict[int, Process] = {}
        self._calls = 0
        self._begin = time.monotonic()
        self._reader = threading.Thread(target=self._read, name=f"testbed-{name}", daemon=True)
        self._reader.start()

    @property
    def ended(self) -> bool:
        """The host is gone."""
        return self._ended

    def start(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str],
        cwd: str,
        terminal: bool,
        timeout_s: float,
    ) -> Process:
        """Starts a command."""
        what = f"{self._name}: {' '.join(argv)}"
        with self.changed:
            self._calls += 1
            number = self._calls
            process = Process(self, number, what)
            self._processes[number] = process
        self.send(
            {
                "do": "start",
                "id": number,
                "argv": list(argv),
                "env": dict(env),
                "cwd": cwd,
                "terminal": terminal,
            }
        )
        process.started(timeout_s)
        return process

    def wait(self, done: Callable[[], bool], timeout_s: float) -> bool:
        """Waits until `done`; false if it takes too long, `HostEndedError` if the host is gone."""
        with self.changed:
            good = self.changed.wait_for(lambda: done() or self._ended, timeout_s)
            if not done() and self._ended:
                raise HostEndedError(f"{self._name} has ended; see {self._log.name}")
        if not good:
            for state in self._state():
                self._note("!", {"event": "state"}, state.encode())
        return good

    def send(self, header: Mapping[str, Any], payload: bytes = b"") -> None:
        """Sends a request."""
        with self._sending:
            try:
                self._link.sendall(_framed(header, payload))
            except OSError as error:
                raise HostEndedError(f"{self._name} has ended; see {self._log.name}") from error
        self._note(">", header, payload)

    def close(self) -> None:
        """Ends the connection."""
        self._link.shutdown(socket.SHUT_RDWR)
        self._reader.join()
        self._link.close()
        self._log.close()

    def _read(self) -> None:
        received = bytearray()
        try:
            while True:
                while not select.select([self._link], [], [], _SILENCE_S)[0]:
                    self._nudge()
                data = self._link.recv(_CHUNK)
                if not data:
                    break
                received += data
                while (end := _message_end(received)) is not None:
                    header_end = LENGTHS.size + LENGTHS.unpack_from(received)[0]
                    header = json.loads(received[LENGTHS.size : header_end])
                    payload = bytes(received[header_end:end])
                    del received[:end]
                    self._note("<", header, payload)
                    self._heard(header, payload)
        except OSError:
            pass
        finally:
            with self.changed:
                self._ended = True
                self.changed.notify_all()

    def _nudge(self) -> None:
        """Sends what the agent takes no notice of, where that can be done without waiting."""
        if self.kernel is None or not select.select([], [self._link], [], 0)[1]:
            return
        if self._sending.acquire(blocking=False):
            try:
                self._link.sendall(_framed({"do": "nudge", "id": 0}))
            finally:
                self._sending.release()

    def _heard(self, header: Mapping[str, Any], payload: bytes) -> None:
        with self.changed:
            if header["event"] == "ready":
                self.kernel = header["kernel"]
            elif (process := self._processes.get(header["id"])) is not None:
                process.told(header, payload)
                if header["event"] in ("refused", "ended"):
                    del self._processes[header["id"]]
            self.changed.notify_all()

    def _note(self, direction: str, header: Mapping[str, Any], payload: bytes) -> None:
        after_s = time.monotonic() - self._begin
        text = f" {payload[:1000].decode(errors='replace')!r}" if payload else ""
        shown = {key: value for key, value in header.items() if key != "env"}
        self._log.write(f"{after_s:9.3f} {direction} {json.dumps(shown)}{text}\n")
        self._log.flush()


def _framed(header: Mapping[str, Any], payload: bytes = b"") -> bytes:
    encoded = json.dumps(header).encode()
    return LENGTHS.pack(len(encoded), len(payload)) + encoded + payload


def _message_end(received: bytearray) -> int | None:
    if len(received) < LENGTHS.size:
        return None
    header, payload = LENGTHS.unpack_from(received)
    end: int = LENGTHS.size + header + payload
    return end if len(received) >= end else None
