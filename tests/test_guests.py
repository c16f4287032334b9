"""The bare-metal guests over one, two and three nodes, each a process: they pass, and say the same.

Places are the nodes of the guest's CPUs.

How often level-triggered interrupts come exactly is left to hosts in the testbed
(test_guests_testbed.py). A KVM without VMX and SVM may end an interrupt when it delivers it: in the
handler, the local APIC's in-service bit is clear, and KVM_EXIT_IOAPIC_EOI sometimes comes before
the handler's write that lowers the line.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence

import numpy as np
import pytest

from guest_nodes import GuestRun, built, random_words
from residency import BEYOND
from testbed.guest_run import Programs

ONE = [0, 0, 0]
TWO = [0, 1, 1]
THREE = [0, 1, 2]


@pytest.fixture(scope="module")
def programs() -> Programs:
    return built()


def said(programs: Programs, places: Sequence[int], test: str, nodes: int | None = None) -> str:
    with GuestRun(programs, places, test, nodes=nodes) as run:
        return run.passed()


TESTS = [
    "test=smp rounds=5",
    "test=ipi count=500",
    "test=ipi count=200 together=1",
    "test=locks count=500",
    "test=io count=100",
    "test=level count=50 exact=0",
    "test=msi count=100",
    "test=tsc count=5000",
    "test=tsc count=500 by=memory",
    "test=hotplug rounds=12",
    "test=reset ways=6",
    "test=timer count=10",
    "test=many count=100",
]


@pytest.mark.parametrize("test", TESTS)
def test_guest_says_the_same_on_one_two_and_three_nodes(programs: Programs, test: str) -> None:
    alone = said(programs, ONE, test)
    assert said(programs, TWO, test) == alone
    assert said(programs, THREE, test) == alone


@pytest.mark.parametrize(
    ("nodes", "places"),
    [
        (2, [0, 0, 0, 1]),  # three here, one there
        (2, [1, 0, 0, 0]),  # the first CPU alone, away from the platform's devices
        (3, [2, 0, 2, 0]),  # a node without CPUs
    ],
)
@pytest.mark.parametrize(
    "test",
    ["test=smp", "test=ipi count=50", "test=locks count=200", "test=level count=20 exact=0"],
)
def test_unequal_placements(
    programs: Programs, nodes: int, places: Sequence[int], test: str
) -> None:
    assert said(programs, places, test, nodes) == said(programs, [0, 0, 0, 0], test)


@pytest.mark.timeout(600)
def test_every_kind_of_interrupt_ten_thousand_times(programs: Programs) -> None:
    """From each CPU of two nodes to each, none lost or doubled."""
    told = said(programs, [0, 1], "test=ipi count=10000")
    kinds = [line for line in told.splitlines() if line.startswith("ipi: ")]
    assert len(kinds) == 10
    assert all("count=10000" in line for line in kinds)


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("together", [0, 1])
def test_every_kind_of_interrupt_ten_thousand_times_over_three_nodes(
    programs: Programs, together: int
) -> None:
    test = f"test=ipi count=10000 together={together}"
    alone = said(programs, ONE, test)
    assert said(programs, TWO, test) == alone
    assert said(programs, THREE, test) == alone


@pytest.mark.timeout(600)
def test_time_never_goes_back_in_a_hundred_thousand_hops(programs: Programs) -> None:
    assert "hops=100000 violations=0" in said(programs, [0, 1], "test=tsc count=100000")


@pytest.mark.parametrize("nodes", [2, 3])
def test_litmus_counts_iterations_with_a_fault_only(programs: Programs, nodes: int) -> None:
    places = [index % nodes for index in range(4)]
    told = said(programs, places, "test=litmus count=50 faults=1")
    assert told == said(programs, [0, 0, 0, 0], "test=litmus count=50 faults=0")
    assert told.count("iterations=50 forbidden=0") == 10


@pytest.mark.parametrize("places", [ONE, TWO, THREE, [1, 0, 1]])
def test_matrix_product(programs: Programs, places: Sequence[int]) -> None:
    n, seed = 96, 5
    with GuestRun(programs, places, f"test=matrix n={n} seed={seed}") as run:
        run.passed()
        product = np.frombuffer(run.result.read_bytes(), np.uint64).reshape(n, n)
    a = random_words(seed, 0, n * n).reshape(n, n)
    b = random_words(seed, n * n, n * n).reshape(n, n)
    assert (product == a @ b).all()


@pytest.mark.parametrize("places", [ONE, TWO, THREE, [1, 0, 1]])
def test_sort(programs: Programs, places: Sequence[int]) -> None:
    count, seed = 20_000, 7
    with GuestRun(programs, places, f"test=sort count={count} seed={seed}") as run:
        run.passed()
        result = np.frombuffer(run.result.read_bytes(), np.uint32)
    keys = random_words(seed, 0, count).astype(np.uint32)
    assert (result == np.sort(keys)).all()


def test_reads_of_another_nodes_pages_are_read_requests(programs: Programs) -> None:
    """With interrupts on in the guest: KVM's own worker would fetch each page to write."""
    count = 500
    with GuestRun(programs, [0, 1], f"test=pages count={count} nodes=2") as run:
        run.passed()
        first, second = (
            [json.loads(text)["counters"] for text in run.marks(node)] for node in range(2)
        )

    def rose(marks: list[dict[str, int]], name: str) -> int:
        before, after = marks
        return after[name] - before[name]

    faults = ("read_faults", "write_faults", "upgrade_faults")
    assert [rose(second, name) for name in faults[1:]] == [0, 0]
    # A few come along with another's: those that the guest's random order has in even strides.
    asked, came_along = (rose(second, name) for name in ("read_faults", "companions_received"))
    assert asked + came_along == count
    assert came_along < count // 20
    assert [rose(first, name) for name in faults] == [0, 0, 0]
    assert rose(first, "pages_sent") == rose(second, "pages_received") == count
    # A page that is given to write is taken from its owner.
    assert rose(first, "invalidations_received") == 0


def use_all_memory(programs: Programs, places: Sequence[int], ram_mib: int, share_mib: int) -> str:
    """What the guest says that uses all its RAM, of which no node may have more than its share."""
    with GuestRun(
        programs, places, "test=memory rounds=3", ram_mib=ram_mib, share_mib=share_mib
    ) as run:
        most = 0
        while not all(run.ended(node) for node in range(run.count)):
            most = max(most, *(run.resident(node) for node in range(run.count)))
            time.sleep(0.01)
        told = run.passed()
        evicted = [run.stats(node)["pages_evicted"] for node in range(run.count)]
    if run.count > 1:
        assert all(evicted), evicted
        assert most <= (share_mib << 20) + BEYOND, most
    return told


@pytest.mark.parametrize(
    "ram_mib", [128, pytest.param(2048, marks=[pytest.mark.long, pytest.mark.timeout(1800)])]
)
def test_a_guest_uses_more_memory_than_any_node_has(programs: Programs, ram_mib: int) -> None:
    alone = use_all_memory(programs, ONE, ram_mib, ram_mib)
    assert use_all_memory(programs, TWO, ram_mib, ram_mib * 9 // 16) == alone
    assert use_all_memory(programs, THREE, ram_mib, ram_mib * 6 // 16) == alone


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    "test",
    [
        "test=locks count=5000",
        "test=io count=1000",
        "test=level count=1000 exact=0",
        "test=msi count=3000",
        "test=tsc count=100000",
        "test=tsc count=100000 by=memory",
        "test=hotplug rounds=200",
        "test=reset ways=100",
        "test=many count=5000",
        "test=matrix n=256 rounds=5",
        "test=sort count=200000 rounds=5",
    ],
)
def test_larger_counts_over_two_and_three_nodes(programs: Programs, test: str) -> None:
    alone = said(programs, ONE, test)
    assert said(programs, TWO, test) == alone
    assert said(programs, THREE, test) == alone


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_longer_litmus(programs: Programs) -> None:
    told = said(programs, [0, 1, 2, 0], "test=litmus count=2000 faults=1")
    assert told.count("iterations=2000 forbidden=0") == 10
