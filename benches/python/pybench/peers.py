"""Starting what giantvm is compared with; a peer that is not there is skipped with its reason."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from typing import Final

from pybench.floor import PAGE_BYTES
from pybench.report import Row, row_of
from pybench.sampling import Batches
from pybench.sites import free_ports

# Ray listens on all addresses whatever it is told, so it gets a network of its own.
_OWN_NETWORK: Final = ["unshare", "--map-root-user", "--net", "--", "sh", "-c"]
_OWN_NETWORK_THEN: Final = 'ip link set lo up && exec "$@"'

START_S: Final = 20.0
RUN_S: Final = 300.0

_MPI_TRANSPORTS: Final = {
    "tcp": {"pml": "ob1", "btl": "self,tcp", "btl_tcp_if_include": "lo", "osc": "pt2pt"},
    "one host": {"pml": "ob1", "btl": "self,vader"},
}


def skip(name: str, peer: str, reason: str) -> None:
    """Says that a peer is missing from a benchmark."""
    print(f"{name}: {peer} skipped: {reason}", file=sys.stderr)


def stores(stack: ExitStack, name: str) -> Iterator[tuple[str, str, str]]:
    """Peers to open with `stores.open_store`: kind, variant and address of each."""
    memory = SharedMemory(create=True, size=PAGE_BYTES)
    stack.callback(memory.unlink)
    stack.callback(memory.close)
    # No message at all: it has nothing to offer between machines, and the two processes share one.
    yield "shared_memory", "multiprocessing.shared_memory, one host only", memory.name
    missing = [
        what
        for what, found in (
            ("the package redis", importlib.util.find_spec("redis")),
            ("redis-server", shutil.which("redis-server")),
        )
        if not found
    ]
    if missing:
        return skip(name, "Redis", f"{' and '.join(missing)} not installed")
    verb = "GET" if name == "page_reread" else "SET"
    for transport, url in stack.enter_context(_redis_server()).items():
        yield "redis", f"Redis {verb} {transport}", url
    return None


@contextlib.contextmanager
def _redis_server() -> Iterator[dict[str, str]]:
    """A server of our own on the loopback and a Unix socket; its addresses by transport."""
    with tempfile.TemporaryDirectory(prefix="giantvm-redis-") as directory:
        path = f"{directory}/redis.sock"
        [port] = free_ports(1)
        command = ["redis-server", "--bind", "127.0.0.1", "--port", str(port)]
        command += ["--unixsocket", path, "--save", "", "--appendonly", "no", "--dir", directory]
        server = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        try:
            deadline = time.monotonic() + START_S
            while not Path(path).exists():
                if server.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError("redis-server does not start")
                time.sleep(0.02)
            yield {"unix": f"unix://{path}", "tcp": f"redis://127.0.0.1:{port}"}
        finally:
            server.terminate()
            server.wait()


def mpi(name: str, what: str, variant: str, batches: Batches) -> Iterator[Row]:
    """A measurement of `mpi_peer.py` between two ranks, over each transport."""
    missing = [
        program
        for program, found in (
            ("the package mpi4py", importlib.util.find_spec("mpi4py")),
            ("mpiexec", shutil.which("mpiexec")),
        )
        if not found
    ]
    if missing:
        return skip(name, "MPI", f"{' and '.join(missing)} not installed")
    count = batches.rounds * batches.per_round
    program = Path(__file__).with_name("mpi_peer.py")
    for transport, parameters in _MPI_TRANSPORTS.items():
        options = [word for pair in parameters.items() for word in ("--mca", *pair)]
        command = ["mpiexec", "-n", "2", "--bind-to", "core", "--oversubscribe", *options]
        command += [sys.executable, str(program), what, str(count)]
        allowed = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
        yield from _measured(name, f"{variant} {transport}", command, allowed)
    return None


def ray(name: str, what: str, batches: Batches) -> Iterator[Row]:
    """A measurement of `ray_peer.py`, in a network and a home of its own."""
    if not importlib.util.find_spec("ray"):
        return skip(name, "Ray", "the package ray not installed")
    if not shutil.which("unshare") or not shutil.which("ip"):
        return skip(name, "Ray", "it needs a network of its own, and there is no unshare or ip")
    with tempfile.TemporaryDirectory(prefix="gvm-ray-") as home:
        program = Path(__file__).with_name("ray_peer.py")
        count = batches.rounds * batches.per_round // 4
        command = [*_OWN_NETWORK, _OWN_NETWORK_THEN, "sh", sys.executable, str(program)]
        own = {"HOME": home, "RAY_USAGE_STATS_ENABLED": "0"}
        yield from _measured(name, f"Ray {what}", [*command, what, str(count), home], own)
    return None


def _measured(
    name: str, variant: str, command: Sequence[str], environment: Mapping[str, str]
) -> Iterator[Row]:
    """The row of a program that prints its samples as a JSON list in its last line."""
    try:
        done = subprocess.run(
            command,
            check=False,
            env=os.environ | environment,
            capture_output=True,
            text=True,
            timeout=RUN_S,
        )
    except subprocess.TimeoutExpired:
        return skip(name, variant, f"it does not end within {RUN_S:.0f} s")
    if done.returncode != 0:
        return skip(name, variant, f"{command[0]} failed:\n{done.stderr}")
    yield row_of(name, variant, json.loads(done.stdout.splitlines()[-1]))
    return None
