"""What can go wrong with a testbed."""

from __future__ import annotations


class TestbedError(Exception):
    """A host, or the making of one, failed; the message says what to do or which log to read."""

    __test__ = False  # not a class of tests


class MissingError(TestbedError):
    """A program that the testbed is made of is not installed."""


class HostEndedError(TestbedError):
    """The host is no longer there, or ended while something on it was waited for."""
