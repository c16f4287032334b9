"""A terminal that hands every key to a guest."""

from __future__ import annotations

import os
import termios
from types import TracebackType
from typing import Any, Final

__all__ = ["ESCAPE", "RawTerminal"]

ESCAPE: Final = b"\x1d"
"""Ctrl-]: the one key that the guest does not get."""

_INPUT, _OUTPUT, _CONTROL, _LOCAL, _CHARACTERS = 0, 1, 2, 3, 6


class RawTerminal:
    """Raw mode of the terminal `fd` for a `with` block; nothing if it is none, or not ours to use.

    Output is still translated, so that lines of other programs begin at the left.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._before: list[Any] | None = None

    @property
    def is_raw(self) -> bool:
        """Whether keys come one by one."""
        return self._before is not None

    def __enter__(self) -> RawTerminal:
        if is_foreground_terminal(self._fd):
            self._before = termios.tcgetattr(self._fd)
            termios.tcsetattr(self._fd, termios.TCSANOW, _raw(self._before))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._before is not None:
            termios.tcsetattr(self._fd, termios.TCSADRAIN, self._before)
            self._before = None


def is_foreground_terminal(fd: int) -> bool:
    """Whether `fd` is a terminal, and this process may read it without being stopped."""
    try:
        return os.isatty(fd) and os.tcgetpgrp(fd) == os.getpgrp()
    except OSError:
        return False


def _raw(mode: list[Any]) -> list[Any]:
    raw = [*mode[:_CHARACTERS], list(mode[_CHARACTERS])]
    raw[_INPUT] &= ~(termios.IGNBRK | termios.BRKINT | termios.PARMRK | termios.ISTRIP)
    raw[_INPUT] &= ~(termios.INLCR | termios.IGNCR | termios.ICRNL | termios.IXON)
    raw[_LOCAL] &= ~(termios.ECHO | termios.ECHONL | termios.ICANON | termios.ISIG)
    raw[_LOCAL] &= ~termios.IEXTEN
    raw[_CHARACTERS][termios.VMIN] = 1
    raw[_CHARACTERS][termios.VTIME] = 0
    return raw
