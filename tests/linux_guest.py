"""Debian's kernel as a guest on hosts of the testbed: what it is started with."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from testbed import GUEST_PACKAGE, Host, MissingError, TestbedError, kernel
from testbed.kernel import ROOT, fill, find, pack
from testbed.programs import add_libraries

CMDLINE: Final = (
    "console=ttyS0 no_timer_check nopti mitigations=off panic=-1 nowatchdog mce=off "
    "random.trust_cpu=1"
)


def scheduling(cpus: int) -> str:
    """For the kernel's command line: keeps Linux from moving its work back and forth between hosts
    of one processor each.
    """
    others = ",".join(str(cpu) for cpu in range(1, cpus))
    return f"isolcpus={others} nohz_full={others} rcu_nocbs={others}"


SCHEDULING: Final = scheduling(2)

LATE: Final = "maxcpus=1 rcupdate.rcu_cpu_stall_timeout=300"
"""Only processor 0 runs while Linux starts; its init lets the others in. On slow hosts that takes a
fraction of the time: until then nothing is shared. And what is late by minutes only is no stall.
"""

SLOWER: Final = 24
"""How much slower a guest's clock runs on emulated hosts. Between them a page takes a hundred times
as long as between real ones, while timers fire as often: at the full rate, a guest may do little
but keep its time.
"""

HIDE: Final = "xsave"
"""This QEMU does not tell KVM of XSETBV."""

PATIENCE_S: Final = 900.0
"""A boot takes a quarter of a minute on an idle machine, and minutes on a busy one."""


def slow_clock(host: Host, slower: int = SLOWER) -> str:
    """A word for the kernel's command line: the guest's clock runs so many times slower than the
    host's.
    """
    log = host.run(["/bin/dmesg"]).stdout
    detected = re.search(r"tsc: Detected (\d+)\.(\d{3}) MHz processor", log)
    if detected is None:
        raise TestbedError(f"{host.name}'s kernel does not tell the rate of its counter")
    return f"tsc_early_khz={slower * int(detected[1] + detected[2])}"


def command_line(host: Host, *words: str, slower: int = SLOWER) -> str:
    """A kernel's on emulated hosts, of which this is one: what all guests are told, then these."""
    return " ".join((CMDLINE, slow_clock(host, slower), *words))


def image(work: Path, package: str = GUEST_PACKAGE) -> Path:
    """A copy of the guest's kernel, to be put on hosts."""
    copy = work / "image"
    shutil.copy(kernel(package).image, copy)
    return copy


def initramfs(
    work: Path,
    script: str,
    modules: Sequence[str] = (),
    *programs: str,
    tools: Sequence[str] = (),
    applets: Sequence[str] = (),
    package: str = GUEST_PACKAGE,
) -> Path:
    """What a guest starts with: busybox, drivers, a script of `guests/linux/` as its init, and
    programs in C from there. `tools` are programs of this machine, and `applets` names that
    busybox is to have of its own; `package` is that of the kernel.
    """
    tree, packed = work / "tree", work / "guest.cpio"
    fill(tree, kernel(package), modules)
    (tree / "mnt").mkdir()
    sources = ROOT / "guests" / "linux"
    shutil.copy(sources / script, tree / "init")
    (tree / "init").chmod(0o755)
    for program in programs:
        options = ("-O2", "-Wall", "-Wextra", "-Werror", "-static", "-D_GNU_SOURCE")
        source, target = sources / f"{program}.c", tree / "bin" / program
        subprocess.run(["cc", *options, "-o", target, source], check=True)
    for tool in tools:
        found = find(tool)
        if found is None:
            raise MissingError(f"the guest needs this machine's {tool}")
        shutil.copy(found, tree / "bin" / tool)
        add_libraries(tree, Path(found))
    for applet in applets:
        (tree / "bin" / applet).symlink_to("busybox")
    pack(tree, packed)
    return packed


def ext4(file: Path, size: int, content: Path | None = None) -> None:
    """Makes a disk of so many bytes with a file system, of what a directory has if one is given."""
    mke2fs = find("mke2fs")
    if mke2fs is None:
        raise MissingError("there is no mke2fs: sudo apt-get install e2fsprogs")
    with file.open("wb") as disk:
        disk.truncate(size)
    filled: list[str | Path] = [] if content is None else ["-d", content]
    subprocess.run([mke2fs, "-q", "-t", "ext4", *filled, file], check=True)


def checksum(cpus: int, size: int) -> int:
    """Of what the worker fills, slice by slice."""
    total = 0xCBF29CE484222325
    for cpu in range(cpus):
        state = 12345 + cpu
        for _ in range(size // cpus):
            state = (state * 1103515245 + 12345) & 0xFFFFFFFF
            total = ((total ^ (state >> 16 & 0xFF)) * 0x100000001B3) & (2**64 - 1)
    return total
