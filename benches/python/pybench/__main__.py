"""Runs the benchmarks in Rust and those in Python, and ends with a table and what was missed."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

from pybench import report
from pybench.arrays import array_access
from pybench.linux_boot import linux_boot
from pybench.pages import page_reread, page_rewrite, page_turns
from pybench.report import Row
from pybench.sampling import FULL, QUICK, Batches
from pybench.synchronisation import barrier, counter, mutex

ROOT: Final = Path(__file__).resolve().parents[3]
TARGET: Final = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
_CARGO: Final = ["cargo", "run", "--release", "--locked", "--quiet"]


def messages_per_fault(_: Batches) -> Iterator[Row]:
    """How many messages a fault takes against the number of nodes, counted in a simulation."""
    example = ["-p", "dsm-core", "--features", "mutations", "--example", "messages_per_fault"]
    lines = _output([*_CARGO, *example, "--", "--json"]).splitlines()
    return (Row(**json.loads(line)) for line in lines)


BENCHMARKS: Final[dict[str, Callable[[Batches], Iterator[Row]]]] = {
    function.__name__: function
    for function in (
        messages_per_fault,
        array_access,
        page_reread,
        page_rewrite,
        page_turns,
        mutex,
        counter,
        barrier,
        linux_boot,
    )
}


def main(argv: Sequence[str] | None = None) -> int:
    """Measures; 0 if everything could be, whether or not its goals are met."""
    parser = argparse.ArgumentParser(
        prog="pybench", description="Measures giantvm beside floors and peers."
    )
    parser.add_argument("--bench", action="append", metavar="NAME", help="only this benchmark")
    parser.add_argument("--quick", action="store_true", help="fewer samples: a look, not a result")
    parser.add_argument("--list", action="store_true", help="show the names and stop")
    parser.add_argument("--output", type=Path, default=TARGET / "bench.json", help="the report")
    options = parser.parse_args(argv)
    rust = [*_CARGO, "-p", "giantvm-bench", "--"]
    in_rust = [line.split()[0] for line in _output([*rust, "--list"]).splitlines()]
    if options.list:
        print("\n".join([*in_rust, *BENCHMARKS]))
        return 0
    wanted = options.bench or [*in_rust, *BENCHMARKS]
    for name in wanted:
        if name not in in_rust and name not in BENCHMARKS:
            parser.error(f"there is no benchmark {name!r} (see --list)")
    rows = []
    quick = ["--quick"] if options.quick else []
    if chosen := [name for name in wanted if name in in_rust]:
        rows += _run_rust([*rust, *quick], chosen, options.output)
    for name in wanted:
        if name in BENCHMARKS:
            rows += _run(name, QUICK if options.quick else FULL, options.output)
    print(report.table(rows))
    missed = report.misses(rows)
    print("\n".join(missed) if missed else "every goal is met")
    return 0


def _run_rust(command: Sequence[str], names: Sequence[str], output: Path) -> list[Row]:
    """Runs benchmarks in Rust; merges into the report what they measured, even if one fails."""
    with tempfile.TemporaryDirectory() as directory:
        rows = Path(directory) / "bench.json"
        selected = [word for name in names for word in ("--bench", name)]
        try:
            # Its table comes again, at the end.
            _output([*command, *selected, "--output", str(rows)])
        finally:
            measured = report.load(rows)
            report.merge(output, measured)
    return measured


def _run(name: str, batches: Batches, output: Path) -> list[Row]:
    benchmark = BENCHMARKS[name]
    print(f"{name}: {benchmark.__doc__}", file=sys.stderr)
    rows = list(benchmark(batches))
    report.merge(output, rows)
    return rows


def _output(command: Sequence[str]) -> str:
    return subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout


if __name__ == "__main__":
    sys.exit(main())
