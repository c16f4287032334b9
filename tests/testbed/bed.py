"""Several hosts on one network."""

from __future__ import annotations

import os
import secrets
import shutil
import time
from pathlib import Path
from types import TracebackType
from typing import Final

from testbed.host import Host, Setting
from testbed.kernel import directory, initramfs, kernel

LOGS_KEPT: Final = 20
_HOSTS_MAX: Final = 100


class Testbed:
    """`hosts` hosts, named h0, h1, ... with the addresses 10.0.0.1, 10.0.0.2, ..., for a `with`
    block. They end with it, or with the thread that started them. With `apart_s`, each starts so
    long after the one before.
    """

    __test__ = False  # not a class of tests

    def __init__(
        self,
        hosts: int = 2,
        *,
        memory_mib: int = 1024,
        append: str = "",
        apart_s: float = 0.0,
        logs: Path | None = None,
    ) -> None:
        if not 1 <= hosts <= _HOSTS_MAX:
            raise ValueError(f"{hosts} hosts: 1 to {_HOSTS_MAX} can be had")
        self._count = hosts
        self._memory_mib = memory_mib
        self._append = append
        self._apart_s = apart_s
        self.logs = logs or directory() / "logs" / f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
        """Per host: `.console` (its kernel), `.commands` (what was run there), `.qemu`."""
        self.hosts: list[Host] = []
        self.boot_s = 0.0
        """How long it took until all hosts were up."""

    def __enter__(self) -> Testbed:
        host_kernel = kernel()
        image = initramfs(host_kernel)
        self.logs.mkdir(parents=True, exist_ok=True)
        prune(self.logs.parent, self.logs)
        setting = Setting(
            host_kernel,
            image,
            self._count,
            self._memory_mib,
            _group(),
            self.logs,
            self._append,
        )
        begin = time.monotonic()
        try:
            for index in range(self._count):
                if index:
                    time.sleep(self._apart_s)
                self.hosts.append(Host(setting, index))
            for host in self.hosts:
                host.ready()
        except BaseException:
            self._end()
            raise
        self.boot_s = time.monotonic() - begin
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None:
            error.add_note(f"logs of the hosts: {self.logs}")
        self._end()

    def _end(self) -> None:
        for host in self.hosts:
            host.close()
        self.hosts.clear()


def _group() -> str:
    """A multicast address and port that no other testbed has, most likely: 2^38 to choose from."""
    low, middle, high = (secrets.randbelow(256) for _ in range(3))
    return f"239.{high}.{middle}.{low}:{secrets.choice(range(32768, 49152))}"


def prune(parent: Path, current: Path) -> None:
    """Keeps the newest logs."""
    if parent != directory() / "logs":
        return
    old = sorted(path for path in parent.iterdir() if path != current)
    for path in old[: max(0, len(old) - LOGS_KEPT)]:
        shutil.rmtree(path, ignore_errors=True)
