"""What the readers of published corpora share: files found or asked for, records streamed, bad ones named and skipped.

Nothing here holds more than one record (of a parquet file one chunk) at a time; ids are kept on disk, see `Lookup`.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from mmneuron_lens.corpora.folder import CorpusError, Problem, Problems
from mmneuron_lens.corpora.lookup import Lookup
from mmneuron_lens.corpora.rows import BadRow, bare, good_text, quote, whole_number
from mmneuron_lens.corpora.sample import Sample

KEPT = 1000
"""Bad records whose reason is kept; the others are only counted, so that memory stays bounded."""

CHUNK = 1024
"""Rows of a parquet file that are decoded at once."""


@dataclass(frozen=True)
class Part:
    """A file or folder of a corpus as published: its possible names, what it holds, where to get it, for which splits.

    The first name that is there counts. `archive` is the file it comes packed in, "" if it comes as it is.
    """

    names: tuple[str, ...]
    holds: str
    source: str
    splits: tuple[str, ...]
    archive: str = ""

    def find(self, folder: Path) -> Path | None:
        return next((folder / name for name in self.names if (folder / name).exists()), None)

    def missing(self, folder: Path) -> str:
        """What to do about a part that is not there, in one line."""
        names = " or ".join(self.names)
        if self.archive and (packed := next(folder.rglob(self.archive), None)):
            return f"{folder}: no {names} ({self.holds}); unpack {packed.relative_to(folder)}."
        packed = f" ({self.archive}, unpacked)" if self.archive else ""
        return f"{folder}: no {names} ({self.holds}); get it{packed} from {self.source}."

    def require(self, folder: Path) -> Path:
        """Where it lies. Raises `CorpusError` with what to do when it is not there."""
        found = self.find(folder)
        if found is None:
            raise CorpusError(self.missing(folder))
        return found


class Record(NamedTuple):
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
    """The records of one published corpus that are skipped: all counted, the first `KEPT` named.

    `file` is the corpus's folder. Unlike `Problems` it keeps nothing about good records.
    """

    count: int = 0
    reported: set[str] = field(default_factory=set, repr=False)

    def add_record(self, record: Record, identity: str, says: str) -> None:
        """Names and counts a record that cannot be read."""
        name = f"record {record.number}" + (f" ({identity})" if identity else "")
        self._keep(BadRecord(record.file, record.number, says, name))

    def add_sample(self, sample: Sample, says: str) -> None:
        """Names and counts a sample that turned out bad when it was used; once, however often it is."""
        if sample.id not in self.reported:
            self.reported.add(sample.id)
            self._keep(BadRecord(self.file, 0, says, f"{sample.domain} question {bare(sample.id)}"))

    def _keep(self, problem: BadRecord) -> None:
        self.count += 1
        if len(self.found) < KEPT:
            self.found.append(problem)

    def __len__(self) -> int:
        return self.count

    def __str__(self) -> str:
        counted = f"{self.count} of {self.rows} records skipped"
        if not self.count:
            return f"{counted}."
        more = [f"and {self.count - len(self.found)} more"] if self.count > len(self.found) else []
        return "\n".join([f"{counted}:", *map(str, self.found), *more])


def good(
    records: Iterable[Record], problems: RecordProblems, make: Callable[[dict[str, Any]], Sample], id_column: str = ""
) -> Iterator[Sample]:
    """The samples that `make` makes of records, one at a time; what raises `BadRow`, or repeats an id, is named."""
    with Lookup() as seen:
        for record in records:
            problems.rows += 1
            try:
                sample = make(_object(record.value))
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


def json_records(file: Path, key: str, problems: RecordProblems) -> Iterator[Record]:
    """The records of the list `key` in a JSON object, streamed; a file that is cut off keeps its whole records."""
    import ijson

    number = 0
    try:
        with open(file, "rb") as stream:
            try:
                for number, value in enumerate(ijson.items(stream, f"{key}.item", use_float=True), start=1):
                    yield Record(file, number, value)
            except (ijson.JSONError, UnicodeDecodeError) as error:
                # The quick parser cannot go on behind half a character written as an escape, or a number that does
                # not fit into 64 bits. The slow one gives them to the reader of the column, which names them.
                if isinstance(error, ijson.JSONError) and "overflow" not in str(error):
                    raise
                stream.seek(0)
                slow = ijson.get_backend("python").items(stream, f"{key}.item", use_float=True)
                for value in islice(slow, number, None):
                    number += 1
                    yield Record(file, number, value)
    except (ijson.JSONError, ValueError, RecursionError) as error:
        says = bare(" ".join(str(error).split()))
        problems.add_record(Record(file, number + 1, None), "", f"no complete JSON ({says}); download the file again.")
        return
    if number == 0:
        says = f"no list {key!r} with records in this file; it must be an object with that list."
        problems.add_record(Record(file, 0, None), "", says)


def csv_records(file: Path, problems: RecordProblems) -> Iterator[Record]:
    """The rows of a CSV file with a header, streamed; a row with too many or too few cells is named and skipped."""
    # Bytes that are not UTF-8 become half characters, which the reader of a cell names.
    with open(file, encoding="utf-8-sig", errors="surrogateescape", newline="") as stream:
        rows = csv.reader(stream)
        header = next(rows, [])
        number = 0
        while True:
            number += 1
            try:
                cells = next(rows)
            except StopIteration:
                return
            except csv.Error as error:
                problems.rows += 1
                problems.add_record(Record(file, number, None), "", f"no CSV row ({error}); download the file again.")
                continue
            if not cells:
                number -= 1
            elif len(cells) != len(header):
                problems.rows += 1
                says = f"{len(cells)} cells where the header names {len(header)}: {quote(cells)}; mend its quotes."
                problems.add_record(Record(file, number, None), "", says)
            else:
                yield Record(file, number, dict(zip(header, cells, strict=True)))


def parquet_records(file: Path) -> Iterator[Record]:
    """The rows of a parquet file, decoded `CHUNK` at a time. Raises `CorpusError` when it is no parquet file."""
    import polars

    number = 0
    try:
        for chunk in polars.scan_parquet(file).collect_batches(chunk_size=CHUNK, maintain_order=True):
            for value in chunk.iter_rows(named=True):
                number += 1
                yield Record(file, number, value)
    except polars.exceptions.PolarsError as error:
        says = " ".join(str(error).split())[:200]
        raise CorpusError(f"{file} is no complete parquet file ({says}); download it again.") from error


def text(record: dict[str, Any], *columns: str) -> str:
    """The text in the first of these columns that a record has. Raises `BadRow` when none is there, or it is empty."""
    return good_text(*cell(record, *columns))


def cell(record: dict[str, Any], *columns: str) -> tuple[str, Any]:
    """Name and value of the first of these columns that a record has. Raises `BadRow` naming those it has."""
    for column in columns:
        if column in record:
            return column, record[column]
    names = quote(", ".join(map(str, record)))
    raise BadRow(f"no column {' or '.join(map(repr, columns))} among {names}; compare with the published file.")


def identity(record: dict[str, Any], *columns: str) -> str:
    """A whole number or text that names a record. Raises `BadRow` when it is neither."""
    column, value = cell(record, *columns)
    if isinstance(value, int) and not isinstance(value, bool):
        return whole_number(column, value)
    return good_text(column, value)


def image_file(folder: Path, names: Sequence[str]) -> Path:
    """The first of these paths, relative to a folder, that is a file. Raises `BadRow` naming the first if none is."""
    for name in names:
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or "\0" in name:
            raise BadRow(f"image {quote(name)} lies outside {folder.name}; its path must be relative to the folder.")
        # Unlike `Path.is_file`, this also holds for a name that is too long for a file.
        if os.path.isfile(folder / path):
            return folder / path
    others = f" (nor {bare(', '.join(names[1:]))})" if len(names) > 1 else ""
    raise BadRow(f"image {quote(names[0])} is missing in {folder}{others}; unpack all images, or remove the record.")


def _object(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise BadRow(f"{quote(value)} is no object with columns; download the file again.")
    return value


def check_split(corpus: str, split: str, splits: Sequence[str], why: str = "") -> None:
    """Raises `CorpusError` naming the splits of a corpus when it has no such one."""
    if split not in splits:
        raise CorpusError(f"{corpus} has no split {split!r}{why}; choose from {', '.join(splits)}.")
