"""Debian's kernels, and the initramfs that makes one of them a host.

Packages are fetched with apt and unpacked into the build's directory, never installed.
"""

from __future__ import annotations

import fcntl
import hashlib
import lzma
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from testbed.errors import MissingError, TestbedError

ROOT: Final = Path(__file__).resolve().parents[2]

HOST_PACKAGE: Final = "linux-image-6.12-amd64"
"""The kernel of hosts: all drivers."""

GUEST_PACKAGE: Final = "linux-image-6.12-cloud-amd64"
"""The kernel of guests that run on hosts: the few drivers of virtual machines."""

HOST_MODULES: Final = ("9p", "9pnet_virtio", "overlay", "virtio_net", "kvm_amd")
"""What a host needs before it can load others from the kernel's directory with modprobe."""

_APPLETS: Final = (
    *("sh", "mount", "mkdir", "cat", "echo", "ls", "ln", "cp", "chroot", "insmod"),
    *("poweroff", "ip", "hostname", "sync", "sleep", "stty"),
)
_DIRECTORIES: Final = ("bin", "dev", "proc", "sys", "modules", "lower", "upper", "root")
_FETCH_S: Final = 600.0


@dataclass(frozen=True)
class Kernel:
    """An unpacked kernel package."""

    release: str
    """What `uname -r` says on it."""
    image: Path
    """The bzImage."""
    modules: Path
    """The directory that `/lib/modules/RELEASE` is on it."""


def directory() -> Path:
    """Where everything that the testbed makes lies: `testbed` in the build's target directory."""
    return Path(os.environ.get("CARGO_TARGET_DIR") or ROOT / "target").resolve() / "testbed"


def check_programs() -> None:
    """Raises `MissingError` where a program that hosts need is missing."""
    packages = {
        "qemu-system-x86_64": "qemu-system-x86",
        "busybox": "busybox-static",
        "cpio": "cpio",
        "depmod": "kmod",
        "setpriv": "util-linux",
        "dpkg-deb": "dpkg",
        "apt-get": "apt",
    }
    missing = [package for name, package in packages.items() if find(name) is None]
    if missing:
        raise MissingError(f"the testbed needs: sudo apt-get install {' '.join(missing)}")


def find(program: str) -> str | None:
    """The path of a program, one for administrators too."""
    return shutil.which(program) or shutil.which(program, path="/usr/sbin:/sbin")


def kernel(package: str = HOST_PACKAGE) -> Kernel:
    """The kernel that a Debian package stands for, fetched at the first call."""
    check_programs()
    place = directory() / "kernels" / package
    with _locked(place):
        if not (place / "complete").exists():
            shutil.rmtree(place, ignore_errors=True)
            _unpack(package, place)
            (place / "complete").touch()
    images = list((place / "boot").glob("vmlinuz-*"))
    if len(images) != 1:
        raise TestbedError(f"{place}: no kernel in it; remove it, then try again")
    release = images[0].name.removeprefix("vmlinuz-")
    return Kernel(release, images[0], _modules(place) / release)


def initramfs(host: Kernel, modules: Sequence[str] = HOST_MODULES) -> Path:
    """The initramfs of hosts: static busybox, modules in load order, `init.sh` and `agent.py`."""
    here = Path(__file__).parent
    parts = [here / name for name in ("init.sh", "agent.py", "kernel.py")]
    content = hashlib.sha256(repr((host, modules, [part.read_bytes() for part in parts])).encode())
    image = directory() / "initramfs" / f"{content.hexdigest()[:16]}.cpio"
    with _locked(image):
        if not image.exists():
            with tempfile.TemporaryDirectory(dir=image.parent) as work:
                made = Path(work) / "image"
                tree = Path(work) / "tree"
                fill(tree, host, modules)
                shutil.copy(here / "init.sh", tree / "init")
                (tree / "init").chmod(0o755)
                shutil.copy(here / "agent.py", tree / "agent.py")
                pack(tree, made)
                made.rename(image)
    return image


def pack(tree: Path, image: Path) -> None:
    """Makes a cpio archive, as the kernel reads it, of a directory."""
    names = sorted(str(path.relative_to(tree)) for path in tree.rglob("*"))
    with image.open("wb") as out:
        checked(
            ["cpio", "--create", "--format=newc", "--quiet", "--owner=0:0"],
            "an initramfs can't be packed",
            cwd=tree,
            stdin="\n".join(names),
            stdout=out.fileno(),
        )


def fill(tree: Path, host: Kernel, modules: Sequence[str]) -> None:
    """Begins an initramfs: static busybox, and the modules in load order."""
    for name in _DIRECTORIES:
        (tree / name).mkdir(parents=True)
    busybox = find("busybox")
    assert busybox is not None, "`check_programs` found it"
    with Path(busybox).open("rb") as file:
        if b"ld-linux" in file.read(4096):
            raise MissingError(
                f"{busybox} is linked dynamically: sudo apt-get install busybox-static"
            )
    shutil.copy(busybox, tree / "bin" / "busybox")
    for applet in _APPLETS:
        (tree / "bin" / applet).symlink_to("busybox")
    order = []
    for path in _load_order(host, modules):
        content = (host.modules / path).read_bytes()
        if path.endswith(".xz"):
            content = lzma.decompress(content)
        order.append(_module_name(path))
        (tree / "modules" / f"{order[-1]}.ko").write_bytes(content)
    (tree / "modules" / "order").write_text("".join(f"{name}\n" for name in order))


def _load_order(host: Kernel, wanted: Sequence[str]) -> list[str]:
    """Files of the modules and of what they depend on, each after what it needs."""
    lines = (host.modules / "modules.dep").read_text().splitlines()
    needs = {path: rest.split() for path, _, rest in (line.partition(":") for line in lines)}
    paths = {_module_name(path): path for path in needs}
    order: dict[str, None] = {}

    def add(path: str) -> None:
        for need in reversed(needs[path]):
            add(need)
        order[path] = None

    for name in wanted:
        if name not in paths:
            raise TestbedError(f"kernel {host.release} has no module {name}")
        add(paths[name])
    return list(order)


def _module_name(path: str) -> str:
    return Path(path).name.partition(".ko")[0].replace("-", "_")


def _unpack(package: str, place: Path) -> None:
    """Fetches the package, or the one that it depends on if it is a meta package."""
    place.mkdir(parents=True)
    what = f"kernel package {package}"
    shown = checked(["apt-cache", "show", "--no-all-versions", package], f"{what} is not known")
    fields = dict(line.split(": ", 1) for line in shown.splitlines() if ": " in line[1:])
    real = package
    for word in fields.get("Depends", "").replace(",", " ").split():
        if word.startswith("linux-image-"):
            real = word
    with tempfile.TemporaryDirectory(dir=place) as work:
        checked(["apt-get", "download", "-q", real], f"{what} can't be fetched", cwd=Path(work))
        for file in Path(work).glob("*.deb"):
            checked(["dpkg-deb", "-x", str(file), str(place)], f"{what} can't be unpacked")
    for modules in _modules(place).iterdir():
        base = _modules(place).parents[1]
        depmod = find("depmod") or "depmod"
        checked([depmod, "-b", str(base), modules.name], f"{what} has no usable modules")


def _modules(place: Path) -> Path:
    """Where the modules are: Debian moved them from /lib to /usr/lib."""
    old = place / "lib" / "modules"
    return old if old.is_dir() else place / "usr" / "lib" / "modules"


def checked(
    command: Sequence[str],
    failure: str,
    *,
    cwd: Path | None = None,
    stdin: str | None = None,
    stdout: int = subprocess.PIPE,
    env: Mapping[str, str] | None = None,
    timeout_s: float = _FETCH_S,
) -> str:
    """Runs a program to its end, for what it prints; `failure` begins the error if it fails."""
    done = subprocess.run(
        command,
        cwd=cwd,
        input=stdin or "",
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        env=env,
        timeout=timeout_s,
        check=False,
    )
    if done.returncode != 0:
        hint = "; try `sudo apt-get update`" if command[0].startswith("apt-") else ""
        raise TestbedError(f"{failure}: {done.stderr.strip()}{hint}")
    return done.stdout or ""


@contextmanager
def _locked(place: Path) -> Iterator[None]:
    """Keeps others who make the same thing at the same time waiting."""
    place.parent.mkdir(parents=True, exist_ok=True)
    with place.with_name(f"{place.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
