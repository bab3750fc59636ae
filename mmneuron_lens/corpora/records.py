"""Records of published corpora to samples: columns read, bad records named, counted and skipped.

Nothing here holds more than one record at a time; ids are kept on disk, see `Lookup`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from mmneuron_lens.corpora.folder import Problem, Problems
from mmneuron_lens.corpora.json_bounds import OutOfBounds
from mmneuron_lens.corpora.lookup import Lookup
from mmneuron_lens.corpora.rows import SHOWN, BadRow, bare, good_text, identity_text, of_a_row, quote, whole_number
from mmneuron_lens.corpora.sample import Sample

KEPT = 1000
"""Bad records whose reason is kept; the others are only counted, so that memory stays bounded."""


class RawRecord(NamedTuple):
    """One record of a file, with its number, from 1."""

    file: Path
    number: int
    value: Any


@dataclass(frozen=True)
class BadRecord(Problem):
    """One record that is skipped; `name` is how it is found again: its number or its id."""

    name: str = ""

    def __str__(self) -> str:
        return f"{self.file}, {self.name}: {self.says}"


@dataclass(eq=False)
class RecordProblems(Problems):
    """The records of published corpora that are skipped: all counted, the first `KEPT` named.

    `file` is the folder of the corpus, or of all of them. Unlike `Problems` it keeps nothing about good records.
    `unread` says which parts of files were not read, since a file is damaged there: nobody knows how many records.
    """

    count: int = 0
    unread: list[str] = field(default_factory=list[str])
    reported: set[tuple[str, str]] = field(default_factory=set, repr=False)

    def add_record(self, record: RawRecord, identity: str, says: str) -> None:
        """Names and counts a record that cannot be read."""
        name = f"record {record.number}" + (f" ({identity})" if identity else "")
        self.keep(BadRecord(record.file, record.number, says, name))

    def add_sample(self, sample: Sample, says: str) -> None:
        """Names and counts a sample that turned out bad when it was used; once, however often it is."""
        if (sample.domain, sample.id) not in self.reported:
            self.reported.add((sample.domain, sample.id))
            self.keep(BadRecord(self.file, 0, says, f"{sample.domain} question {bare(sample.id)}"))

    def keep(self, problem: BadRecord) -> None:
        """Counts a bad record, and names it unless `KEPT` are named already."""
        self.count += 1
        if len(self.found) < KEPT:
            self.found.append(problem)

    def __len__(self) -> int:
        return self.count

    def __str__(self) -> str:
        counted = f"{self.count} of {self.rows} records skipped"
        more = [f"and {self.count - len(self.found)} more"] if self.count > len(self.found) else []
        listed = [f"{counted}:", *map(str, self.found), *more] if self.count else [f"{counted}."]
        return "\n".join([*listed, *self.unread])


def good(
    records: Iterable[RawRecord],
    problems: RecordProblems,
    make: Callable[[dict[str, Any]], Sample],
    id_column: str = "",
) -> Iterator[Sample]:
    """The samples of records, one at a time.

    - make: a record's columns to a sample; a record for which it raises `BadRow`, or whose id came before, is named.
    - problems: where it is named.
    - id_column: by which it is found again.
    """
    with Lookup() as seen:
        for record in records:
            problems.rows += 1
            try:
                with of_a_row():
                    sample = make(columns(record.value))
                if not seen.put(sample.id, record.number):
                    says = f"is that of record {seen.get(sample.id)} too; remove one of the two."
                    raise BadRow(f"id {bare(sample.id)} {says}")
            except BadRow as error:
                problems.add_record(record, name_of(record.value, id_column), str(error))
                continue
            yield sample


def name_of(value: Any, id_column: str) -> str:
    """`column id` of a record that has one, to find it again by."""
    known = isinstance(value, dict) and value.get(id_column) is not None
    return f"{id_column} {quote(value[id_column])}" if known else ""


def text(record: dict[str, Any], *columns: str) -> str:
    """The text in the first of these columns that a record has. Raises `BadRow` when none is there, or it is empty."""
    return good_text(*cell(record, *columns))


def cell(record: dict[str, Any], *columns: str) -> tuple[str, Any]:
    """Name and value of the first of these columns that a record has. Raises `BadRow` naming those it has."""
    for column in columns:
        if column in record:
            return column, record[column]
    names = quote(", ".join(str(name)[:SHOWN] for name in islice(record, SHOWN)))
    raise BadRow(f"no column {' or '.join(map(repr, columns))} among {names}; compare with the published file.")


def identity(record: dict[str, Any], *columns: str) -> str:
    """A whole number or text that names a record. Raises `BadRow` when it is neither."""
    column, value = cell(record, *columns)
    if isinstance(value, int) and not isinstance(value, bool):
        return whole_number(column, value)
    return identity_text(column, value)


def columns(value: Any) -> dict[str, Any]:
    """A record that is an object, by column. Raises `BadRow` for any other."""
    if isinstance(value, OutOfBounds):
        raise BadRow(f"it is {value}; compare with the published file.")
    if not isinstance(value, dict):
        raise BadRow(f"{quote(value)} is no object with columns; download the file again.")
    return value
