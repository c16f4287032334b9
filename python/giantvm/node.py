"""One node of a cluster: `python -m giantvm.node --config FILE --node NAME [-- PROGRAM ARGS]`.

PROGRAM is `MODULE:FUNCTION` or `SCRIPT.py:FUNCTION`; without a function, it is `main`. The
function runs in this process, with the `giantvm.Node` and the list of ARGS, and returns an exit
status or `None`. Without a program the node runs its part of the file's virtual machine to its end;
if there is none, it serves its share of memory until SIGINT or SIGTERM.
"""

from __future__ import annotations

import argparse
import logging
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from types import FrameType

from giantvm import Node
from giantvm._load import load
from giantvm._machine import EXIT_LOST, StoppedError, die_with, exit_status, serve, tell
from giantvm._vm import Outcome
from giantvm.cli import seconds
from giantvm.config import Config, parse_size
from giantvm.errors import ConfigError, Error, NodeLost

__all__ = ["EXIT_LOST", "main"]

_WATCH_S = 0.5

Program = Callable[[Node, list[str]], int | None]

_log = logging.getLogger("giantvm.node")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one node; the exit status: the program's, or 2 for a wrong use, 1 for an error,
    `EXIT_LOST` if a node was lost, 128 and the signal's number if one ended the program. That of
    a virtual machine: see `giantvm run --help`.
    """
    given = list(sys.argv[1:] if argv is None else argv)
    cut = given.index("--") if "--" in given else len(given)
    options = _parser().parse_args(given[:cut])
    if options.parent is not None:
        die_with(options.parent)
    logging.basicConfig(
        level=logging.INFO if options.outcome_fd is None else logging.WARNING,
        format="%(asctime)s %(name)s: %(message)s",
        stream=sys.stderr,
    )
    serving = cut >= len(given) - 1
    previous = [signal.signal(number, _stop) for number in (signal.SIGINT, signal.SIGTERM)]
    try:
        config = Config.load(options.config)
        program = None if serving else _find(given[cut + 1])
        return _run(config, options, program, given[cut + 2 :])
    except StoppedError as stopped:
        return 0 if serving else 128 + stopped.number
    except NodeLost as error:
        tell(Outcome("lost", reason=str(error)), options.outcome_fd)
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
        listen=options.listen,
        memory_bytes=None if options.memory is None else parse_size(options.memory),
        insecure=options.insecure,
        timeout_s=options.timeout,
        # The native node says on stderr who is lost, and why.
        on_lost=lambda what: lost.set() if what.ended else None,
    ) as node:
        _log.info("node %s joined %s in epoch %d", node.name, config.name, node.epoch)
        if program is not None:
            return program(node, args) or 0
        if config.vm is not None:
            outcome = serve(node)
            tell(outcome, options.outcome_fd)
            return exit_status(outcome)
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
    raise StoppedError(number)


def _find(program: str) -> Program:
    place, colon, function = program.rpartition(":")
    if not colon:
        place, function = program, "main"
    what = f"program {program!r}"
    found = load(what, "function", place, function)
    if not callable(found):
        raise ConfigError(f"{what}: {function!r} of {place} is no function")
    run: Program = found
    return run


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
    # For `giantvm run`: whose end is this one's, and where to tell the end of the virtual machine.
    parser.add_argument("--parent", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--outcome-fd", type=int, help=argparse.SUPPRESS)
    parser.add_argument(
        "--listen", metavar="ADDRESS", help="with etcd: where it listens, HOST:PORT or unix:/PATH"
    )
    parser.add_argument(
        "--memory", metavar="SIZE", help="with etcd: its share of memory (default: 1GiB)"
    )
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
