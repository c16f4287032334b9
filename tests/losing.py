"""Ways to lose a node of a cluster."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from cluster import Cluster
from network import Network

Way = Callable[[Cluster, int], None]
"""Loses the node with this number."""


def kill(cluster: Cluster, victim: int) -> None:
    """Ends its process."""
    cluster.nodes[victim].kill()


def stop(cluster: Cluster, victim: int) -> None:
    """Stops its process, which may go on later."""
    cluster.nodes[victim].stop()


def cut(cluster: Cluster, victim: int) -> None:
    """Cuts it off from all others."""
    assert cluster.network is not None
    cluster.network.cut(victim)


def on_machines(
    way: Way, victim: int, request: pytest.FixtureRequest, lose: Callable[[Network | None], None]
) -> None:
    """Calls `lose` with the machines that `way` needs, the fixture `network`, and mends them."""
    if way is not cut:
        return lose(None)
    network: Network = request.getfixturevalue("network")
    try:
        return lose(network)
    finally:
        network.mend(victim)
