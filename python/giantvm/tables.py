"""Plain tables for terminals."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["align", "quantity"]


def align(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Lines with aligned columns: words to the left, numbers to the right.

    A column is one of numbers if each of its cells is an `int`, a `float` or `None`, shown as `-`.
    """
    columns = [[row[i] for row in rows] for i in range(len(header))]
    cells = [[_text(cell) for cell in column] for column in columns]
    widths = [
        max(len(title), *map(len, column), 0) for title, column in zip(header, cells, strict=True)
    ]
    right = [
        bool(column) and all(cell is None or isinstance(cell, int | float) for cell in column)
        for column in columns
    ]
    lines = [list(header), *map(list, zip(*cells, strict=True))]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if numbers else cell.ljust(width)
            for cell, width, numbers in zip(line, widths, right, strict=True)
        ).rstrip()
        for line in lines
    )


def quantity(size: float) -> str:
    """Bytes in the largest unit that leaves a number of at least 1, such as `1.5 MiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(size) < 1024:
            return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def _text(cell: object) -> str:
    if cell is None:
        return "-"
    return f"{cell:.1f}" if isinstance(cell, float) else str(cell)
