"""Linux uses its disks, network, console and random numbers, over a reboot too."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from linux_guest import CMDLINE, HIDE, PATIENCE_S, ext4, image, initramfs
from testbed import Host, MissingError, Testbed
from testbed.guest_run import build
from testbed.kernel import find

MODULES = ("virtio_blk", "virtio_net", "virtio_rng")

TAP = (
    "set -e; modprobe tun; ip tuntap add dev tap0 mode tap multi_queue; "
    "ip address add 198.18.7.1/24 dev tap0; ip link set tap0 up"
)


@pytest.fixture
def host() -> Iterator[Host]:
    """A host of this test's own, which has a tap."""
    try:
        bed = Testbed(1)
    except MissingError as error:
        pytest.skip(str(error))
    with bed:
        bed.hosts[0].run(["/bin/sh", "-c", TAP])
        yield bed.hosts[0]


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.mark.timeout(2 * PATIENCE_S)
def test_linux_uses_its_devices_and_reboots(host: Host, tmp_path: Path) -> None:
    program = build().node
    disk, read_only = tmp_path / "disk", tmp_path / "read-only"
    try:
        ext4(disk, 32 << 20)
    except MissingError as error:
        pytest.skip(str(error))
    read_only.write_bytes(os.urandom(1 << 20))
    shared = os.urandom(1 << 20)
    for name, source in (("disk", disk), ("read-only", read_only)):
        host.copy_in(source, f"/tmp/{name}")
    served = tmp_path / "file"
    served.write_bytes(shared)
    host.run(["/bin/mkdir", "/tmp/www"])
    host.copy_in(served, "/tmp/www/file")
    host.start(["/bin/busybox", "httpd", "-f", "-p", "198.18.7.1:80", "-h", "/tmp/www"])
    for source in (image(tmp_path), initramfs(tmp_path, "devices.sh", MODULES)):
        host.copy_in(source, f"/tmp/{source.name}")
    guest = host.start(
        [
            *(program, "0", "unix:/tmp/node", "0", "256", "/tmp/image", "/tmp/guest.cpio"),
            *(CMDLINE, HIDE, "--tsc=shared"),
            *("--virtio=disk:vol0:0:/tmp/disk", "--virtio=cdrom:vol1:0:/tmp/read-only"),
            *("--virtio=net:net0:0:tap0:2", "--virtio=console:con0:0", "--virtio=rng:rng0:0"),
        ]
    )
    ended = guest.wait(PATIENCE_S)
    said = [line.removeprefix("devices: ").strip() for line in ended.stdout.splitlines()]
    assert "ended: PowerOff" in ended.stderr, ended.stdout[-4000:]
    for line in (
        "0000:00:01.0 0x1af4 0x1042 0x00000000c0008000 0x00000000c000ffff 0x0000000000140204",
        "vda vol0 65536 ro 0",
        "vdb vol1 2048 ro 1",
        f"vdb holds {digest(read_only.read_bytes())}",
        "the disk gives back what it got",
        "ping works",
        f"transfer {digest(shared)}",
        "words over hvc0",
        "random numbers from virtio_rng.0",
        "random numbers come",
        "the file is as it was before the reboot",
        "power off",
    ):
        assert line in said, f"{line!r} is not in:\n{ended.stdout[-8000:]}"
    assert "vdb was WRITTEN" not in said
    # The node has told the kernel the rate of its counter: over slow exits it can't find out.
    assert re.search(r"Kernel command line: tsc_early_khz=\d+ ", ended.stdout)

    # What the guest has written is on the host's disk, and it is whole.
    host.copy_out("/tmp/disk", disk)
    checked = subprocess.run(
        [find("e2fsck") or "e2fsck", "-fn", disk], capture_output=True, check=False
    )
    assert checked.returncode == 0, checked.stdout
    host.copy_out("/tmp/read-only", tmp_path / "after")
    assert (tmp_path / "after").read_bytes() == read_only.read_bytes()
