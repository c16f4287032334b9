"""The test device of guests/README.md, in Python."""

from __future__ import annotations

import numpy as np

from giantvm import PAGE_SIZE, Device, Mmio, Pio

MEMORY_LENGTH = 0x1000
PIN = 20
_ALL_ONES = 0xFFFFFFFF


class TestDevice(Device):
    """An index/data pair, a counter, MSIs on request, a line, and a copy engine."""

    __test__ = False
    ranges = (Mmio(0xD0000000, MEMORY_LENGTH), Pio(0x5E0, 16))

    def reset(self) -> None:
        self.index = 0
        self.slots = [0] * 256
        self.sum = 0
        self.sent = 0
        self.high = False
        self.raised = 0
        self.page = 0

    def read(self, offset: int, size: int) -> int:
        match self._register(offset):
            case 0x00:
                found = self.index
            case 0x04:
                found = self.slots[self.index % 256]
            case 0x08:
                found = self.sum
            case 0x14:
                found = self.sent
            case 0x1C:
                found = self.raised
            case _:
                found = _ALL_ONES
        return found & ((1 << 8 * size) - 1)

    def write(self, offset: int, size: int, value: int) -> None:  # noqa: ARG002
        match self._register(offset):
            case 0x00:
                self.index = value
            case 0x04:
                self.slots[self.index % 256] = value
            case 0x08:
                self.sum = (self.sum + value) & _ALL_ONES
            case 0x10:
                self.sent += 1
                self.interrupt(value & 0xFF, value >> 8 & 0xFF)
            case 0x18:
                self.raised += not self.high and value & 1
                self.high = bool(value & 1)
                self.set_line(PIN, self.high)
            case 0x20:
                self.page = value
            case 0x24:
                words = np.frombuffer(self.memory(self.page * PAGE_SIZE, PAGE_SIZE), np.uint32)
                words ^= np.uint32(value)

    @staticmethod
    def _register(offset: int) -> int:
        """Ports follow memory, and their counter is at 0x0c."""
        port = offset - MEMORY_LENGTH
        if port < 0:
            return offset
        return 0x08 if port == 0x0C else port
