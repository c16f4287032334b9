"""The words of a text that one node loads and all nodes count.

Run it on every node of a cluster:

    python -m giantvm.node --config cluster.toml --node NAME -- examples/word_count.py

The first node reads the licences and copyright notices that every Debian machine has into a shared
array. Each node counts the words of its part, writes its counts to another shared array, and the
first node adds them up.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from giantvm import PAGE_SIZE, Node
from memory_report import gather

Text = npt.NDArray[np.uint8]

TEXTS: Final = ("/usr/share/common-licenses/*", "/usr/share/doc/*/copyright")

_WORD_BYTES_MAX: Final = 24
_ENTRY: Final = np.dtype([("word", f"S{_WORD_BYTES_MAX}"), ("count", np.int64)])
_ENTRIES_MAX: Final = 1 << 16
_SPACE: Final = ord(" ")

# Letters in lower case, and a space for everything else.
_FOLD: Final = bytes(
    ord(chr(code).lower()) if chr(code).isascii() and chr(code).isalpha() else _SPACE
    for code in range(256)
)


def main(node: Node, args: list[str]) -> int:
    """Counts on this node; the first one checks and reports. 0 if the result is right."""
    options = _parser().parse_args(args)
    size = options.megabytes << 20
    nodes = len(node.nodes)
    table_bytes = nodes * _ENTRIES_MAX * _ENTRY.itemsize
    region = node.region("words", size + table_bytes + PAGE_SIZE * 128)
    text = region.array(size, np.uint8, name="text")
    table = region.array((nodes, _ENTRIES_MAX), _ENTRY, name="counts")
    done = node.barrier("words/done")

    loaded = b""
    if node.index == 0:
        loaded = load(size)
        text[: len(loaded)] = np.frombuffer(loaded, np.uint8)
        text[len(loaded) :] = _SPACE
    done.wait()
    write_counts(table[node.index], count(text[part(text, nodes, node.index)].tobytes()))
    done.wait()

    report = gather(node, region)
    if report is None:
        return 0
    total = merge(read_counts(row) for row in table)
    same = total == count(loaded)
    print(
        f"word count: {total.total()} words in {len(loaded)} bytes, {len(total)} different: ",
        end="",
    )
    print("equal to a run in one process" if same else "DIFFERS from a run in one process")
    print("most frequent:", ", ".join(f"{w.decode()} {n}" for w, n in total.most_common(8)))
    report.show({"text": text, "counts": table})
    return 0 if same else 1


def load(size: int) -> bytes:
    """The texts of the machine one after the other, cut at `size` bytes."""
    parts: list[bytes] = []
    room = size
    for pattern in TEXTS:
        root = Path("/")
        for path in sorted(root.glob(pattern.removeprefix("/"))):
            if room and path.is_file():
                parts.append(path.read_bytes()[: room - 1] + b"\n")
                room -= len(parts[-1])
    return b"".join(parts)


def part(text: Text, nodes: int, index: int) -> slice:
    """The part of one node; it begins and ends between words."""
    return slice(_boundary(text, nodes, index), _boundary(text, nodes, index + 1))


def _boundary(text: Text, nodes: int, index: int) -> int:
    place = len(text) * index // nodes
    while 0 < place < len(text) and _FOLD[text[place - 1]] != _SPACE:
        place += 1
    return place


def count(text: bytes) -> Counter[bytes]:
    """How often each word occurs, in lower case; long words are cut."""
    words = text.translate(_FOLD).split()
    return Counter(word[:_WORD_BYTES_MAX] for word in words)


def write_counts(row: npt.NDArray[np.void], counts: Mapping[bytes, int]) -> None:
    """Puts counts in one node's row of the shared table."""
    if len(counts) > len(row):
        raise ValueError(f"{len(counts)} different words: the table has {len(row)} entries")
    row[: len(counts)] = np.fromiter(counts.items(), _ENTRY, len(counts))


def read_counts(row: npt.NDArray[np.void]) -> Counter[bytes]:
    """Inverse of `write_counts`; entries without a count are unused."""
    used = row[row["count"] > 0]
    return Counter(dict(zip(used["word"].tolist(), used["count"].tolist(), strict=True)))


def merge(parts: Iterable[Counter[bytes]]) -> Counter[bytes]:
    """The sum of the counts."""
    total: Counter[bytes] = Counter()
    for counts in parts:
        total.update(counts)
    return total


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="word_count.py", description="Words of a shared text.")
    parser.add_argument("--megabytes", type=int, default=8, help="most of the text to read")
    return parser
