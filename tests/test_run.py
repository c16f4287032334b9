"""The sums at the end of `make test`: counted from what the runners print."""

from __future__ import annotations

import pytest

import run
from run import Count, Suite


@pytest.mark.parametrize(
    ("line", "count"),
    [
        ("     Summary [   1.0s] 12 tests run: 12 passed, 0 skipped", Count(12, 0, 0)),
        ("     Summary [   1.0s] 12 tests run: 9 passed (1 slow, 2 flaky), 3 failed", Count(9, 3)),
        ("     Summary [ 1.0s] 3/9 tests run: 1 passed, 1 failed, 1 timed out", Count(1, 2)),
        ("     Summary [   1.0s] 1 test run: 1 passed", Count(1)),
    ],
)
def test_nextest(line: str, count: Count) -> None:
    assert run.parse_nextest(["noise", line, "error: test run failed"]) == count


def test_a_rust_test_that_skips_itself_did_not_pass() -> None:
    lines = ["  SKIPPED: needs root", "Summary [ 1.0s] 3 tests run: 3 passed"]
    assert run.parse_nextest(lines) == Count(2, 0, 1, ["needs root"])


def test_cargo_test() -> None:
    lines = [
        "test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; in 0.1s",
        "test result: FAILED. 1 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out",
    ]
    count = run.parse_cargo_test(lines)
    assert (count.passed, count.failed, count.skipped) == (4, 2, 1)


def test_pytest() -> None:
    lines = [
        "SKIPPED [2] tests/test_x.py:9: needs root",
        "== 2 failed, 5 passed, 2 skipped, 3 deselected, 1 warning, 1 error in 1.20s (0:00:01) ==",
    ]
    count = run.parse_pytest(lines)
    assert (count.passed, count.failed, count.skipped) == (5, 3, 5)
    assert "tests/test_x.py:9: needs root" in count.reasons


def shell(script: str, parse: run.Parse = run.parse_pytest) -> Count:
    return run.run(Suite("shell", ["sh", "-c", script], parse))


@pytest.mark.parametrize(
    ("script", "passed", "failed"),
    [
        ("echo '= 3 passed in 0.1s ='", 3, 0),
        ("echo '= 3 passed in 0.1s ='; exit 3", 3, 1),
        ("echo '= 3 passed, 2 failed in 0.1s ='; exit 1", 3, 2),
        ("echo nothing", 0, 1),
        ("kill -9 $$", 0, 1),
    ],
)
def test_a_suite_that_fails_or_tests_nothing_is_a_failure(
    script: str, passed: int, failed: int
) -> None:
    count = shell(script)
    assert (count.passed, count.failed) == (passed, failed)


def test_a_suite_without_counts_is_one_test() -> None:
    assert shell("exit 0", run.parse_exit) == Count(1, 0, 0)
    assert shell("exit 1", run.parse_exit) == Count(0, 1, 0)


def test_a_command_that_is_not_there_is_a_failure() -> None:
    assert run.run(Suite("none", ["/no/such/command"], run.parse_exit)) == Count(0, 1, 0)


def test_the_last_line_is_the_sum(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    suites = [
        Suite("one", ["echo", "= 3 passed, 1 skipped in 0.1s ="], run.parse_pytest),
        Suite("two", ["false"], run.parse_exit),
    ]
    monkeypatch.setattr(run, "suites", lambda **_: suites)
    assert run.main([]) == 1
    assert capfd.readouterr().out.splitlines()[-1] == "3 passed, 1 failed, 1 skipped"
