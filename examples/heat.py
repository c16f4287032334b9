"""Heat spreads over a plate whose rows are split over the nodes.

Run it on every node of a cluster:

    python -m giantvm.node --config cluster.toml --node NAME -- examples/heat.py

Each node works on its rows of two shared arrays. The rows next to them belong to the neighbours:
reading them is a plain load, and a barrier separates the steps.
"""

from __future__ import annotations

import argparse
from typing import Final

import numpy as np
import numpy.typing as npt

from giantvm import PAGE_SIZE, Node
from memory_report import Report, gather

Plate = npt.NDArray[np.float64]

_DIFFUSION: Final = 0.2


def main(node: Node, args: list[str]) -> int:
    """Computes on this node; the first one checks and reports. 0 if the result is right."""
    options = _parser().parse_args(args)
    shape = (options.rows, options.columns)
    plate_bytes = -(-8 * options.rows * options.columns // PAGE_SIZE) * PAGE_SIZE
    region = node.region("heat", 2 * plate_bytes + PAGE_SIZE * 64)
    now, later = (region.array(shape, name=name) for name in ("even", "odd"))
    step_done = node.barrier("heat/step")

    rows = share(options.rows, len(node.nodes), node.index)
    now[rows] = later[rows] = initial(*shape)[rows]
    step_done.wait()
    for _ in range(options.steps):
        spread(now, later, rows)
        step_done.wait()
        now, later = later, now

    report = gather(node, region)
    if report is None:
        return 0
    return verify(now, options.steps, report, {"even": now, "odd": later})


def verify(result: Plate, steps: int, report: Report, arrays: dict[str, Plate]) -> int:
    """Compares with a run in this process alone, bit by bit."""
    expected = alone(result.shape[0], result.shape[1], steps)
    same = np.array_equal(result, expected)
    print(f"heat: {result.shape[0]} x {result.shape[1]} points, {steps} steps: ", end="")
    print("equal to a run in one process" if same else "DIFFERS from a run in one process")
    report.show(arrays)
    return 0 if same else 1


def initial(rows: int, columns: int) -> Plate:
    """A cold plate with a hot edge and a hot spot."""
    plate = np.zeros((rows, columns))
    plate[0] = 100.0
    plate[rows // 2 : rows // 2 + 8, columns // 3 : columns // 3 + 8] = 500.0
    return plate


def share(rows: int, nodes: int, index: int) -> slice:
    """The rows of one node; the shares differ by one row at most."""
    return slice(rows * index // nodes, rows * (index + 1) // nodes)


def spread(now: Plate, later: Plate, rows: slice) -> None:
    """One step for `rows`; the edge of the plate keeps its temperature."""
    top, bottom = max(rows.start, 1), min(rows.stop, len(now) - 1)
    if top >= bottom:
        return
    above, below = now[top - 1 : bottom - 1, 1:-1], now[top + 1 : bottom + 1, 1:-1]
    left, right = now[top:bottom, :-2], now[top:bottom, 2:]
    centre = now[top:bottom, 1:-1]
    later[top:bottom, 1:-1] = centre + _DIFFUSION * (above + below + left + right - 4 * centre)


def alone(rows: int, columns: int, steps: int) -> Plate:
    """The same computation in one process."""
    now = initial(rows, columns)
    later = now.copy()
    for _ in range(steps):
        spread(now, later, slice(0, rows))
        now, later = later, now
    return now


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="heat.py", description="Heat on a shared plate.")
    parser.add_argument("--rows", type=int, default=600)
    parser.add_argument("--columns", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=50)
    return parser
