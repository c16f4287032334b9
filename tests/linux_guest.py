"""Debian's kernel as a guest on hosts of the testbed: what it is started with."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from testbed import GUEST_PACKAGE, kernel
from testbed.kernel import ROOT, fill, pack

CMDLINE: Final = (
    "console=ttyS0 tsc=reliable no_timer_check nopti mitigations=off panic=-1 nowatchdog mce=off "
    "random.trust_cpu=1"
)

HIDE: Final = "xsave"
"""This QEMU does not tell KVM of XSETBV."""

PATIENCE_S: Final = 900.0
"""A boot takes a quarter of a minute on an idle machine, and minutes on a busy one."""


def image(work: Path) -> Path:
    """A copy of the guest's kernel, to be put on hosts."""
    copy = work / "image"
    shutil.copy(kernel(GUEST_PACKAGE).image, copy)
    return copy


def initramfs(work: Path, script: str, modules: Sequence[str] = (), *programs: str) -> Path:
    """What a guest starts with: busybox, drivers, a script of `guests/linux/` as its init, and
    programs in C from there.
    """
    tree, packed = work / "tree", work / "guest.cpio"
    fill(tree, kernel(GUEST_PACKAGE), modules)
    (tree / "mnt").mkdir()
    sources = ROOT / "guests" / "linux"
    shutil.copy(sources / script, tree / "init")
    (tree / "init").chmod(0o755)
    for program in programs:
        options = ("-O2", "-Wall", "-Wextra", "-Werror", "-static")
        source, target = sources / f"{program}.c", tree / "bin" / program
        subprocess.run(["cc", *options, "-o", target, source], check=True)
    pack(tree, packed)
    return packed
