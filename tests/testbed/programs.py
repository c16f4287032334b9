"""Programs of this machine, for machines that have no file system but what they boot with."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from testbed.errors import TestbedError
from testbed.kernel import checked


def add_libraries(tree: Path, program: Path) -> None:
    """Puts what a program loads where it looks for it, below `tree`."""
    for library in libraries(program):
        place = tree / library.relative_to("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(library, place)


def is_dynamic(file: Path) -> bool:
    """Whether it is a program that needs the dynamic loader."""
    with file.open("rb") as start:
        if start.read(4) != b"\x7fELF":
            return False
    shown = checked(["readelf", "--program-headers", str(file)], f"{file} can't be read")
    return "INTERP" in shown


def libraries(program: Path) -> list[Path]:
    """What the dynamic loader would load, and the loader itself."""
    shown = checked(["ldd", str(program)], f"{program}: its libraries are not known")
    if "not found" in shown:
        raise TestbedError(f"{program} can't run here:\n{shown}")
    return [Path(path) for path in re.findall(r"(?:^|\s)(/\S+) \(0x", shown)]
