"""A host of the second kind: a Bochs machine with an emulated Intel processor, VMX and EPT.

It runs one shell script from a disc made for it, and ends. See docs/testbed.md.
"""

from __future__ import annotations

import contextlib
import os
import pty
import re
import subprocess
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final

from testbed.bochs_image import check_bochs, make_disc
from testbed.errors import TestbedError

_POLL_S: Final = 0.1
_ENDING_S: Final = 10.0
_SAID: Final = re.compile(r"^testbed: (.*)\n", re.MULTILINE)  # a line may be half written

_CONFIGURATION: Final = """\
plugin_ctrl: unmapped=true, biosdev=true, speaker=false, extfpuirq=true, parallel=false, \
serial=true, gameport=false
config_interface: textconfig
display_library: term
megs: {memory_mib}
romimage: file=/usr/share/bochs/BIOS-bochs-latest
vgaromimage: file=/usr/share/bochs/VGABIOS-lgpl-latest
cpu: model=corei7_haswell_4770, count=1, ips=50000000, reset_on_triple_fault=0, ignore_bad_msrs=1
clock: sync=none, time0=utc
ata0: enabled=1, ioaddr1=0x1f0, ioaddr2=0x3f0, irq=14
ata0-master: type=cdrom, path="{name}.iso", status=inserted
boot: cdrom
pci: enabled=1, chipset=i440fx
vga: extension=vbe, update_freq=1
com1: enabled=1, mode=file, dev={name}.console
com2: enabled=1, mode=file, dev={name}.output
log: {name}.bochs
panic: action=fatal
error: action=ignore
info: action=report
debug: action=ignore
"""


@dataclass(frozen=True)
class BochsResult:
    """What a job did."""

    status: int
    """Of the script."""
    output: str
    """What the script printed."""
    boot_s: float
    """From the start of Bochs to that of the script."""
    run_s: float
    """How long the script took."""


class BochsHost:
    """Boots when this is made, runs `script` in a directory with `files`, and ends.

    The script has busybox, /dev/kvm and /dev/userfaultfd.
    """

    def __init__(
        self,
        script: str,
        files: Mapping[str, Path],
        *,
        logs: Path,
        memory_mib: int = 512,
    ) -> None:
        check_bochs()
        self.name = "b0"
        self.logs = logs
        self.boot_s: float | None = None
        logs.mkdir(parents=True, exist_ok=True)
        make_disc(logs / f"{self.name}.iso", script, files)
        configuration = _CONFIGURATION.format(name=self.name, memory_mib=memory_mib)
        (logs / f"{self.name}.rc").write_text("c\n")
        (logs / f"{self.name}.bochsrc").write_text(configuration)
        self._start()

    def _start(self) -> None:
        """Bochs draws on a terminal and nowhere else: it gets one that nobody looks at."""
        self._terminal, terminal_end = pty.openpty()
        self._begin = time.monotonic()
        try:
            self._bochs = subprocess.Popen(
                [
                    *("setpriv", "--pdeathsig", "KILL", "bochs-bin", "-q"),
                    *("-f", f"{self.name}.bochsrc", "-rc", f"{self.name}.rc"),
                ],
                cwd=self.logs,
                env=os.environ | {"TERM": "vt100"},
                stdin=terminal_end,
                stdout=terminal_end,
                stderr=terminal_end,
                start_new_session=True,
            )
        finally:
            os.close(terminal_end)
        self._drain = threading.Thread(target=self._keep_screen, daemon=True)
        self._drain.start()

    def _keep_screen(self) -> None:
        """Keeps what Bochs draws: its own complaints are among it."""
        with (self.logs / f"{self.name}.screen").open("wb") as screen, contextlib.suppress(OSError):
            while data := os.read(self._terminal, 65536):
                screen.write(data)
                screen.flush()

    @property
    def pid(self) -> int:
        """The Bochs process."""
        return self._bochs.pid

    def wait(self, timeout_s: float) -> BochsResult:
        """Waits for the end of the script."""
        problem = f"did not end its job within {timeout_s:g} s"
        while (gone_s := time.monotonic() - self._begin) < timeout_s:
            ended = self._bochs.poll()
            said = _SAID.findall(self._read("output"))
            if said and said[0].startswith("up") and self.boot_s is None:
                self.boot_s = gone_s
            if said and (found := re.fullmatch(r"the job ended with (\d+)", said[-1])):
                boot_s = self.boot_s or gone_s
                return BochsResult(
                    int(found[1]), _job_output(self._read("output")), boot_s, gone_s - boot_s
                )
            if said and not said[-1].startswith("up"):
                problem = f"gave up: {said[-1]}"
                break
            if ended is not None:
                problem = f"ended early, with status {ended}"
                break
            time.sleep(_POLL_S)
        raise TestbedError(f"{self.name} {problem}; logs in {self.logs}:\n{self.last_words()}")

    def last_words(self) -> str:
        """The end of what the kernel and the job said."""
        names = ("bochs", "console", "output")
        return "".join(f"-- {name}\n{self._read(name)[-2000:]}\n" for name in names)

    def _read(self, kind: str) -> str:
        path = self.logs / f"{self.name}.{kind}"
        return path.read_text(errors="replace") if path.exists() else ""

    def close(self) -> None:
        """Ends it, whatever it does, and removes its disc; the logs stay."""
        self._bochs.kill()
        self._bochs.wait(_ENDING_S)
        self._drain.join(_ENDING_S)
        os.close(self._terminal)
        (self.logs / f"{self.name}.iso").unlink(missing_ok=True)

    def __enter__(self) -> BochsHost:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _job_output(text: str) -> str:
    """What the job printed, without the lines of `bochs.sh` around it."""
    return _SAID.sub("", text)
