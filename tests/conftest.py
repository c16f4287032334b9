"""Fixtures for all tests."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from cluster import Cluster


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
