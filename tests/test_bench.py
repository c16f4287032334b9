"""What the benchmarks in Python do with their samples; they themselves run in `make bench`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pybench import report
from pybench.report import Row, row_of
from pybench.sampling import Batches, interleave, p99


def test_samplers_take_turns_and_the_warm_up_does_not_count() -> None:
    log = ""

    def sampler(name: str, value: float, count: int) -> list[float]:
        nonlocal log
        log += name
        return [value] * count

    a, b = interleave(
        [lambda n: sampler("a", 1.0, n), lambda n: sampler("b", 2.0, n)],
        Batches(rounds=3, per_round=2, warm_up=7),
    )
    assert log == "ab" + "ab" + "ba" + "ab"
    assert (a, b) == ([1.0] * 6, [2.0] * 6)


def test_the_99th_percentile_is_one_of_the_samples() -> None:
    assert p99([float(n) for n in range(100, 0, -1)]) == 99.0
    assert p99([3.0]) == 3.0


@pytest.mark.parametrize(("goal", "met"), [(1.5, True), (1.4, False)])
def test_a_goal_bounds_the_ratio_to_the_floor(goal: float, met: bool) -> None:
    row = row_of("x", "tcp", [30.0, 10.0, 20.0], floor=[14.0], goal=goal)
    assert (row.value, row.floor, row.ratio) == (20.0, 14.0, 20 / 14)
    assert row.met is met
    assert bool(report.misses([row])) is not met
    assert ("MISSED" in report.table([row])) is not met


def test_a_goal_without_a_floor_bounds_the_value() -> None:
    assert row_of("x", "", [2.0], goal=2.0).met is True
    assert row_of("x", "", [2.1], goal=2.0).met is False
    assert row_of("x", "", [2.1]).met is None


def test_a_later_run_replaces_rows_by_name_and_variant(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "bench.json"
    assert report.load(path) == []
    report.merge(path, [Row("a", "tcp", "us", 1.0), Row("a", "unix", "us", 2.0)])
    report.merge(path, [Row("b", "", "us", 4.0), Row("a", "tcp", "us", 3.0)])
    assert report.load(path) == [
        Row("a", "tcp", "us", 3.0),
        Row("a", "unix", "us", 2.0),
        Row("b", "", "us", 4.0),
    ]
    fields = ["name", "variant", "unit", "value", "p99", "floor", "floor_p99", "ratio"]
    fields += ["goal", "met"]
    assert [list(row) for row in json.loads(path.read_text())] == [fields] * 3


def test_a_rate_that_is_missed_is_said_with_its_direction() -> None:
    row = Row("scan", "tcp", "MB/s", 50.0, floor=100.0, ratio=0.5, goal=0.6, met=False)
    assert report.misses([row]) == ["missed: scan tcp: ratio 0.5, goal >= 0.6"]
