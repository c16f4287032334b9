"""One node of a cluster: `python -m giantvm.node --config FILE --node NAME [-- PROGRAM ARGS]`.

PROGRAM is `MODULE:FUNCTION` or `SCRIPT.py:FUNCTION`; without a function, it is `main`. The
function runs in this process, with the `giantvm.Node` and the list of ARGS, and returns an exit
status or `None`. Without a program the node serves its share of memory until SIGINT or SIGTERM.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType, ModuleType

from giantvm import Node
from giantvm.cli import seconds
from giantvm.config import Config
from giantvm.errors import ConfigError, Error, NodeLost

__all__ = ["EXIT_LOST", "main"]

EXIT_LOST = 86
"""Exit status of a process whose cluster lost a node."""

_WATCH_S = 0.5

Program = Callable[[Node, list[str]], int | None]

_log = logging.getLogger("giantvm.node")


class _StoppedError(BaseException):
    """SIGTERM or SIGINT came. Not an `Exception`: no program should swallow it."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one node; the exit status: the program's, or 2 for a wrong use, 1 for an error,
    `EXIT_LOST` if a node was lost, 128 and the signal's number if one ended the program.
    """
    given = list(sys.argv[1:] if argv is None else argv)
    cut = given.index("--") if "--" in given else len(given)
    options = _parser().parse_args(given[:cut])
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(name)s: %(message)s", stream=sys.stderr
    )
    serving = cut >= len(given) - 1
    previous = [signal.signal(number, _stop) for number in (signal.SIGINT, signal.SIGTERM)]
    try:
        config = Config.load(options.config)
        program = None if serving else _find(given[cut + 1])
        return _run(config, options, program, given[cut + 2 :])
    except _StoppedError as stopped:
        return 0 if serving else 128 + stopped.number
    except NodeLost as error:
        print(f"giantvm: {error}", file=sys.stderr)
        return EXIT_LOST
    except Error as error:
        print(f"giantvm: {error}", file=sys.stderr)
        return 2 if isinstance(error, ConfigError) else 1
    finally:
        for number, handler in zip((signal.SIGINT, signal.SIGTERM), previous, strict=True):
            signal.signal(number, handler)


def _run(
    config: Config, options: argparse.Namespace, program: Program | None, args: list[str]
) -> int:
    lost = threading.Event()

    _log.info("node %s waits for the nodes of cluster %s", options.node, config.name)
    with Node(
        config,
        options.node,
        insecure=options.insecure,
        timeout_s=options.timeout,
        # The native node says on stderr who is lost, and why.
        on_lost=lambda _: lost.set(),
    ) as node:
        _log.info("node %s joined %s in epoch %d", node.name, config.name, node.epoch)
        if program is not None:
            return program(node, args) or 0
        return _serve(node, lost)


def _serve(node: Node, lost: threading.Event) -> int:
    states = dict.fromkeys(node.nodes, "up")
    while not lost.wait(_WATCH_S):
        for other in node.status()["nodes"]:
            if other["state"] != states[other["name"]]:
                states[other["name"]] = other["state"]
                _log.info("node %s is %s (epoch %d)", other["name"], other["state"], node.epoch)
    return EXIT_LOST


def _stop(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - the form of a handler
    raise _StoppedError(number)


def _find(program: str) -> Program:
    place, colon, function = program.rpartition(":")
    if not colon:
        place, function = program, "main"
    module = _load_script(Path(place)) if place.endswith(".py") else _load_module(place)
    found = getattr(module, function, None)
    if not callable(found):
        raise ConfigError(f"program {program!r}: {place} has no function {function!r}")
    run: Program = found
    return run


def _load_module(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise ConfigError(f"program: can't import {error.name!r}: give MODULE:FUNCTION") from error


def _load_script(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise ConfigError(f"program: there is no script {os.fspath(path)!r}")
    # As for a script that Python runs itself: its neighbours can be imported.
    sys.path.insert(0, os.fspath(path.parent.resolve()))
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m giantvm.node",
        usage="%(prog)s --config FILE --node NAME [options] [-- PROGRAM ARGS ...]",
        description="Runs one node of a cluster, with a program or only to give its memory.",
        epilog="PROGRAM is MODULE:FUNCTION or SCRIPT.py[:FUNCTION]; the function gets the node and "
        "the list of ARGS.",
    )
    parser.add_argument("--config", required=True, metavar="FILE", help="the cluster file")
    parser.add_argument("--node", required=True, metavar="NAME", help="which of its nodes this is")
    parser.add_argument(
        "--insecure",
        action="store_true",
        help="allow addresses that other machines can reach: there is no authentication",
    )
    parser.add_argument(
        "--timeout",
        type=seconds,
        default=30.0,
        metavar="SECONDS",
        help="how long to wait for the other nodes (default: 30)",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
