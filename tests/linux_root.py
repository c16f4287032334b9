"""Boots a root disk over two hosts of the testbed, to a login: `python -m linux_root IMAGE`.

`examples/root_disk.sh` makes such an image. It prints when the disk's init and the login were
there, and what the memory did until then; then it logs in, and has the machine switched off.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from linux_guest import CMDLINE, HIDE, LATE, SCHEDULING, initramfs
from linux_machine import Machine, addresses, disk, start, status, stop, table
from testbed import GUEST_PACKAGE, Testbed, TestbedError, kernel

PATIENCE_S: Final = 3600.0
MARKS: Final = (
    ("the initramfs is done", "root: init starts"),
    ("login", "login: "),
)

_POWER_OFF: Final = "systemctl start poweroff.target"
_MEMORY_MIB: Final = 384
_MODULES: Final = ("virtio_blk", "virtio_net", "virtio_rng")
_OPTIONS: Final = "loglevel=4 systemd.show_status=0"


def main(argv: Sequence[str] | None = None) -> int:
    """Boots it; 0 if the login came, root could log in, and the machine switched itself off."""
    parser = argparse.ArgumentParser(prog="python -m linux_root", description=__doc__)
    parser.add_argument("image", type=Path, help="a raw ext4 file system")
    parser.add_argument("--kernel", default=GUEST_PACKAGE, help="the Debian package of the kernel")
    parser.add_argument("--options", default=f"{SCHEDULING} {LATE}", help="for the kernel")
    options = parser.parse_args(argv)
    try:
        with tempfile.TemporaryDirectory(prefix="giantvm-root-") as work:
            return _boot(options.image.resolve(), Path(work), options.kernel, options.options)
    except TestbedError as error:
        print(error, file=sys.stderr)
        return 1


def _boot(image: Path, work: Path, package: str, options: str) -> int:
    initramfs(work, "root.sh", _MODULES, package=package)
    # A host keeps what it writes in its memory.
    memory_mib = 1024 + (image.stat().st_size >> 20)
    with Testbed(2, memory_mib=memory_mib) as bed:
        first, second = bed.hosts
        first.run(["/bin/cp", image, "/tmp/root"], timeout_s=PATIENCE_S)
        machine = Machine(
            addresses(bed.hosts),
            kernel(package).image,
            work / "guest.cpio",
            f"{CMDLINE} {options} {_OPTIONS}",
            memory_mib=_MEMORY_MIB,
            hide=HIDE.split(),
            tsc="shared",
            devices=[
                disk("root", first.name, "/tmp/root"),
                f'[[vm.rng]]\nname = "rng"\nhome = "{second.name}"',
            ],
        )
        begin = time.monotonic()
        nodes = start(bed.hosts, machine)
        try:
            for what, text in MARKS:
                nodes[0].wait_for(text, PATIENCE_S)
                print(f"{what}: after {time.monotonic() - begin:.0f} s", flush=True)
            print(table(status(first)), flush=True)
            nodes[0].write(b"root\n")
            nodes[0].wait_for("root@giantvm", PATIENCE_S)
            print(f"root is logged in: after {time.monotonic() - begin:.0f} s", flush=True)
            for command in ("nproc --all", "systemctl is-system-running", _POWER_OFF):
                nodes[0].write(f"{command}\n".encode())
            ended = [node.wait(PATIENCE_S) for node in nodes]
        finally:
            (bed.logs / "guest").write_text(nodes[0].stdout)
            stop(nodes)
        print(f"switched off: after {time.monotonic() - begin:.0f} s; console: {bed.logs}/guest")
        return max(abs(node.status) for node in ended)


if __name__ == "__main__":
    sys.exit(main())
