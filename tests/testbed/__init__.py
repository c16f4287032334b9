"""Hosts for tests: QEMU machines with emulated SVM, Debian's kernels and a network between them.

Needs no KVM. See docs/testbed.md.
"""

from testbed.bed import Testbed
from testbed.channel import Process, Result
from testbed.errors import HostEndedError, MissingError, TestbedError
from testbed.host import Host
from testbed.kernel import GUEST_PACKAGE, HOST_PACKAGE, Kernel, kernel

__all__ = [
    "GUEST_PACKAGE",
    "HOST_PACKAGE",
    "Host",
    "HostEndedError",
    "Kernel",
    "MissingError",
    "Process",
    "Result",
    "Testbed",
    "TestbedError",
    "kernel",
]
