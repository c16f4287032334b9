"""Distributed shared memory: regions that several machines use as plain memory.

    with giantvm.Node("cluster.toml", "a") as node:
        region = node.region("grid", 64 << 20)
        grid = region.array((1024, 1024), name="grid")
        grid[0] = 1.0

Every node sees what another wrote: no call acquires or releases memory. See docs/user-guide.md.
"""

from giantvm._bus import Bus, Claim, Unclaimed
from giantvm._device import Device
from giantvm._native import version as _version
from giantvm._node import Lost, Node
from giantvm._region import PAGE_SIZE, Region
from giantvm._sync import Barrier, Counter, Mutex, RwLock
from giantvm._vm import ClockReport, Console, Outcome, Vm, VmReport
from giantvm.config import Config, NodeSpec
from giantvm.errors import (
    BarrierBroken,
    ClosedError,
    ClusterError,
    ConfigError,
    CounterLost,
    Error,
    ForkError,
    GuestFault,
    NodeLost,
    PagesLost,
    TimeoutError,
    VmFailed,
)
from giantvm.stats import Latency, RegionStats
from giantvm.virtio import Disk, Net, Rng, VirtioConsole
from giantvm.vmspec import DeviceSpec, Mmio, Module, Pio, Vcpu, VmSpec

__all__ = [
    "PAGE_SIZE",
    "Barrier",
    "BarrierBroken",
    "Bus",
    "Claim",
    "ClockReport",
    "ClosedError",
    "ClusterError",
    "Config",
    "ConfigError",
    "Console",
    "Counter",
    "CounterLost",
    "Device",
    "DeviceSpec",
    "Disk",
    "Error",
    "ForkError",
    "GuestFault",
    "Latency",
    "Lost",
    "Mmio",
    "Module",
    "Mutex",
    "Net",
    "Node",
    "NodeLost",
    "NodeSpec",
    "Outcome",
    "PagesLost",
    "Pio",
    "Region",
    "RegionStats",
    "Rng",
    "RwLock",
    "TimeoutError",
    "Unclaimed",
    "Vcpu",
    "VirtioConsole",
    "Vm",
    "VmFailed",
    "VmReport",
    "VmSpec",
    "__version__",
]

__version__ = _version()
