"""What can go wrong, by kind. Everything that giantvm raises on its own account is an `Error`."""

import builtins

__all__ = [
    "BarrierBroken",
    "ClosedError",
    "ClusterError",
    "ConfigError",
    "CounterLost",
    "Error",
    "ForkError",
    "GuestFault",
    "NodeLost",
    "PagesLost",
    "TimeoutError",
    "VmFailed",
]


class Error(Exception):
    """Base of every error of giantvm."""


class ConfigError(Error, ValueError):
    """A cluster file, or an argument that stands for one, is wrong; the message names the key."""


class ClusterError(Error):
    """The cluster could not be joined, or refused what was asked of it."""


class NodeLost(ClusterError):
    """A node was lost, and this one can't go on without it, or is itself the one that is out."""


class PagesLost(ClusterError):
    """A page was lost with the node that had it; `Region.lost` lists such pages."""


class BarrierBroken(ClusterError):
    """A node was lost while this thread waited at a barrier: nobody waits there any more.

    Some of those that waited may have passed before. The message names the node.
    """


class CounterLost(ClusterError):
    """A counter has no value, because it was lost with the node that kept it, until it is set.

    Whether an operation that was under way was done is not known. The message names the node.
    """


class GuestFault(Error):
    """A virtual machine's guest can't go on; the message has the reason and the registers."""


class VmFailed(ClusterError):
    """A virtual machine ended because a node or a device can't go on; the message says which."""


class ForkError(Error, RuntimeError):
    """A node was used in a child made by `fork`, where its threads and its memory do not exist."""


class ClosedError(Error, ValueError):
    """A node or a region was used after it was closed."""


class TimeoutError(Error, builtins.TimeoutError):
    """What was waited for did not come in time."""
