"""What a Bochs host boots: a disc with a kernel and an initramfs that holds everything it needs.

There is no file system of this machine on such a host, so programs travel with their libraries.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from testbed.errors import MissingError
from testbed.kernel import HOST_PACKAGE, checked, fill, find, kernel, pack
from testbed.programs import add_libraries, is_dynamic

MODULES: Final = ("kvm_intel",)

_LOADER: Final = (
    Path("/usr/lib/ISOLINUX/isolinux.bin"),
    Path("/usr/lib/syslinux/modules/bios/ldlinux.c32"),
)
_ROMS: Final = (
    Path("/usr/share/bochs/BIOS-bochs-latest"),
    Path("/usr/share/bochs/VGABIOS-lgpl-latest"),
)
_KERNEL_OPTIONS: Final = (
    "console=ttyS0 quiet panic=-1 mitigations=off random.trust_cpu=on no_timer_check"
)


def check_bochs() -> None:
    """Raises `MissingError` where something that Bochs hosts are made of is missing."""
    needed: dict[str, bool] = {
        "bochs": find("bochs-bin") is not None,
        "bochs-term": any(Path("/usr/lib").glob("*/bochs/plugins/libbx_term_gui.so")),
        "bochsbios": _ROMS[0].exists(),
        "vgabios": _ROMS[1].exists(),
        "isolinux": _LOADER[0].exists(),
        "syslinux-common": _LOADER[1].exists(),
        "xorriso": find("xorriso") is not None,
        "binutils": find("strip") is not None,
    }
    missing = [package for package, there in needed.items() if not there]
    if missing:
        raise MissingError(
            f"Bochs hosts need: sudo apt-get install --no-install-recommends {' '.join(missing)}"
        )


def make_disc(disc: Path, script: str, files: Mapping[str, Path]) -> None:
    """Makes a disc whose kernel loads KVM and runs a shell script in a directory of `files`."""
    host = kernel(HOST_PACKAGE)
    with tempfile.TemporaryDirectory(dir=disc.parent) as name:
        work = Path(name)
        tree = work / "tree"
        fill(tree, host, MODULES)
        shutil.copy(Path(__file__).with_name("bochs.sh"), tree / "init")
        (tree / "init").chmod(0o755)
        _add_job(tree, script, files)
        content = work / "disc"
        (content / "isolinux").mkdir(parents=True)
        for part in _LOADER:
            shutil.copy(part, content / "isolinux")
        shutil.copy(host.image, content / "vmlinuz")
        pack(tree, content / "initrd")
        (content / "isolinux" / "isolinux.cfg").write_text(
            "DEFAULT host\nPROMPT 0\nTIMEOUT 0\nLABEL host\n KERNEL /vmlinuz\n INITRD /initrd\n"
            f" APPEND {_KERNEL_OPTIONS}\n"
        )
        options = [
            *("-o", str(disc), "-b", "isolinux/isolinux.bin", "-c", "isolinux/boot.cat"),
            *("-no-emul-boot", "-boot-load-size", "4", "-boot-info-table", str(content)),
        ]
        checked(
            ["xorriso", "-as", "mkisofs", "-quiet", *options], "a boot disc can't be made", cwd=work
        )


def _add_job(tree: Path, script: str, files: Mapping[str, Path]) -> None:
    job = tree / "job"
    job.mkdir()
    (job / "script").write_text(script)
    for name, file in files.items():
        shutil.copy(file, job / name)
        if is_dynamic(file):
            # Symbols would double what the BIOS reads from the disc.
            checked(["strip", "--strip-debug", str(job / name)], f"{file} can't be stripped")
            add_libraries(tree, file)
