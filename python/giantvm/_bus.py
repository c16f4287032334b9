"""Who answers the guest's accesses to ports and addresses."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from giantvm._native import NativeVm
from giantvm.vmspec import Mmio, Pio

__all__ = ["Bus", "Claim", "Unclaimed"]


@dataclass(frozen=True, slots=True)
class Claim:
    """A range and who answers there."""

    range: Pio | Mmio
    """The ports or addresses."""
    device: str
    """The device's name."""
    node: str
    """The node that answers an access of this node's vCPUs."""


@dataclass(frozen=True, slots=True)
class Unclaimed:
    """Accesses that nobody answered: reads found all ones, writes vanished."""

    reads: int
    """How many reads."""
    writes: int
    """How many writes."""
    last_read: Pio | Mmio | None
    """Where the last read was: the first port or address."""
    last_write: Pio | Mmio | None
    """Where the last write was."""


class Bus:
    """Who answers which ports and addresses, as one node sees it. Made by `Vm.bus`.

    Iterate it for all claims, those of the platform's own devices included.
    """

    def __init__(self, native: NativeVm, node: str, nodes: Sequence[str]) -> None:
        self._native = native
        self._node = node
        self._nodes = nodes

    def __iter__(self) -> Iterator[Claim]:
        for ports, start, length, device, node in self._native.claims():
            where = self._node if node is None else self._nodes[node]
            yield Claim(Pio(start, length) if ports else Mmio(start, length), device, where)

    def find(self, place: Pio | Mmio) -> Claim | None:
        """Who answers at all of `place`; `None` if nobody does, or several do."""
        for claim in self:
            if type(claim.range) is type(place) and _within(place, claim.range):
                return claim
        return None

    def unclaimed(self) -> Unclaimed:
        """Accesses of this node's vCPUs that nobody answered."""
        reads, writes, last_read, last_write = self._native.unclaimed()
        return Unclaimed(reads, writes, _place(last_read), _place(last_write))


def _within(inner: Pio | Mmio, outer: Pio | Mmio) -> bool:
    end, outer_end = inner.start + inner.length, outer.start + outer.length
    return outer.start <= inner.start and end <= outer_end


def _place(found: tuple[bool, int] | None) -> Pio | Mmio | None:
    if found is None:
        return None
    port, start = found
    return Pio(start, 1) if port else Mmio(start, 1)
