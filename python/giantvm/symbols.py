"""Names for addresses of a guest: from a kernel's `System.map` or `kallsyms`, or an ELF file."""

from __future__ import annotations

import bisect
import os
import re
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from giantvm.errors import ConfigError

__all__ = ["Symbols"]

_LINE: Final = re.compile(r"([0-9a-fA-F]{1,16}) ([a-zA-Z?]) (\S+)(?:\s.*)?")
_KERNEL_MAP: Final = 0xFFFF_FFFF_8000_0000
"""Where Linux maps physical memory from 0 on for its own image (`__START_KERNEL_map`)."""
_FAR: Final = 1 << 20
"""A symbol names no address further behind it than this."""
_NOWHERE: Final = (0, (1 << 64) - 1)
"""In kallsyms for others than root, and in the map of Debian's kernel packages."""
_SHT_SYMTAB: Final = 2
_STT_FUNC, _STT_OBJECT, _STT_NOTYPE = 2, 1, 0


class Symbols:
    """Symbols by address. Those of a kernel are right only if it runs where it was linked to run:
    with `nokaslr`.
    """

    def __init__(self, symbols: Iterable[tuple[int, str]] = ()) -> None:
        found = sorted(dict(symbols).items())
        self._addresses = [address for address, _ in found]
        self._names = [name for _, name in found]

    def __len__(self) -> int:
        return len(self._names)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Symbols:
        """The symbols of a file; `ConfigError` if it has none or can't be read."""
        try:
            data = Path(path).read_bytes()
        except OSError as error:
            raise ConfigError(f"symbols: can't read {os.fspath(path)}: {error.strerror}") from error
        found = _elf(data) if data.startswith(b"\x7fELF") else _system_map(data)
        symbols = cls(found)
        if not len(symbols):
            raise ConfigError(
                f"symbols: {os.fspath(path)} has none: give the System.map of the guest's kernel "
                "(Debian's is in its -dbg package), its /proc/kallsyms as root reads it, or an ELF "
                "file that is not stripped"
            )
        return symbols

    def code(self, address: int) -> str:
        """`symbol+0x10` for a virtual address, or the address."""
        return self._name(address) or f"{address:#x}"

    def page(self, address: int) -> str:
        """The first symbol within the page at a physical address, or that which reaches into it: of
        a kernel's image, or of a guest whose addresses are physical; else nothing.
        """
        for virtual in (address, _KERNEL_MAP + address):
            at = bisect.bisect_left(self._addresses, virtual)
            if at < len(self._addresses) and self._addresses[at] < virtual + 4096:
                return self._names[at]
            if name := self._name(virtual):
                return name
        return ""

    def _name(self, address: int) -> str:
        at = bisect.bisect_right(self._addresses, address) - 1
        if at < 0 or address - self._addresses[at] >= _FAR:
            return ""
        offset = address - self._addresses[at]
        return f"{self._names[at]}+{offset:#x}" if offset else self._names[at]


def _system_map(data: bytes) -> Iterable[tuple[int, str]]:
    for line in data.decode(errors="replace").splitlines():
        if (
            (found := _LINE.fullmatch(line))
            and found[2] not in "UA"
            and (address := int(found[1], 16)) not in _NOWHERE
        ):
            yield address, found[3]


def _elf(data: bytes) -> Iterable[tuple[int, str]]:
    """Functions and objects of the symbol tables of an ELF64 file; of a damaged one, a part."""
    try:
        yield from _elf_symbols(data)
    except (struct.error, IndexError):
        return


def _elf_symbols(data: bytes) -> Iterable[tuple[int, str]]:
    if data[4:6] != b"\x02\x01":
        return
    sections, size, count = _unpack("<Q10xHH", data, 0x28)
    headers = [_unpack("<IIQQQQIIQQ", data, sections + i * size) for i in range(count)]
    for _, kind, _, _, start, length, link, _, _, entry in headers:
        if kind != _SHT_SYMTAB or entry != 24:
            continue
        names = headers[link]
        strings = data[names[4] : names[4] + names[5]]
        for at in range(start, min(start + length, len(data)), entry):
            name, info, _, section, value = _unpack("<IBBHQ", data, at)
            if section and info & 0xF in (_STT_FUNC, _STT_OBJECT, _STT_NOTYPE):
                end = strings.find(b"\0", name)
                if text := strings[name:end].decode(errors="replace"):
                    yield value, text


def _unpack(form: str, data: bytes, at: int) -> tuple[int, ...]:
    return struct.unpack(form, data[at : at + struct.calcsize(form)])
