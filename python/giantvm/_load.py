"""Python objects that a file or a command line names: `MODULE:NAME` or `SCRIPT.py:NAME`."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType

from giantvm.errors import ConfigError

__all__ = ["load"]


def load(what: str, kind: str, place: str, name: str, directory: Path | None = None) -> object:
    """The `kind` called `name` of a module or script; else `ConfigError`, which begins with `what`.

    A script's path is relative to `directory`, or to the current one.
    """
    if place.endswith(".py"):
        module = _load_script((directory or Path()) / place, what)
    else:
        module = _load_module(place, what)
    found: object = getattr(module, name, None)
    if found is None:
        raise ConfigError(f"{what}: {place} has no {kind} {name!r}")
    return found


def _load_module(name: str, what: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise ConfigError(f"{what}: can't import {error.name!r}: give MODULE:NAME") from error


def _load_script(path: Path, what: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise ConfigError(f"{what}: there is no script {os.fspath(path)!r}")
    known = sys.modules.get(path.stem)
    if known is not None and getattr(known, "__file__", None) == os.fspath(path):
        return known
    # As for a script that Python runs itself: its neighbours can be imported.
    sys.path.insert(0, os.fspath(path.parent.resolve()))
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module
