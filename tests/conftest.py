"""Fixtures for all tests."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from cluster import Cluster
    from network import Network
    from testbed import Testbed


@pytest.fixture
def three() -> Iterator[Cluster]:
    """Three nodes of one cluster, each a process."""
    from cluster import Cluster

    with Cluster() as cluster:
        yield cluster


@pytest.fixture(scope="module")
def shared_three() -> Iterator[Cluster]:
    """The same, kept for all tests of a module, which use names of their own."""
    from cluster import Cluster

    with Cluster() as cluster:
        yield cluster


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    """Machines for three nodes, kept for all tests of a module, which mend what they cut."""
    from network import Network

    with Network(3) as network:
        yield network


@pytest.fixture(scope="session")
def bed() -> Iterator[Testbed]:
    """Two hosts, kept for all tests: leave them as they were."""
    from testbed import MissingError, Testbed

    try:
        bed = Testbed(2).__enter__()
    except MissingError as error:
        pytest.skip(str(error))
    try:
        yield bed
    finally:
        bed.__exit__(None, None, None)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Function,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Names the logs of the hosts that a failed test used."""
    report = yield
    bed: Testbed | None = getattr(item, "funcargs", {}).get("bed")
    if report.failed and bed is not None:
        report.sections.append(("hosts", f"booted in {bed.boot_s:.1f} s; logs: {bed.logs}"))
    return report
