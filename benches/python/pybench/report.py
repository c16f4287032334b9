"""Rows, the verdict on each, `bench.json` and the table: the same as `benches/src/report.rs`."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from pybench.sampling import median, p99

_MORE_IS_BETTER: Final = ("MB/s",)


@dataclass(slots=True)
class Row:
    """One line of the report; `(name, variant)` is its identity."""

    name: str
    variant: str
    unit: str
    value: float
    """Median."""
    p99: float | None = None
    floor: float | None = None
    floor_p99: float | None = None
    ratio: float | None = None
    """`value / floor`."""
    goal: float | None = None
    """Bound on `ratio`, or on `value` without a floor: from above for a cost."""
    met: bool | None = None

    @property
    def missed(self) -> bool:
        """Whether there is a goal and it is not kept."""
        return self.met is False


def row_of(
    name: str,
    variant: str,
    samples: Sequence[float],
    *,
    unit: str = "us",
    floor: Sequence[float] | None = None,
    goal: float | None = None,
) -> Row:
    """A row of samples of a cost, in microseconds by default."""
    row = Row(name, variant, unit, median(samples), p99(samples), goal=goal)
    if floor is not None:
        row.floor, row.floor_p99 = median(floor), p99(floor)
        row.ratio = row.value / row.floor if row.floor > 0 else None
    judged = row.value if floor is None else row.ratio
    if goal is not None:
        row.met = judged is not None and judged <= goal
    return row


def load(path: Path) -> list[Row]:
    """The rows of the report at `path`; none where there is no such file."""
    if not path.exists():
        return []
    objects: list[dict[str, Any]] = json.loads(path.read_text())
    return [Row(**fields) for fields in objects]


def merge(path: Path, rows: Iterable[Row]) -> None:
    """Adds rows to the report at `path`; those of the same name and variant are replaced."""
    merged = {(row.name, row.variant): row for row in load(path)}
    merged.update({(row.name, row.variant): row for row in rows})
    path.parent.mkdir(parents=True, exist_ok=True)
    # A reader, or a run that is cut short, must never see half a report.
    whole = path.with_suffix(".json.new")
    whole.write_text(json.dumps([asdict(row) for row in merged.values()], indent=2) + "\n")
    os.replace(whole, path)


_HEAD: Final = ["name", "variant", "value", "p99", "floor", "floor p99", "unit", "ratio", "goal"]
_NUMBERS: Final = (2, 3, 4, 5, 7, 8)


def table(rows: Iterable[Row]) -> str:
    """The rows with their columns aligned."""
    lines = [[*_HEAD, ""], *(_cells(row) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if at in _NUMBERS else cell.ljust(width)
            for at, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def misses(rows: Iterable[Row]) -> list[str]:
    """A sentence for each goal that is not kept."""
    said = []
    for row in rows:
        if row.missed:
            what = "value" if row.floor is None else "ratio"
            judged = row.value if row.floor is None else row.ratio
            sign = ">=" if row.unit in _MORE_IS_BETTER else "<="
            # Enough digits to tell a near miss from a goal that is met.
            goal = f"{what} {judged:.4g}, goal {sign} {_short(row.goal)}"
            said.append(f"missed: {row.name} {row.variant}: {goal}")
    return said


def _cells(row: Row) -> list[str]:
    sign = ">=" if row.unit in _MORE_IS_BETTER else "<="
    return [
        row.name,
        row.variant,
        *(_short(number) for number in (row.value, row.p99, row.floor, row.floor_p99)),
        row.unit,
        "" if row.ratio is None else f"{row.ratio:.2f}",
        "" if row.goal is None else f"{sign} {_short(row.goal)}",
        "" if row.met is None else ("met" if row.met else "MISSED"),
    ]


def _short(number: float | None) -> str:
    return "" if number is None else f"{number:.3g}" if abs(number) < 100 else f"{number:.0f}"
