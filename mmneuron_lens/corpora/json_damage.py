"""Where a JSON file stops being JSON, and how much of it lies behind: what a streaming parser does not say."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from mmneuron_lens.corpora.text_files import open_text

PIECE = 65_536
"""Characters that are parsed at once."""


class RepairedJson:
    """A file's bytes, each one that is not UTF-8 as JSON's escape of half a character, so that a parser goes on."""

    def __init__(self, file: Path) -> None:
        self._text = open_text(file, newline="")

    def __enter__(self) -> RepairedJson:
        return self

    def __exit__(self, *_: object) -> None:
        self._text.close()

    def read(self, size: int = -1) -> bytes:
        return _escaped(self._text.read(size))


def json_damage(file: Path, parser: Any) -> str:
    """Line and character at which a file stops being JSON, and what share of the file lies behind.

    - parser: a backend of ijson that fails on this file.
    """
    pieces, *_ = _parsed(file, parser, sys.maxsize)
    _, size, line, character = _parsed(file, parser, pieces)
    behind = 100 * (1 - size / max(1, file.stat().st_size))
    place = f"line {line}, character {character}"
    return f"{place}, with {behind:.2g} % of the file behind it" if behind > 0 else f"{place}, where the file ends"


def _parsed(file: Path, parser: Any, pieces: int) -> tuple[int, int, int, int]:
    """Pieces, bytes, lines and characters of the last line that parse: so many pieces whole, then each character."""
    import ijson

    events = ijson.sendable_list()
    parse = parser.basic_parse_coro(events)
    parsed, size, line, character = 0, 0, 1, 1
    with open_text(file, newline="") as stream:
        try:
            while text := stream.read(PIECE if parsed < pieces else 1):
                parse.send(_escaped(text))
                events.clear()
                parsed, size = parsed + 1, size + len(text.encode("utf-8", "surrogateescape"))
                line, last = line + text.count("\n"), text.rpartition("\n")[2]
                character = len(last) + (1 if "\n" in text else character)
        except (ijson.JSONError, ValueError, RecursionError):
            pass
    return parsed, size, line, character


def _escaped(text: str) -> bytes:
    return text.encode("utf-8", "backslashreplace")
