"""TOML tables, read with one message per mistake."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping

from giantvm.errors import ConfigError

__all__ = ["Table", "suggestion"]


class Table:
    """A TOML table whose keys are known, read with one message per mistake."""

    def __init__(self, table: object, where: str, known: set[str]) -> None:
        if not isinstance(table, dict):
            raise ConfigError(f"{where} must be a table")
        self._table: Mapping[str, object] = table
        self._where = where
        for key in self._table:
            if key not in known:
                raise ConfigError(
                    f"{where}: unknown key {key!r}{suggestion(key, known)}: "
                    f"known are {', '.join(sorted(known))}"
                )

    def _get(self, key: str) -> object:
        if key not in self._table:
            raise ConfigError(f"{self._where}: {key} is missing")
        return self._table[key]

    def text(self, key: str, default: str | None = None) -> str:
        """A string."""
        if default is not None and key not in self._table:
            return default
        value = self._get(key)
        if not isinstance(value, str):
            raise ConfigError(f"{self._where}: {key} must be a string, not {value!r}")
        return value

    def integer(self, key: str, default: int) -> int:
        """A whole number."""
        value = self._table.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int):
            raise ConfigError(f"{self._where}: {key} must be a whole number, not {value!r}")
        return value

    def table(self, key: str) -> object:
        """A table that must be there, unread."""
        if key not in self._table:
            raise ConfigError(f"the [{key}] table is missing")
        return self._table[key]

    def tables(self, key: str) -> list[object]:
        """An array of tables, unread; empty by default."""
        value = self._table.get(key, [])
        if not isinstance(value, list):
            raise ConfigError(f"write [[{key}]] with two brackets, once for each {key}")
        return value

    def optional(self, key: str) -> str | None:
        """A string, if there is one."""
        return self.text(key) if key in self._table else None

    def flag(self, key: str) -> bool:
        """A truth value, false by default."""
        value = self._table.get(key, False)
        if not isinstance(value, bool):
            raise ConfigError(f"{self._where}: {key} must be true or false, not {value!r}")
        return value

    def optional_flag(self, key: str) -> bool | None:
        """A truth value, or `None` where nothing is said."""
        return self.flag(key) if key in self._table else None

    def items(self, key: str) -> list[object]:
        """An array, empty by default."""
        value = self._table.get(key, [])
        if not isinstance(value, list):
            raise ConfigError(f"{self._where}: {key} must be an array, not {value!r}")
        return value

    def texts(self, key: str) -> list[str]:
        """An array of strings, empty by default."""
        value = self.items(key)
        texts = [item for item in value if isinstance(item, str)]
        if len(texts) < len(value):
            raise ConfigError(f"{self._where}: {key} must be an array of strings, not {value!r}")
        return texts

    def mapping(self, key: str) -> dict[str, object]:
        """A table of anything, empty by default."""
        value = self._table.get(key, {})
        if not isinstance(value, dict):
            raise ConfigError(f"{self._where}: {key} must be a table, not {value!r}")
        return value

    def __contains__(self, key: str) -> bool:
        return key in self._table


def suggestion(word: str, known: Iterable[str]) -> str:
    """What may have been meant by `word`, in brackets; nothing if none comes close."""
    closest = difflib.get_close_matches(word, sorted(known), n=1)
    return f" (did you mean {closest[0]!r}?)" if closest else ""
