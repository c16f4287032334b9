"""Runs every suite, shows its output as it comes, and ends with one line of sums.

Linters count only when they fail. A Rust test that can't run here prints `SKIPPED: reason`.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent
BIN: Final = Path(sys.executable).parent


@dataclass
class Count:
    """Tests of one or more suites."""

    passed: int = 0
    failed: int = 0
    skipped: int = 0
    reasons: list[str] = field(default_factory=list)

    def add(self, other: Count) -> None:
        self.passed += other.passed
        self.failed += other.failed
        self.skipped += other.skipped
        self.reasons += other.reasons


Parse = Callable[[Sequence[str]], Count]


@dataclass(frozen=True)
class Suite:
    """A command, and how to count what it tested."""

    title: str
    command: Sequence[str]
    parse: Parse
    lint: bool = False
    may_be_empty: bool = False


def suites(*, long: bool) -> list[Suite]:
    """All suites, the quickest to fail first."""
    python = [str(BIN / "python"), "-m"]
    ruff = str(BIN / "ruff")
    marked = [] if long else ["-m", "not long"]
    ignored = ["--run-ignored", "all"] if long else []
    # The seeded mistakes that the model checker must catch; no build of the product has them.
    mutations = ["--features", "dsm-core/mutations"]
    return [
        lint("rustfmt", "cargo", "fmt", "--all", "--check"),
        lint("ruff", ruff, "check", "--quiet", "."),
        lint("ruff format", ruff, "format", "--quiet", "--check", "."),
        lint("mypy", *python, "mypy", "--no-error-summary"),
        lint(
            "stubtest",
            *(*python, "mypy.stubtest", "--concise", "giantvm._native"),
            *("--allowlist", "tests/stubtest-allowlist.txt", "--ignore-unused-allowlist"),
        ),
        lint(
            "clippy",
            *("cargo", "clippy", "--quiet", "--locked", "--workspace", "--all-targets"),
            *(*mutations, "--", "-D", "warnings"),
        ),
        Suite(
            "Rust tests",
            ["cargo", "nextest", "run", "--locked", "--workspace", *mutations, *ignored],
            parse_nextest,
        ),
        Suite(
            "Rust documentation",
            ["cargo", "test", "--quiet", "--locked", "--workspace", "--doc"],
            parse_cargo_test,
            may_be_empty=True,
        ),
        Suite("fuzzing", [str(ROOT / "tests" / "fuzz.sh")], parse_exit),
        Suite("wheel", [str(ROOT / "tests" / "wheel.sh")], parse_exit),
        Suite("Python tests", [*python, "pytest", "--color=no", *marked], parse_pytest),
    ]


def lint(title: str, *command: str) -> Suite:
    """A suite that counts only when it fails."""
    return Suite(title, command, lambda _: Count(), lint=True, may_be_empty=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the suites; 0 if all passed."""
    parser = argparse.ArgumentParser(description="Runs the tests of giantvm.")
    parser.add_argument("--only", choices=["lint", "tests"], help="only these suites")
    parser.add_argument("--long", action="store_true", help="the long tests too")
    options = parser.parse_args(argv)
    total = Count()
    for suite in suites(long=options.long):
        if options.only is None or suite.lint == (options.only == "lint"):
            total.add(run(suite))
    for reason in total.reasons:
        print(f"skipped: {reason}")
    print(f"{total.passed} passed, {total.failed} failed, {total.skipped} skipped", flush=True)
    return 1 if total.failed else 0


def run(suite: Suite) -> Count:
    """Runs one suite; a failure that it does not count itself counts as one."""
    print(f"== {suite.title}", flush=True)
    try:
        status, lines = stream(suite.command)
    except OSError as error:
        print(f"{suite.command[0]}: {error.strerror}", flush=True)
        return Count(failed=1)
    count = suite.parse(lines)
    tested = count.passed + count.failed + count.skipped
    if suite.parse is parse_exit:
        return Count(passed=1) if status == 0 else Count(failed=1)
    if status != 0 and count.failed == 0:
        print(f"{suite.title}: ended with status {status}", flush=True)
        count.failed = 1
    elif status == 0 and count.failed > 0:
        print(f"{suite.title}: failures, but status 0", flush=True)
    elif tested == 0 and not suite.may_be_empty:
        print(f"{suite.title}: ran no test", flush=True)
        count.failed = 1
    return count


def stream(command: Sequence[str]) -> tuple[int, list[str]]:
    """Runs a command, printing its output line by line; its status and the lines."""
    lines = []
    with subprocess.Popen(
        command,
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env=os.environ | {"CARGO_TERM_COLOR": "never", "PYTHONUNBUFFERED": "1"},
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line.rstrip("\n"))
            if not _NOISE.fullmatch(lines[-1].strip()):
                print(lines[-1], flush=True)
    return process.returncode, lines


# What libtest says around each single test that nextest starts.
_NOISE: Final = re.compile(
    r"(running 1 test|test \S+ \.\.\. ok|test result: ok\. 1 passed; .*|stdout ─+)?"
)
_RUST_SKIP: Final = re.compile(r".*\bSKIPPED: (.+)")


def parse_exit(lines: Sequence[str]) -> Count:  # noqa: ARG001 - the form of a parser
    """Nothing: such a suite is one test, and `run` sees its status."""
    return Count()


def parse_nextest(lines: Sequence[str]) -> Count:
    """Counts from the summary of nextest and from `SKIPPED:` lines."""
    count = Count()
    for line in lines:
        if found := re.match(r"\s*Summary \[.*\] .*tests? run: (.*)", line):
            numbers = _numbers(found[1])
            count.passed = numbers.get("passed", 0)
            failures = ("failed", "exec failed", "timed out")
            count.failed = sum(numbers.get(kind, 0) for kind in failures)
            count.skipped = numbers.get("skipped", 0)
            if count.skipped:
                count.reasons.append(f"{count.skipped} long Rust tests: run `make test-long`")
    reasons = [found[1] for line in lines if (found := _RUST_SKIP.match(line))]
    count.passed -= len(reasons)
    count.skipped += len(reasons)
    count.reasons += reasons
    return count


def parse_cargo_test(lines: Sequence[str]) -> Count:
    """Sums the results of all crates."""
    count = Count()
    for line in lines:
        if line.startswith("test result: "):
            numbers = _numbers(line.partition(". ")[2].replace(";", ","))
            count.passed += numbers.get("passed", 0)
            count.failed += numbers.get("failed", 0)
            count.skipped += numbers.get("ignored", 0)
    if count.skipped:
        count.reasons.append(f"{count.skipped} examples of the documentation are not to be run")
    return count


def parse_pytest(lines: Sequence[str]) -> Count:
    """Counts from the last line of pytest, and the reasons from its list of skips."""
    count = Count()
    for line in lines:
        if found := re.fullmatch(r"=+ (.*) in [0-9.]+s.* =+", line):
            numbers = _numbers(found[1])
            count.passed = numbers.get("passed", 0)
            count.failed = sum(numbers.get(kind, 0) for kind in ("failed", "error", "errors"))
            count.skipped = numbers.get("skipped", 0)
            if deselected := numbers.get("deselected", 0):
                count.skipped += deselected
                count.reasons.append(f"{deselected} long Python tests: run `make test-long`")
        elif found := re.match(r"SKIPPED \[\d+\] (.*)", line):
            count.reasons.append(found[1])
    return count


def _numbers(text: str) -> dict[str, int]:
    """`{"passed": 5, "failed": 1}` of `5 passed (1 slow), 1 failed`."""
    plain = re.sub(r"\(.*?\)", "", text)
    return dict(_number(part) for part in _parts(plain))


def _parts(text: str) -> Iterable[str]:
    return (part.strip() for part in text.split(",") if part.strip()[:1].isdigit())


def _number(part: str) -> tuple[str, int]:
    number, _, kind = part.partition(" ")
    return kind.strip(), int(number)


if __name__ == "__main__":
    sys.exit(main())
