"""The command `giantvm`."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence

import giantvm
from giantvm import status
from giantvm.config import Config
from giantvm.errors import ConfigError

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; the exit status: 0, 1 if a node does not answer, 2 for a wrong use."""
    options = _parser().parse_args(argv)
    if options.command == "version":
        print(f"giantvm {giantvm.__version__}")
        return 0
    try:
        config = Config.load(options.config)
    except ConfigError as error:
        print(f"giantvm: {error}", file=sys.stderr)
        return 2
    return _status(config, options.timeout, options.interval, as_json=options.json)


def _status(config: Config, timeout_s: float, interval_s: float, *, as_json: bool) -> int:
    before = status.query(config, timeout_s)
    if as_json:
        now = before
        print(json.dumps({s.node.name: s.report or {"error": s.error} for s in now}, indent=2))
    else:
        time.sleep(interval_s)
        now = status.query(config, timeout_s)
        print(status.render(before, now))
    return 0 if all(sample.report is not None for sample in now) else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="giantvm", description="Looks after clusters of giantvm nodes."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parser("version", help="print the version")
    show = commands.add_parser(
        "status", help="show the nodes of a cluster, their regions, and how much moves"
    )
    show.add_argument("--config", required=True, metavar="FILE", help="the cluster file")
    show.add_argument(
        "--timeout",
        type=seconds,
        default=2.0,
        metavar="SECONDS",
        help="how long to wait for a node (default: 2)",
    )
    show.add_argument(
        "--interval",
        type=seconds,
        default=1.0,
        metavar="SECONDS",
        help="how long to watch for the rates (default: 1)",
    )
    show.add_argument("--json", action="store_true", help="print what the nodes say, as JSON")
    return parser


def seconds(text: str) -> float:
    """A time in seconds from the command line, more than 0 and at most a day."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value <= 86400:
        raise argparse.ArgumentTypeError(f"{text!r} is not a time in seconds, like 2 or 0.5")
    return value
