"""For a person: `python -m testbed shell --hosts 2`, and `python -m testbed attach 1` beside it;
`python -m testbed bochs-run` for the guest on Intel hosts.
"""

from __future__ import annotations

import argparse
import json
import os
import select
import shutil
import socket
import sys
import tempfile
import termios
import threading
import tty
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from testbed import guest_run
from testbed.bed import Testbed
from testbed.bochs_image import check_bochs
from testbed.channel import Process
from testbed.errors import MissingError, TestbedError
from testbed.host import Host
from testbed.kernel import GUEST_PACKAGE, HOST_PACKAGE, directory, initramfs, kernel

_DETACH: Final = b"\x1d"
_CHUNK: Final = 64 << 10
_SHELL: Final = ("/bin/sh", "-c", "if command -v bash >/dev/null; then exec bash; fi; exec sh")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; its exit status."""
    options = _parser().parse_args(argv)
    try:
        if options.command == "prepare":
            _prepare()
        elif options.command == "shell":
            _shell(options.hosts, options.memory)
        elif options.command == "bochs-run":
            _bochs_run(options.tests or guest_run.TESTS, options.timeout)
        else:
            _attach(options.host)
    except TestbedError as error:
        print(f"testbed: {error}", file=sys.stderr)
        return 2 if isinstance(error, MissingError) else 1
    return 0


def _prepare() -> None:
    initramfs(kernel(HOST_PACKAGE))
    kernel(GUEST_PACKAGE)


def _shell(hosts: int, memory_mib: int) -> None:
    print(f"{hosts} hosts boot ...", flush=True)
    with Testbed(hosts, memory_mib=memory_mib) as bed:
        names = ", ".join(f"{host.name} ({host.address})" for host in bed.hosts)
        print(f"{names}: up in {bed.boot_s:.0f} s; logs in {bed.logs}")
        print("In another terminal: make testbed-attach HOST=1")
        print("The shell's end ends all hosts.", flush=True)
        with _listening() as listener:
            threading.Thread(target=_serve, args=(bed, listener), daemon=True).start()
            _attach(0)


def _bochs_run(tests: Sequence[str], timeout_s: float) -> None:
    """Ends with an error unless the guest does there what it does here."""
    check_bochs()
    programs = guest_run.build()
    logs = guest_run.logs_directory()
    with tempfile.TemporaryDirectory() as work:
        here = guest_run.told(guest_run.run_here(programs, Path(work), tests))
    print(f"an Intel host boots; logs in {logs} ...", flush=True)
    there = guest_run.run_on_one(programs, logs, timeout_s, tests)
    print(there.output, end="")
    if guest_run.told(there.output) != here:
        raise TestbedError(f"here the guest printed something else:\n{here}")
    print(f"the same as here; up after {there.boot_s:.0f} s, done {there.run_s:.0f} s later")


def _place() -> Path:
    return directory() / "shell.sock"


def _serve(bed: Testbed, listener: socket.socket) -> None:
    """Gives a shell on a host to each terminal that asks for one."""
    while True:
        caller, _ = listener.accept()
        threading.Thread(target=_give, args=(bed.hosts, caller), daemon=True).start()


@contextmanager
def _listening() -> Iterator[socket.socket]:
    _place().unlink(missing_ok=True)
    # The path of a Unix socket is short; that of a directory need not be.
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(_short(_place()))
        listener.listen()
        try:
            yield listener
        finally:
            _place().unlink(missing_ok=True)


def _short(path: Path) -> str:
    """A short path to the same file, good as long as this process lives."""
    descriptor = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
    return f"/proc/self/fd/{descriptor}/{path.name}"


def _give(hosts: Sequence[Host], caller: socket.socket) -> None:
    with caller, caller.makefile("rb") as lines:
        wanted = json.loads(lines.readline())
        if not 0 <= wanted["host"] < len(hosts):
            caller.sendall(f"no host {wanted['host']}: there are {len(hosts)}\r\n".encode())
            return
        host = hosts[wanted["host"]]
        try:
            shell = host.start(_SHELL, env=wanted["env"], cwd="/root", terminal=True)
            shell.on_output = caller.sendall
            shell.resize(wanted["rows"], wanted["columns"])
            caller.sendall(shell.bytes_of(1))
            threading.Thread(target=_hang_up, args=(shell, caller), daemon=True).start()
            while data := lines.read1(_CHUNK):
                shell.write(data)
            shell.signal(1)
        except (TestbedError, OSError) as error:
            print(f"{host.name}: {error}\r", file=sys.stderr)


def _hang_up(shell: Process, caller: socket.socket) -> None:
    """Ends the connection with the shell."""
    try:
        shell.wait(float(threading.TIMEOUT_MAX))
    except TestbedError as error:
        print(f"{error}\r", file=sys.stderr)
    caller.shutdown(socket.SHUT_RDWR)


def _attach(host: int) -> None:
    with socket.socket(socket.AF_UNIX) as link:
        try:
            link.connect(_short(_place()))
        except OSError as error:
            raise TestbedError("no hosts run: `make testbed-shell` starts some") from error
        size = shutil.get_terminal_size()
        wanted = {
            "host": host,
            "rows": size.lines,
            "columns": size.columns,
            "env": {"TERM": os.environ.get("TERM", "dumb")},
        }
        link.sendall(json.dumps(wanted).encode() + b"\n")
        with _raw():
            _copy(link)


def _copy(link: socket.socket) -> None:
    """Between this terminal and a shell, until one of them ends."""
    keyboard, screen = sys.stdin.fileno(), sys.stdout.fileno()
    sources = [keyboard, link.fileno()]
    while True:
        readable, _, _ = select.select(sources, [], [])
        if keyboard in readable:
            data = os.read(keyboard, _CHUNK)
            if not data or _DETACH in data:
                return
            link.sendall(data)
        if link.fileno() in readable:
            data = link.recv(_CHUNK)
            if not data:
                return
            while data:
                data = data[os.write(screen, data) :]


@contextmanager
def _raw() -> Iterator[None]:
    if not sys.stdin.isatty():
        yield
        return
    before = termios.tcgetattr(sys.stdin)
    tty.setraw(sys.stdin)
    try:
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m testbed", description="Hosts for tests, from Debian packages only."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("prepare", help="fetch the kernels and make the initramfs")
    shell = commands.add_parser("shell", help="start hosts, and open a shell on the first")
    shell.add_argument("--hosts", type=int, default=2, metavar="N")
    shell.add_argument("--memory", type=int, default=1024, metavar="MIB", help="of each host")
    bochs = commands.add_parser("bochs-run", help="run the guest over two nodes on an Intel host")
    bochs.add_argument("tests", nargs="*", help="command lines of the guest, each one argument")
    bochs.add_argument("--timeout", type=float, default=900.0, metavar="SECONDS")
    attach = commands.add_parser("attach", help="open a shell on a host that `shell` started")
    attach.add_argument("host", type=int, help="0 for h0, 1 for h1, ...")
    return parser


if __name__ == "__main__":
    sys.exit(main())
