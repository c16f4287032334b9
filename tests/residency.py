"""What the frames of a region take at a node, as its kernel counts them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

BEYOND: Final = 2 << 20
"""What a node may have on top of its share, for each worker; see docs/operations.md."""


def resident(region: str, process: int | str = "self") -> int | None:
    """Bytes of memory that a region whose name begins like that takes in a process; None where it
    has none.
    """
    try:
        for fd in Path(f"/proc/{process}/fd").iterdir():
            try:
                if os.readlink(fd).startswith(f"/memfd:giantvm:{region}"):
                    return fd.stat().st_blocks * 512
            except FileNotFoundError:
                continue
    except FileNotFoundError:
        pass
    return None
