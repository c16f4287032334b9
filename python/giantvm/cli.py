"""The command `giantvm`."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence

import giantvm
from giantvm import profile, status
from giantvm._run import run
from giantvm.config import Config
from giantvm.errors import ConfigError, Error
from giantvm.symbols import Symbols

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; the exit status: 0, 1 if a node does not answer, 2 for a wrong use.

    That of `run` is the guest's.
    """
    options = _parser().parse_args(argv)
    if options.command == "version":
        print(f"giantvm {giantvm.__version__}")
        return 0
    try:
        config = Config.load(options.config)
        if options.command == "run":
            return run(config, options.config)
        config = status.find_nodes(config, options.timeout)
    except Error as error:
        print(f"giantvm: {error}", file=sys.stderr)
        return 2 if isinstance(error, ConfigError) else 1
    if options.command == "top":
        return _top(config, options)
    return _status(config, options.timeout, options.interval, as_json=options.json)


def _top(config: Config, options: argparse.Namespace) -> int:
    try:
        symbols = Symbols.load(options.symbols) if options.symbols else Symbols()
    except ConfigError as error:
        print(f"giantvm: {error}", file=sys.stderr)
        return 2
    if options.json:
        print(profile.dump(config, symbols, options.timeout))
        return 0
    clear = "\x1b[H\x1b[2J" if sys.stdout.isatty() and not options.once else ""
    before = status.query(config, options.timeout)
    while True:
        try:
            time.sleep(options.interval)
            now = status.query(config, options.timeout)
            print(f"{clear}{profile.render(before, now, symbols, options.rows)}", flush=True)
        except KeyboardInterrupt:
            return 0
        answers = any(sample.report is not None for sample in now)
        if options.once or not answers:
            return 0 if answers else 1
        before = now


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
    runs = commands.add_parser(
        "run",
        help="run a virtual machine with all of its nodes on this machine",
        description="Starts all nodes of the virtual machine of FILE, each a process, with the "
        "guest's serial port in this terminal. Ctrl-] ends it. The exit status is that of the "
        "guest's debug exit, 0 after a power-off, 84 if the guest can't go on, 82 if a node or a "
        "device can't, 86 if a node was lost.",
    )
    runs.add_argument("config", metavar="FILE", help="the cluster file, with a [vm] table")
    show = commands.add_parser(
        "status", help="show the nodes of a cluster, their regions, and how much moves"
    )
    _add_query(show)
    show.add_argument("--json", action="store_true", help="print what the nodes say, as JSON")
    hot = commands.add_parser(
        "top", help="show where the guest of a virtual machine waits for pages, as it runs"
    )
    _add_query(hot)
    hot.add_argument(
        "--symbols",
        metavar="FILE",
        help="System.map or kallsyms of the guest's kernel, or an ELF file, to name places",
    )
    hot.add_argument(
        "--rows", type=_rows, default=20, metavar="N", help="how many places (default: 20)"
    )
    hot.add_argument("--once", action="store_true", help="show it once and end")
    hot.add_argument("--json", action="store_true", help="print the profiles as JSON and end")
    return parser


def _add_query(parser: argparse.ArgumentParser) -> None:
    """What commands that ask the nodes have in common."""
    parser.add_argument("--config", required=True, metavar="FILE", help="the cluster file")
    parser.add_argument(
        "--timeout",
        type=seconds,
        default=2.0,
        metavar="SECONDS",
        help="how long to wait for a node (default: 2)",
    )
    parser.add_argument(
        "--interval",
        type=seconds,
        default=1.0,
        metavar="SECONDS",
        help="how long to watch for the rates (default: 1)",
    )


def _rows(text: str) -> int:
    """A number of rows, at least 1."""
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of rows, like 20")
    return int(text)


def seconds(text: str) -> float:
    """A time in seconds from the command line, more than 0 and at most a day."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value <= 86400:
        raise argparse.ArgumentTypeError(f"{text!r} is not a time in seconds, like 2 or 0.5")
    return value
