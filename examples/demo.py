"""Runs the examples on three nodes of this machine: `make demo-regions`.

Each node is a process of its own, and they share memory over Unix sockets in a temporary directory.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

NODES: Final = ("a", "b", "c")
PROGRAMS: Final = ("heat.py", "word_count.py")
TIME_LIMIT_S: Final = 120.0

_EXAMPLES: Final = Path(__file__).parent


def main() -> int:
    """Runs every example; 0 if all of them gave the right result."""
    results = [demonstrate(program) for program in PROGRAMS]
    return 0 if all(results) else 1


def demonstrate(program: str) -> bool:
    """Runs one example on all nodes; whether each of them ended well."""
    print(f"== {program} on {len(NODES)} nodes", flush=True)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="giantvm-") as directory:
        ended = run(_EXAMPLES / program, Path(directory))
        for node, status in ended.items():
            if status != 0:
                log = (Path(directory) / f"{node}.log").read_text(errors="replace")
                print(f"{program}: node {node} ended with {status}:\n{log}", file=sys.stderr)
    print(f"({time.monotonic() - began:.1f} s with the start of the nodes)\n", flush=True)
    return not any(ended.values())


def run(program: Path, directory: Path) -> dict[str, int]:
    """Runs one program on all nodes; their exit statuses, by name."""
    config = directory / "cluster.toml"
    config.write_text(cluster(directory))
    deadline = time.monotonic() + TIME_LIMIT_S
    with contextlib.ExitStack() as stack:
        nodes = {name: stack.enter_context(start(config, name, program)) for name in NODES}
        for node in nodes.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                node.wait(max(deadline - time.monotonic(), 0.0))
    return {name: node.returncode for name, node in nodes.items()}


def cluster(directory: Path) -> str:
    """A cluster file with sockets in `directory`."""
    nodes = (
        f'\n[[node]]\nname = "{name}"\nlisten = "unix:{directory}/{name}.sock"\nmemory = "256MiB"\n'
        for name in NODES
    )
    return "".join(['[cluster]\nname = "demo"\n', *nodes])


@contextlib.contextmanager
def start(config: Path, name: str, program: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The process of one node, which ends with the block whatever happens."""
    node = [sys.executable, "-m", "giantvm.node", "--config", str(config), "--node", name]
    with (
        (config.parent / f"{name}.log").open("wb") as log,
        subprocess.Popen([*node, "--", str(program)], stderr=log) as process,
    ):
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()


if __name__ == "__main__":
    sys.exit(main())
