"""A dictionary on disk: what joins two files of a corpus, or finds ids that come twice, in fixed memory."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from types import TracebackType
from typing import Any


class Lookup:
    """Values that JSON can hold, by text key, in the order they were put.

    A temporary database of SQLite's own: it spills to a file that vanishes when the lookup is closed, and keeps at
    most 2 MB in memory however many keys it holds. Use it in a `with` block.
    """

    def __init__(self) -> None:
        self._database = sqlite3.connect("", isolation_level=None)
        for setting in ("journal_mode=OFF", "synchronous=OFF", "cache_size=-2000"):
            self._database.execute(f"PRAGMA {setting}")
        self._database.execute("CREATE TABLE kept (place INTEGER PRIMARY KEY, key TEXT UNIQUE, value TEXT)")
        self._database.execute("BEGIN")

    def __enter__(self) -> Lookup:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._database.close()

    def put(self, key: str, value: Any) -> bool:
        """Keeps a value; False, and nothing changed, when the key is already there."""
        made = self._database.execute("INSERT OR IGNORE INTO kept(key, value) VALUES (?, ?)", (key, json.dumps(value)))
        return made.rowcount == 1

    def replace(self, key: str, value: Any) -> None:
        """Gives a key that is there another value; its place stays."""
        self._database.execute("UPDATE kept SET value = ? WHERE key = ?", (json.dumps(value), key))

    def get(self, key: str) -> Any:
        """The value of a key, or None."""
        found = self._database.execute("SELECT value FROM kept WHERE key = ?", (key,)).fetchone()
        return None if found is None else json.loads(found[0])

    def items(self) -> Iterator[tuple[str, Any]]:
        """Keys and values in the order they were put."""
        for key, value in self._database.execute("SELECT key, value FROM kept ORDER BY place"):
            yield key, json.loads(value)
