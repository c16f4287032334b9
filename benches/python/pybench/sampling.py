"""Taking samples in interleaved batches, and what is kept of them."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

Sampler = Callable[[int], list[float]]
"""Measures so many times; returns one number for each, in the benchmark's unit."""


@dataclass(frozen=True, slots=True)
class Batches:
    """How often each sampler is asked, and for how much."""

    rounds: int
    per_round: int
    warm_up: int
    """Samples taken first and thrown away."""

    def times(self, factor: float) -> Batches:
        """As many rounds, of `factor` times the length."""
        scaled = (max(1, round(n * factor)) for n in (self.per_round, self.warm_up))
        return Batches(self.rounds, *scaled)


FULL = Batches(rounds=10, per_round=300, warm_up=300)
QUICK = Batches(rounds=4, per_round=60, warm_up=60)


def interleave(samplers: Sequence[Sampler], batches: Batches) -> list[list[float]]:
    """Asks all samplers in turns, so that a slow minute of the machine falls on each of them.

    Every second round goes backwards: none always follows the same other.
    """
    taken: list[list[float]] = [[] for _ in samplers]
    for sampler in samplers:
        sampler(batches.warm_up)
    for number in range(batches.rounds):
        turns = list(zip(samplers, taken, strict=True))
        for sampler, values in turns[::-1] if number % 2 else turns:
            values.extend(sampler(batches.per_round))
    return taken


def median(samples: Sequence[float]) -> float:
    """The middle value."""
    return statistics.median(samples)


def p99(samples: Sequence[float]) -> float:
    """The value that 99 of 100 samples do not exceed, by nearest rank."""
    return sorted(samples)[math.ceil(0.99 * len(samples)) - 1]
