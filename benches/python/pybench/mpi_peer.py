"""What MPI takes for 4 KiB, between two ranks: `mpiexec -n 2 python mpi_peer.py WHAT COUNT`.

WHAT is `get` or `put` (one-sided, with a flush) or `turns` (messages there and back). Rank 0
measures, and prints its microseconds as a JSON list.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any, Final

import mpi4py
import numpy as np

# One-sided messages over TCP refuse to work in a program with threads.
mpi4py.rc.threads = False

from mpi4py import MPI  # noqa: E402

PAGE_BYTES: Final = 4096


def main(what: str, count: int) -> None:
    """Measures on rank 0 while rank 1 takes part."""
    world: Any = MPI.COMM_WORLD
    times = _turns(world, count) if what == "turns" else _one_sided(world, what, count)
    if world.rank == 0:
        print(json.dumps(times))


def _one_sided(world: Any, what: str, count: int) -> list[float]:
    page = np.zeros(PAGE_BYTES, np.uint8)
    here = np.zeros(PAGE_BYTES, np.uint8)
    window: Any = MPI.Win.Create(page if world.rank == 1 else None, comm=world)
    window.Lock_all()
    times: list[float] = []
    if world.rank == 0:
        act = window.Get if what == "get" else window.Put
        times = _timed(lambda: (act(here, 1), window.Flush(1)), count)
    # Rank 1 waits in here, where MPI serves the window.
    world.Barrier()
    window.Unlock_all()
    window.Free()
    return times


def _turns(world: Any, count: int) -> list[float]:
    page = np.zeros(PAGE_BYTES, np.uint8)

    def there_and_back() -> None:
        world.Send(page, 1)
        world.Recv(page, 1)

    def back() -> None:
        world.Recv(page, 0)
        world.Send(page, 0)

    times = _timed(there_and_back if world.rank == 0 else back, count)
    return [both / 2 for both in times]


def _timed(function: Callable[[], object], count: int) -> list[float]:
    warm_up = count // 10
    times = []
    for _ in range(warm_up + count):
        began = time.perf_counter_ns()
        function()
        times.append((time.perf_counter_ns() - began) / 1000)
    return times[warm_up:]


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
