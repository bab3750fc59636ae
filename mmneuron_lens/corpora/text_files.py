"""Text files of a corpus: read as UTF-8, with or without a byte order mark; another encoding is named."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from mmneuron_lens.corpora.json_bounds import LONGEST
from mmneuron_lens.corpora.rows import CorpusError

MARKS = {
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}
"""Byte order marks; the longer ones first, since one begins with another."""


def open_text(file: Path, newline: str | None = None) -> TextIO:
    """A file opened as UTF-8; bytes that are not UTF-8 become half characters, which the reader of a value names.

    - newline: as of `open`; None makes each of the three ends of a line one.

    Raises `CorpusError` for a file in UTF-16 or UTF-32, marked or with the zeros that plain letters have there.
    """
    with open(file, "rb") as stream:
        start = stream.read(4)
    found = next((name for mark, name in MARKS.items() if start.startswith(mark)), None)
    if found or b"\0" in start:
        raise CorpusError(f"{file} is {found or 'UTF-16 or UTF-32'}, not UTF-8; save it as UTF-8.")
    return open(file, encoding="utf-8-sig", errors="surrogateescape", newline=newline)


def cut_line(stream: TextIO) -> str:
    """The next line; "" at the end. One that is longer than `LONGEST` is cut one character behind it."""
    line = part = stream.readline(LONGEST + 1)
    while len(part) > LONGEST and not part.endswith("\n"):
        part = stream.readline(LONGEST + 1)
    return line


def cut_lines(stream: TextIO) -> Iterator[str]:
    """All lines, each as `cut_line` gives it."""
    return iter(lambda: cut_line(stream), "")
