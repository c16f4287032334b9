"""What Ray takes for 4 KiB: `python ray_peer.py WHAT COUNT DIRECTORY` prints microseconds.

WHAT is `get` (of an object that another process has just put) or `put`. Objects are immutable: a
rewrite is a new object, whose reference has to reach the reader by other means.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any, Final

import numpy as np
import ray

PAGE_BYTES: Final = 4096


class _Owner:
    """Lives in a process of its own."""

    def make(self, value: int) -> list[Any]:
        """A new object of 4 KiB; in a list, or Ray would send the object and not its reference."""
        return [ray.put(np.full(PAGE_BYTES, value % 256, np.uint8))]


def main(what: str, count: int, directory: str) -> None:
    """Measures in this process, which starts a Ray of its own on the loopback and ends it."""
    ray.init(
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=128 << 20,
        _node_ip_address="127.0.0.1",
        _temp_dir=directory,
    )
    try:
        times = _get(count) if what == "get" else _put(count)
    finally:
        ray.shutdown()
    print(json.dumps(times))


def _get(count: int) -> list[float]:
    owner: Any = ray.remote(_Owner).remote()
    times = []
    for number in range(count):
        [reference] = ray.get(owner.make.remote(number))
        began = time.perf_counter_ns()
        page = ray.get(reference)
        times.append((time.perf_counter_ns() - began) / 1000)
        assert page[0] == number % 256
    return times


def _put(count: int) -> list[float]:
    page = np.zeros(PAGE_BYTES, np.uint8)
    times = []
    for number in range(count):
        page[:] = number % 256
        began = time.perf_counter_ns()
        reference = ray.put(page)
        times.append((time.perf_counter_ns() - began) / 1000)
        del reference
    return times


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
