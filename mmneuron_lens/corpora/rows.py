"""What may be wrong with a row, the checks of one value, and how a message quotes it."""

from __future__ import annotations

from typing import Any

from interventions.errors import InvalidValue

SHOWN = 100
"""Characters of a value that a problem quotes."""


class CorpusError(InvalidValue):
    """A folder or file is no corpus, or holds not one good row; the message says what to do."""


class BadRow(InvalidValue):
    """What is wrong with one row, and the next step; `rows` is how many are lost with it."""

    def __init__(self, says: str, rows: int = 1) -> None:
        super().__init__(says)
        self.rows = rows


def good_text(name: str, value: Any, empty: bool = False) -> str:
    """A value that is text with something in it (`empty`: or with nothing). Raises `BadRow` naming it by `name`."""
    if not isinstance(value, str):
        raise BadRow(f"{name} {quote(value)} is {type(value).__name__}, not text; put it in quotation marks.")
    if not value.strip() and not empty:
        raise BadRow(f"{name} {quote(value)} is empty; fill it in, or remove the row.")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise BadRow(f"{name} {quote(value)} holds half a character ({error.reason}); write it in UTF-8.") from error
    return value


def whole_number(name: str, value: int) -> str:
    """A whole number as text. Raises `BadRow` for one with more digits than Python writes."""
    try:
        return str(value)
    except ValueError as error:
        raise BadRow(f"{name} is a number of thousands of digits; compare with the published file.") from error


def quote(value: Any) -> str:
    """A value as a problem shows it: on one line, printable, not longer than `SHOWN`."""
    try:
        return _cut(ascii(value) if isinstance(value, str) and not value.isprintable() else repr(value))
    except (RecursionError, ValueError):
        # Nested too deeply, or a number of too many digits.
        return f"a {type(value).__name__} too large to show"


def bare(text: str) -> str:
    """A text as `quote` shows it, without quotation marks."""
    return _cut(text if text.isprintable() else ascii(text)[1:-1])


def _cut(text: str) -> str:
    text = text.encode("utf-8", "backslashreplace").decode()
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."
