"""The commands `giantvm` and `python -m giantvm.node`."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import giantvm
from giantvm import Config, NodeSpec, cli, node, status

NODES = (NodeSpec("a", "unix:/a"), NodeSpec("b", "unix:/b"))


def report(**changes: Any) -> dict[str, Any]:
    region = {
        "name": "grid",
        "size": 1 << 20,
        "pages_resident": 12,
        "pages_held": 1,
        "faults": {"read": 1, "write": 2, "upgrade": 3, "first_touch": 4},
        "bytes_sent": 0,
        "bytes_received": 4096,
    }
    states = [{"name": "a", "state": "up"}, {"name": "b", "state": "lost"}]
    return {
        "cluster": "demo",
        "node": "a",
        "epoch": 3,
        "state": "ended",
        "userfaultfd": "full",
        "nodes": states,
        "regions": [region | changes],
    }


def test_status_shows_nodes_regions_and_rates() -> None:
    later = report(
        bytes_received=4096 + 3 * 2**20,
        faults={"read": 21, "write": 2, "upgrade": 3, "first_touch": 4},
    )
    silent = status.Sample(NODES[1], 0.0, None, "nobody listens")
    text = status.render(
        [status.Sample(NODES[0], 10.0, report(), None), silent],
        [status.Sample(NODES[0], 12.0, later, None), silent],
    )
    assert text.splitlines() == [
        "node  address  state                      epoch  userfaultfd",
        "a     unix:/a  ended, b lost                  3  full",
        "b     unix:/b  no answer: nobody listens      -  -",
        "",
        "region  node  size     pages here  held  faults  faults/s  in/s     out/s",
        "grid    a     1.0 MiB          12     1      30      10.0  1.5 MiB  0 B",
    ]


def test_status_of_a_region_that_is_new_has_no_rates() -> None:
    before = status.Sample(NODES[0], 10.0, report(name="other"), None)
    now = status.Sample(NODES[0], 12.0, report(), None)
    assert re.search(r"grid .* 10 +-  -     -$", status.render([before], [now]), re.M)


def write_config(directory: Path) -> Path:
    path = directory / "cluster.toml"
    path.write_text(
        f'[cluster]\nname = "t"\n[[node]]\nname = "a"\nlisten = "unix:{directory}/a.sock"\n'
        'memory = "16MiB"\n'
    )
    return path


def test_status_tells_of_a_node_that_does_not_answer(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["status", "--config", str(write_config(tmp_path)), "--interval", "0.01"]
    assert cli.main(command) == 1
    assert "no answer" in capsys.readouterr().out
    assert cli.main([*command, "--json"]) == 1
    assert "error" in json.loads(capsys.readouterr().out)["a"]


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["version"]) == 0
    assert capsys.readouterr().out == f"giantvm {giantvm.__version__}\n"


def test_a_bad_file_is_a_wrong_use(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["status", "--config", str(tmp_path / "no.toml")]) == 2
    assert node.main(["--config", str(tmp_path / "no.toml"), "--node", "a"]) == 2
    assert capsys.readouterr().err.count("can't be read") == 2


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["status"],
        ["status", "--config", "x", "--interval", "0"],
        ["status", "--config", "x", "--timeout", "soon"],
        ["unknown"],
    ],
)
def test_wrong_options(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(argv)
    assert ended.value.code == 2
    assert "usage: giantvm" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("program", "told"),
    [
        ("no.such.module:main", "can't import 'no'"),
        ("no_such.py", "there is no script"),
        ("json:no_such", "json has no function 'no_such'"),
        ("json", "json has no function 'main'"),
    ],
)
def test_a_program_that_is_not_there_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], program: str, told: str
) -> None:
    argv = ["--config", str(write_config(tmp_path)), "--node", "a", "--", program]
    assert node.main(argv) == 2
    assert told in capsys.readouterr().err


def test_an_unknown_node_and_a_remote_address(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_config(tmp_path)
    assert node.main(["--config", str(path), "--node", "b"]) == 2
    assert "no node 'b'" in capsys.readouterr().err
    path.write_text(path.read_text().replace(f"unix:{tmp_path}/a.sock", "0.0.0.0:7001"))
    assert node.main(["--config", str(path), "--node", "a"]) == 2
    assert "--insecure" in capsys.readouterr().err


SCRIPT = """
from neighbour import RESULT

def main(node, args):
    print(node.name, node.index, args)
    return RESULT

def other(node, args):
    print("other")
"""


def test_a_script_runs_with_the_node_and_its_arguments(tmp_path: Path) -> None:
    (tmp_path / "neighbour.py").write_text("RESULT = 5\n")
    script = tmp_path / "program.py"
    script.write_text(SCRIPT)
    command = [sys.executable, "-m", "giantvm.node", "--config", str(write_config(tmp_path))]
    command += ["--node", "a", "--"]
    ended = subprocess.run(
        [*command, str(script), "--x", "--", "y"], capture_output=True, text=True, check=False
    )
    assert (ended.returncode, ended.stdout) == (5, "a 0 ['--x', '--', 'y']\n"), ended.stderr
    ended = subprocess.run(
        [*command, f"{script}:other"], capture_output=True, text=True, check=False
    )
    assert (ended.returncode, ended.stdout) == (0, "other\n"), ended.stderr


@pytest.fixture
def serving(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    config = write_config(tmp_path)
    command = [sys.executable, "-m", "giantvm.node", "--config", str(config), "--node", "a"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "joined" in line:
                break
        try:
            yield process, config
        finally:
            process.kill()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_serving_node_ends_well_with_a_signal(
    serving: tuple[subprocess.Popen[str], Path], number: signal.Signals
) -> None:
    process, _ = serving
    os.kill(process.pid, number)
    assert process.wait(30) == 0


def test_a_serving_node_tells_its_status(
    serving: tuple[subprocess.Popen[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    _, config = serving
    assert cli.main(["status", "--config", str(config), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["a"]
    assert told["cluster"] == "t"
    assert told["node"] == "a"
    assert told["state"] == "up"
    assert told["nodes"] == [{"name": "a", "state": "up"}]
    assert cli.main(["status", "--config", str(config), "--interval", "0.01"]) == 0
    assert "no regions" in capsys.readouterr().out


def test_another_cluster_does_not_answer(serving: tuple[subprocess.Popen[str], Path]) -> None:
    _, config = serving
    spec = Config.load(config).nodes[0]
    sample = status.query(Config("other", (spec,)), 2.0)[0]
    assert sample.report is None
    assert sample.error
