"""Distributed shared memory: regions that several machines use as plain memory.

    with giantvm.Node("cluster.toml", "a") as node:
        region = node.region("grid", 64 << 20)
        grid = region.array((1024, 1024), name="grid")
        grid[0] = 1.0

Every node sees what another wrote: no call acquires or releases memory. See docs/user-guide.md.
"""

from giantvm._native import version as _version
from giantvm._node import Lost, Node
from giantvm._region import PAGE_SIZE, Region
from giantvm._sync import Barrier, Counter, Mutex, RwLock
from giantvm.config import Config, NodeSpec
from giantvm.errors import (
    ClosedError,
    ClusterError,
    ConfigError,
    Error,
    ForkError,
    NodeLost,
    TimeoutError,
)
from giantvm.stats import Latency, RegionStats

__all__ = [
    "PAGE_SIZE",
    "Barrier",
    "ClosedError",
    "ClusterError",
    "Config",
    "ConfigError",
    "Counter",
    "Error",
    "ForkError",
    "Latency",
    "Lost",
    "Mutex",
    "Node",
    "NodeLost",
    "NodeSpec",
    "Region",
    "RegionStats",
    "RwLock",
    "TimeoutError",
    "__version__",
]

__version__ = _version()
