"""Records of CSV files, one at a time: a damaged row is named alone, and the rows behind it are read."""

from __future__ import annotations

import csv
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, TextIO

from mmneuron_lens.corpora import json_bounds
from mmneuron_lens.corpora.records import RawRecord, RecordProblems
from mmneuron_lens.corpora.rows import CorpusError, quote
from mmneuron_lens.corpora.text_files import cut_line, open_text

LONGEST = 131_072
"""Characters that the lines of one row may have; a quotation mark that is never closed runs no further."""


class CsvRow(NamedTuple):
    """A row that was read.

    - line: of the file, that it begins in, from 1.
    - lines: so many it takes; a quoted cell may hold ends of lines.
    - cells: its values; [] for an empty line.
    - damage: why it is none, or "".
    """

    line: int
    lines: int
    cells: list[str]
    damage: str = ""


def csv_records(file: Path, problems: RecordProblems) -> Iterator[RawRecord]:
    """The rows of a CSV file with a header, streamed; a row that cannot be read is named with its line and skipped.

    Raises `CorpusError` for a file in another encoding than UTF-8, or whose first row is no header.
    """
    with open_text(file, newline="") as stream:
        rows = csv_rows(stream)
        header = _header(file, next(rows, None))
        number = 0
        for row in rows:
            if not row.cells and not row.damage:
                continue
            number += 1
            if damage := row.damage or _unlike(header, row):
                problems.rows += 1
                problems.add_record(RawRecord(file, number, None), "", damage)
            else:
                yield RawRecord(file, number, dict(zip(header, row.cells, strict=True)))


def csv_rows(stream: TextIO) -> Iterator[CsvRow]:
    """All rows, the header and empty lines too.

    A row over several lines is taken only if it is plainly one: its quotation marks are closed where a cell ends, and
    most of its lines are not whole rows by themselves. Otherwise its first line has lost a quotation mark: that line
    alone is damaged, and the next row begins behind it.
    """
    ahead: deque[str] = deque()
    line, width = 1, 0
    while True:
        taken: list[str] = []
        cells, error = [], ""
        try:
            cells = next(csv.reader(_taking(taken, ahead, stream), strict=True), [])
            if len(taken[-1] if taken else "") > json_bounds.LONGEST:
                raise csv.Error(json_bounds.LONG)
        except csv.Error as wrong:
            error = str(wrong)
        if not taken:
            return
        width = width or len(cells)
        if len(taken) > 1 and (error or _rows_alone(taken, width)):
            ahead.extendleft(reversed(taken[1:]))
            yield CsvRow(line, 1, [], _unclosed(line, len(taken) - 1))
            line += 1
        else:
            yield CsvRow(line, len(taken), cells, error and f"line {line} is no CSV row ({error}); {MEND}.")
            line += len(taken)


MEND = "close each quotation mark, and double those inside a cell"


def _taking(taken: list[str], ahead: deque[str], stream: TextIO) -> Iterator[str]:
    """Lines as a parser asks for them, each kept in `taken`: those that were read ahead, then the others."""
    length = 0
    while length < LONGEST and (text := ahead.popleft() if ahead else cut_line(stream)):
        taken.append(text)
        length += len(text)
        yield text


def _rows_alone(lines: list[str], width: int) -> bool:
    """Whether most of the lines are whole rows by themselves, their quotation marks taken as any other character."""
    return 2 * sum(len(cells) == width for cells in csv.reader(lines, quoting=csv.QUOTE_NONE)) > len(lines)


def _unclosed(line: int, swallowed: int) -> str:
    lines = f"{swallowed} lines" if swallowed > 1 else "line"
    return (
        f"line {line} opens a quotation mark that is not closed where a cell ends, which would swallow the {lines} "
        f"behind it; this row alone is left out, and reading goes on at line {line + 1}; {MEND}."
    )


def _header(file: Path, row: CsvRow | None) -> list[str]:
    if row is None:
        raise CorpusError(f"{file} is empty; download it again.")
    if row.damage or not row.cells:
        raise CorpusError(f"{file} has no header: {row.damage or 'its first line is empty.'}")
    if twice := {name for name in row.cells if row.cells.count(name) > 1}:
        raise CorpusError(f"{file} names column {quote(min(twice))} twice in its header; rename one of the two.")
    return row.cells


def _unlike(header: list[str], row: CsvRow) -> str:
    """What makes whole cells no row of this header, or ""."""
    where = f"line {row.line}" if row.lines == 1 else f"lines {row.line} to {row.line + row.lines - 1}"
    if any("\0" in cell for cell in row.cells):
        return f"{where} holds a byte of zeros: {quote(row.cells)}; download the file again."
    if row.cells == header:
        return f"{where} repeats the header; remove it."
    if len(row.cells) != len(header):
        found = f"{len(row.cells)} cells where the header names {len(header)}: {quote(row.cells)}"
        return f"{found}; mend its quotes. ({where})"
    return ""
