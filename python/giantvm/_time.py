"""Seconds of the public API to milliseconds of the native one."""

from __future__ import annotations

import math
from typing import overload

_MILLISECONDS_MAX = 2**53


@overload
def milliseconds(seconds: float) -> int: ...
@overload
def milliseconds(seconds: float | None) -> int | None: ...
def milliseconds(seconds: float | None) -> int | None:
    """`seconds` in whole milliseconds, rounded up; `None` (no limit) stays."""
    if seconds is None:
        return None
    if math.isnan(seconds) or seconds < 0:
        raise ValueError(f"a time limit of {seconds} s: give 0 or more, or None for no limit")
    return _MILLISECONDS_MAX if math.isinf(seconds) else math.ceil(seconds * 1000)
