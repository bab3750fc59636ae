"""What may be wrong with a row, the checks of one value, and how a message quotes it."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any

from interventions.errors import InvalidValue
from mmneuron_lens.corpora.json_bounds import TEXT

SHOWN = 100
"""Characters of a value that a problem quotes."""

NAME = 1000
"""Characters of what names a row, at most: an id, a domain."""

OF_THE_MACHINE = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.EROFS)
"""What no row is the reason of: a full or broken disk, no memory, no more open files."""


class CorpusError(InvalidValue):
    """A folder or file is no corpus, or holds not one good row; the message says what to do."""


class BadRow(InvalidValue):
    """What is wrong with one row, and the next step; `rows` is how many are lost with it."""

    def __init__(self, says: str, rows: int = 1) -> None:
        super().__init__(says)
        self.rows = rows


@contextmanager
def of_a_row() -> Iterator[None]:
    """Makes whatever is raised inside a `BadRow`: one row never ends a run, in whatever way it is read.

    What the machine is the reason of goes through.
    """
    try:
        yield
    except (BadRow, MemoryError):
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno in OF_THE_MACHINE:
            raise
        says = bare(" ".join(str(error).split()))
        raise BadRow(f"it cannot be read ({type(error).__name__}: {says}); compare with the published file.") from error


def identity_text(name: str, value: Any) -> str:
    """As `good_text`, of what names a row. Raises `BadRow` for more than `NAME` characters, too."""
    if len(text := good_text(name, value)) > NAME:
        raise BadRow(f"{name} {quote(text)} is longer than {NAME} characters; shorten it.")
    return text


def good_text(name: str, value: Any, empty: bool = False) -> str:
    """A value that is text with something in it (`empty`: or with nothing). Raises `BadRow` naming it by `name`."""
    if not isinstance(value, str):
        raise BadRow(f"{name} {quote(value)} is {type(value).__name__}, not text; put it in quotation marks.")
    if not value.strip() and not empty:
        raise BadRow(f"{name} {quote(value)} is empty; fill it in, or remove the row.")
    if len(value) > TEXT:
        raise BadRow(f"{name} {quote(value)} is longer than {TEXT} characters; shorten it.")
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
    value = _begun(value)
    try:
        return _cut(ascii(value) if isinstance(value, str) and not value.isprintable() else repr(value))
    except (RecursionError, ValueError):
        # Nested too deeply, or a number of too many digits.
        return f"a {type(value).__name__} too large to show"


def bare(text: str) -> str:
    """A text as `quote` shows it, without quotation marks."""
    text = text[: SHOWN + 1]
    return _cut(text if text.isprintable() else ascii(text)[1:-1])


def _begun(value: Any, levels: int = 3) -> Any:
    """As much of a value as is shown of it."""
    if isinstance(value, str | bytes):
        return value[: SHOWN + 1]
    if levels and isinstance(value, list):
        return [_begun(one, levels - 1) for one in value[:SHOWN]]
    if levels and isinstance(value, dict):
        return {_begun(name): _begun(one, levels - 1) for name, one in islice(value.items(), SHOWN)}
    return value


def _cut(text: str) -> str:
    text = text.encode("utf-8", "backslashreplace").decode()
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."
