"""The bare-metal guests over two hosts with kernels of their own: they say what they say here."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from guest_nodes import EXIT_LOST, GuestRun, built
from testbed import MissingError, Testbed
from testbed.channel import Process, Result
from testbed.guest_run import Programs, build_mistaken, latest_stats, told

Stats = dict[str, int]
"""Counters of a region: docs/operations.md."""

HOSTS_S = 900.0
"""Far more than any guest takes on such hosts, with small counts."""
LONG_S = 6000.0
"""The same with large ones: 10,000 interrupts of each kind take a quarter of an hour."""
PORT = 7100
APART_S = 5.0


@pytest.fixture(scope="module")
def programs() -> Programs:
    return built()


@pytest.fixture(scope="module")
def hosts(programs: Programs) -> Iterator[Testbed]:
    """Two hosts whose clocks began seconds apart."""
    try:
        bed = Testbed(2, memory_mib=768, apart_s=APART_S).__enter__()
    except MissingError as error:
        pytest.skip(str(error))
    try:
        install(bed, programs)
        yield bed
    finally:
        bed.__exit__(None, None, None)


def install(bed: Testbed, programs: Programs) -> None:
    for host in bed.hosts:
        for name, file in programs.files().items():
            host.copy_in(file, f"/tmp/{name}")


def start(
    bed: Testbed,
    places: str,
    test: str,
    *more: str,
    timeout_ms: int = 20_000,
    program: str = "vm_node",
) -> list[Process]:
    """Begins the guest; the process of each node. `more` are further options of `program`."""
    addresses = ",".join(f"10.0.0.{index + 1}:{PORT}" for index in range(len(bed.hosts)))
    options = [
        f"--device={len(bed.hosts) - 1}",
        "--tsc=shared",
        f"--heartbeat-ms={timeout_ms // 10}",
        f"--timeout-ms={timeout_ms}",
        *more,
    ]
    return [
        host.start(
            [
                *(f"/tmp/{program}", str(index), addresses, places, "64", "/tmp/guest.elf", "-"),
                *(test, *options),
            ]
        )
        for index, host in reversed(list(enumerate(bed.hosts)))
    ][::-1]


def said_there(bed: Testbed, places: str, test: str, timeout_s: float = HOSTS_S) -> str:
    """What the guest says on the hosts."""
    nodes = start(bed, places, test)
    statuses = [node.wait(timeout_s).status for node in nodes]
    logs = "\n".join(node.stderr[-3000:] for node in nodes)
    assert statuses == [0] * len(nodes), f"{nodes[0].stdout}\n{logs}\nlogs: {bed.logs}"
    return told(nodes[0].stdout)


def final_counters(ended: list[Result]) -> list[Stats]:
    """What the memory of the nodes that told so did until the end."""
    return [latest_stats(it.stderr)["counters"] for it in ended if "] stats: " in it.stderr]


TESTS = [
    "test=smp rounds=3",
    "test=ipi count=20",
    "test=locks count=20",
    "test=io count=10",
    "test=msi count=10",
    "test=hotplug rounds=4",
    "test=reset",
    "test=timer count=5",
    "test=matrix n=32",
    "test=sort count=2000",
    "test=many count=20",
    "test=litmus count=4",
    "test=tsc count=500",
]
"""Small counts: a hop between hosts takes milliseconds. `make test-long` has larger ones."""


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("test", TESTS)
def test_guest_says_the_same_on_two_hosts(hosts: Testbed, programs: Programs, test: str) -> None:
    """With one CPU on each; the hosts were started seconds apart."""
    with GuestRun(programs, [0, 1], test) as here:
        expected = here.passed()
    assert said_there(hosts, "0,1", test) == expected


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("places", ["0,1", "1,0", pytest.param("0,1,1", marks=pytest.mark.long)])
def test_level_triggered_interrupts_over_hosts(hosts: Testbed, places: str) -> None:
    """The device is on the second host, the IOAPIC on the first, and each CPU ends interrupts."""
    count = 10
    told = said_there(hosts, places, f"test=level count={count}")
    cpus = places.count(",") + 1
    for cpu in range(cpus):
        for again in (0, 2):
            taken = count * (1 + again)
            assert f"level: cpu={cpu} count={count} again={again} taken={taken}" in told
    assert f"level: lines={2 * count * cpus}" in told


@pytest.mark.timeout(1800)
def test_a_guest_uses_more_memory_than_any_host_gives(hosts: Testbed, programs: Programs) -> None:
    """All of its 64 MiB; the loader puts its image there, too."""
    with GuestRun(programs, [0, 0], "test=memory rounds=1") as here:
        expected = here.passed()
    nodes = start(hosts, "0,1", "test=memory rounds=1", "--share-mib=40")
    ended = [node.wait(HOSTS_S) for node in nodes]
    logs = "\n".join(node.stderr[-3000:] for node in ended)
    assert [node.status for node in ended] == [0, 0], f"{ended[0].stdout}\n{logs}"
    assert told(ended[0].stdout) == expected
    assert all(it["evicted"] for it in final_counters(ended)), logs


@pytest.mark.long
@pytest.mark.timeout(7200)
@pytest.mark.parametrize(
    ("places", "test"),
    [
        ("0,1", "test=ipi count=10000"),
        ("0,1", "test=tsc count=100000"),
        ("0,1", "test=litmus count=200 faults=1"),
        ("0,1", "test=many count=500"),
        ("0,0,1", "test=smp rounds=10"),
        ("0,0,1", "test=ipi count=50"),
        ("1,0", "test=io count=50"),
    ],
)
def test_larger_counts_on_two_hosts(
    hosts: Testbed, programs: Programs, places: str, test: str
) -> None:
    with GuestRun(programs, [int(node) for node in places.split(",")], test) as here:
        expected = here.passed()
    assert said_there(hosts, places, test, LONG_S) == expected


WALKS = "test=walks count=60"


def walked(bed: Testbed, *more: str, program: str = "vm_node") -> tuple[list[Result], list[Stats]]:
    """How the nodes ended whose guest changes page tables that both walk, and what memory did."""
    nodes = start(bed, "0,1", WALKS, "--walk-shared=1", *more, program=program)
    ended = [node.wait(HOSTS_S) for node in nodes]
    return ended, final_counters(ended)


@pytest.mark.timeout(1800)
def test_page_tables_that_nobody_stores_to_stay_at_both_hosts(
    hosts: Testbed, programs: Programs
) -> None:
    """The guest finds every change of an entry, and none is lost; other pages stay out of it."""
    with GuestRun(programs, [0, 0], WALKS) as here:
        expected = here.passed()
    ended, counters = walked(hosts)
    logs = "\n".join(node.stderr[-3000:] for node in ended)
    assert [node.status for node in ended] == [0, 0], f"{ended[0].stdout}\n{logs}"
    assert told(ended[0].stdout) == expected
    home, other = counters
    tables = 4
    assert home["walk_entered"] >= tables, counters
    assert other["walk_joined"] >= tables, counters
    # Both have told of stores.
    assert min(home["walk_words"], other["walk_words"]) > 0, counters
    # The false table was wanted by both all the time.
    assert home["walk_refused"] + other["walk_refused"] > 0, counters


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("mistake", ["no-flush", "no-proof"])
def test_the_guest_notices_a_mistake_with_walk_shared_pages(hosts: Testbed, mistake: str) -> None:
    """Negative controls: changes that overtake what tells of them, pages that are no tables."""
    program = build_mistaken()
    for host in hosts.hosts:
        host.copy_in(program, f"/tmp/{program.name}")
    ended, _ = walked(hosts, f"--mistake={mistake}", program=program.name)
    assert ended[0].status != 0, ended[0].stdout
    noticed = {
        "no-flush": "FAILED: walks: change",
        "no-proof": "word 0 of page .* the guest keeps more",
    }
    told_of = "\n".join(it.stdout + it.stderr for it in ended)
    assert re.search(noticed[mistake], told_of), told_of[-6000:]


LOST = re.compile(r"\[n0 [\d.]+\] ended: Lost \{ reason: \"node n1 is lost: .+\" \}")


def host_lost(bed: Testbed, *, killed: bool) -> None:
    nodes = start(bed, "0,1", "test=level count=1000000", timeout_ms=6000)
    nodes[0].wait_for("# guest:", timeout_s=HOSTS_S)
    if killed:
        bed.hosts[1].kill()
    else:
        bed.hosts[1].cut()
    ended = nodes[0].wait(HOSTS_S)
    assert ended.status == EXIT_LOST, ended.stderr
    assert LOST.search(ended.stderr), ended.stderr
    if not killed:
        out = nodes[1].wait(HOSTS_S)
        assert out.status == EXIT_LOST, out.stderr
        assert 'ended: Lost { reason: "node n0 is lost: this node can' in out.stderr, out.stderr


@pytest.mark.timeout(1800)
def test_host_cut_off_and_host_killed(programs: Programs) -> None:
    with Testbed(2, memory_mib=768) as bed:
        install(bed, programs)
        host_lost(bed, killed=False)
        bed.hosts[1].join()
        host_lost(bed, killed=True)
