"""What Linux, its programs and its devices do over two hosts, and how that ends.

One guest runs it all, for a boot is long: `guests/linux/suite.sh`. It boots three times: until a
reboot, until a panic, and until one of the hosts is lost. Each host has a processor and a disk, and
the second one the network, away from processor 0.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

pytest.importorskip("giantvm._native", reason="the native module is not built")

from linux_guest import (
    HIDE,
    LATE,
    PATIENCE_S,
    SCHEDULING,
    checksum,
    command_line,
    ext4,
    image,
    initramfs,
    scheduling,
)
from linux_machine import Machine, addresses, disk, net, serve, start, stop
from linux_run import worker
from testbed import Host, MissingError, Testbed
from testbed.channel import Result

EXIT_LOST: Final = 86
TIMEOUT_MS: Final = 10_000
CPUS: Final = 2
WORKER: Final = (100_000, 200, 2, 5, 32768)
"""Loops, increments, forks, turns of the token, bytes."""
STORM, FUTEX, CHURN, PAGES = 3, 20, 3, 32
LATER: Final = ("dummy",)
"""Modules that are loaded when all runs."""

_MODULES: Final = ("virtio_blk", "virtio_net", *LATER)
_PROGRAMS: Final = ("worker", "storm", "futex", "churn", "pages")


@dataclass
class Session:
    """What came of the guest."""

    lines: list[str]
    """What it wrote to its serial port."""
    served: bytes
    """The file that it fetched."""
    first: Result
    """How the node ended that was left."""
    logs: Path

    def check(self, *wanted: str) -> None:
        """Fails unless it has said all of this."""
        for line in wanted:
            assert line in self.lines, f"{line!r} is not in:\n{self.told()}\nlogs: {self.logs}"

    def told(self) -> str:
        """The end of it."""
        return "\n".join(self.lines[-150:])


def suite_line(host: Host) -> str:
    """Of a guest on such hosts, with its programs' arguments: a word with commas stays one."""
    words = {
        "WORKER": ",".join(map(str, WORKER)),
        "STORM": STORM,
        "FUTEX": FUTEX,
        "CHURN": CHURN,
        "PAGES": PAGES,
        "LATER": ",".join(LATER),
    }
    arguments = " ".join(f"{name}={value}" for name, value in words.items())
    return command_line(host, "loglevel=4", SCHEDULING, LATE, arguments)


def prepare(work: Path) -> bytes:
    """Makes the guest's files; the content of the one that it is to fetch."""
    try:
        ext4(work / "disk", 16 << 20)
    except MissingError as error:
        pytest.skip(str(error))
    image(work)
    initramfs(work, "suite.sh", _MODULES, *_PROGRAMS, applets=("true",))
    (work / "www").mkdir()
    content = os.urandom(1 << 20)
    (work / "www" / "file").write_bytes(content)
    with (work / "swap").open("wb") as file:
        file.truncate(8 << 20)
    return content


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    """The guest's three boots, and the loss of the second host in the last one."""
    work = tmp_path_factory.mktemp("suite")
    content = prepare(work)
    with hosts(2) as bed:
        yield run(bed, work, content)


@contextmanager
def hosts(count: int) -> Iterator[Testbed]:
    """So many, of a test's own; skips it where there can be none."""
    with ExitStack() as stack:
        try:
            bed = stack.enter_context(Testbed(count))
        except MissingError as error:
            pytest.skip(str(error))
        yield bed


def run(bed: Testbed, work: Path, content: bytes) -> Session:
    """Starts the guest, takes the second host away in its third boot, and waits for the end."""
    first, second = bed.hosts
    serve(second, work / "www")
    for host, name in ((second, "disk"), (first, "swap")):
        host.run(["/bin/cp", work / name, f"/tmp/{name}"])
    machine = Machine(
        addresses(bed.hosts),
        work / "image",
        work / "guest.cpio",
        suite_line(first),
        hide=HIDE.split(),
        tsc="shared",
        timeout_ms=TIMEOUT_MS,
        devices=[
            disk("disk", second.name, "/tmp/disk"),
            disk("swap", first.name, "/tmp/swap"),
            net("net", second.name),
        ],
    )
    nodes = start(bed.hosts, machine)
    try:
        nodes[0].wait_for("suite: at work until the end", 2 * PATIENCE_S)
        second.kill()
        ended = nodes[0].wait(PATIENCE_S)
    finally:
        (bed.logs / "guest").write_text(nodes[0].stdout)
        stop(nodes[:1])
    lines = [line.strip() for line in ended.stdout.splitlines()]
    return Session(lines, content, ended, bed.logs)


pytestmark = pytest.mark.timeout(3 * PATIENCE_S)


def test_processors_of_both_hosts_are_there(session: Session) -> None:
    session.check(f"suite: cpus 0-{CPUS - 1}")


def test_checksums_of_what_both_hosts_wrote(session: Session) -> None:
    total = checksum(CPUS, WORKER[-1])
    session.check(
        *(f"checksum: cpu={cpu} bytes={WORKER[-1]} sum={total:016x}" for cpu in range(CPUS)),
        f"count: counter={CPUS * WORKER[1]}",
        "suite: worker ok",
    )


def test_time_never_goes_back_from_host_to_host(session: Session) -> None:
    session.check(f"tokens: turns={CPUS * WORKER[3]}")
    clocks = [line.split()[2:] for line in session.lines if line.startswith("suite: clocksource ")]
    assert [when for when, _ in clocks] == ["before", "after"]
    assert {name for _, name in clocks} <= {"tsc", "tsc-early"}
    # It counts on the counter from a second after the drivers' start on.
    assert clocks[1][1] == "tsc"
    assert not [line for line in session.lines if "unstable" in line]


def test_processes_start_programs_and_talk_through_pipes(session: Session) -> None:
    session.check(f"storm: cpus={CPUS} rounds={STORM}", "suite: storm ok")


def test_threads_of_both_hosts_wake_each_other(session: Session) -> None:
    session.check(f"futex: turns={FUTEX} sum={sum(range(FUTEX))}", "suite: futex ok")


def test_changes_of_page_tables_are_seen_by_threads_of_both_hosts(session: Session) -> None:
    session.check(
        f"churn: cpus={CPUS} rounds={CHURN} alone",
        f"churn: cpus={CPUS} rounds={4 * CHURN} together",
        "suite: churn ok",
    )


def test_pages_are_copied_on_write_and_swapped(session: Session) -> None:
    session.check(
        f"copy-on-write: cpus={CPUS} pages={PAGES}",
        f"swap: cpus={CPUS} pages={PAGES}",
        "suite: pages ok",
    )


def test_a_module_is_loaded_by_one_host_and_removed_by_the_other(session: Session) -> None:
    session.check("suite: modules ok")


def test_a_disk_of_the_other_host_keeps_a_copy_over_a_reboot(session: Session) -> None:
    session.check("suite: copy ok", "suite: boot 2")
    session.check("suite: the copy is as it was before the reboot")


def test_a_network_of_the_other_host(session: Session) -> None:
    session.check("suite: ping ok", f"suite: http {hashlib.sha256(session.served).hexdigest()}")


def test_a_processor_of_the_other_host_goes_offline_and_comes_back(session: Session) -> None:
    session.check("suite: hotplug ok")


def test_an_nmi_has_each_processor_tell_where_it_is(session: Session) -> None:
    """Sysrq-l."""
    text = "\n".join(session.lines)
    told = {int(cpu) for cpu in re.findall(r"NMI backtrace for cpu (\d+)", text)}
    assert told == set(range(CPUS)), session.told()


def test_a_panic_is_told_and_ends_in_a_reboot(session: Session) -> None:
    text = "\n".join(session.lines)
    assert "Kernel panic - not syncing: sysrq triggered crash" in text, session.told()
    session.check("suite: boot 3")


def test_a_host_that_is_lost_stops_the_guest_on_the_other(session: Session) -> None:
    assert session.first.status == EXIT_LOST, session.first.stderr
    told = r"giantvm: the virtual machine is lost: node h1 is lost: .+"
    assert re.search(told, session.first.stderr), session.first.stderr


def test_nothing_went_wrong_on_the_way(session: Session) -> None:
    bad = re.compile(r".*(FAILED|BUG:|Oops|soft lockup|detected stall).*")
    assert not [line for line in session.lines if bad.fullmatch(line)], session.told()


@pytest.mark.timeout(2 * PATIENCE_S)
def test_three_hosts_with_a_processor_each(tmp_path: Path) -> None:
    image(tmp_path)
    initramfs(tmp_path, "init", (), "worker")
    cpus, loops, increments, size = 3, 100_000, 100, 3 * 4096
    words = scheduling(cpus), LATE, worker(cpus, (loops, increments, 2, 5, size)), "HURRY=1"
    with hosts(cpus) as bed:
        machine = Machine(
            addresses(bed.hosts),
            tmp_path / "image",
            tmp_path / "guest.cpio",
            command_line(bed.hosts[0], *words),
            hide=HIDE.split(),
            tsc="shared",
        )
        nodes = start(bed.hosts, machine)
        try:
            ended = [node.wait(2 * PATIENCE_S) for node in nodes]
        finally:
            (bed.logs / "guest").write_text(nodes[0].stdout)
            stop(nodes)
        assert [node.status for node in ended] == [0] * cpus, ended[0].stdout[-4000:]
    said = Session([line.strip() for line in ended[0].stdout.splitlines()], b"", ended[0], bed.logs)
    said.check(
        f"init: cpus 0-{cpus - 1}",
        f"count: counter={cpus * increments}",
        *(
            f"checksum: cpu={cpu} bytes={size} sum={checksum(cpus, size):016x}"
            for cpu in range(cpus)
        ),
        "init: the worker is content",
    )
