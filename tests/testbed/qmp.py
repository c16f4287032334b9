"""QEMU's machine protocol: what a test does to a host from outside of it."""

from __future__ import annotations

import json
import socket
import threading
from typing import Any, Final

from testbed.errors import HostEndedError, TestbedError

_ANSWER_S: Final = 30.0


class Monitor:
    """The monitor of one QEMU process."""

    def __init__(self, name: str, link: socket.socket) -> None:
        self._name = name
        self._link = link
        self._link.settimeout(_ANSWER_S)
        self._lines = link.makefile("rb")
        self._lock = threading.Lock()
        self._ready = False

    def execute(self, command: str, **arguments: object) -> Any:
        """Runs a command, and waits for its answer."""
        with self._lock:
            if not self._ready:
                self._read()
                self._execute("qmp_capabilities", {})
                self._ready = True
            return self._execute(command, arguments)

    def registers(self) -> str:
        """Those of the host's processor."""
        told: str = self.execute("human-monitor-command", **{"command-line": "info registers"})
        return told

    def close(self) -> None:
        self._lines.close()
        self._link.close()

    def _execute(self, command: str, arguments: dict[str, object]) -> Any:
        request = {"execute": command, "arguments": arguments}
        try:
            self._link.sendall(json.dumps(request).encode() + b"\n")
        except OSError as error:
            raise HostEndedError(f"{self._name} has ended: no {command}") from error
        answer = self._read()
        while "event" in answer:
            answer = self._read()
        if "return" not in answer:
            raise TestbedError(f"{self._name}: QEMU refused {command}: {answer}")
        return answer["return"]

    def _read(self) -> dict[str, Any]:
        try:
            line = self._lines.readline()
        except OSError as error:
            raise TestbedError(f"{self._name}: QEMU does not answer: {error}") from error
        if not line:
            raise HostEndedError(f"{self._name} has ended")
        answer: dict[str, Any] = json.loads(line)
        return answer
