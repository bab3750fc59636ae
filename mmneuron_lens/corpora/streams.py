"""Records of JSON, CSV and parquet files, one at a time: what cannot be read is named and the next one is given."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from mmneuron_lens.corpora.folder import CorpusError
from mmneuron_lens.corpora.records import RawRecord, RecordProblems
from mmneuron_lens.corpora.rows import bare, quote

CHUNK = 1024
"""Rows of a parquet file that are decoded at once."""


def json_records(file: Path, key: str, problems: RecordProblems) -> Iterator[RawRecord]:
    """The records of the list `key` in a JSON object, streamed; a file that is cut off keeps its whole records."""
    import ijson

    number = 0
    try:
        with open(file, "rb") as stream:
            try:
                for number, value in enumerate(ijson.items(stream, f"{key}.item", use_float=True), start=1):
                    yield RawRecord(file, number, value)
            except (ijson.JSONError, UnicodeDecodeError) as error:
                # The quick parser cannot go on behind half a character written as an escape, or a number that does
                # not fit into 64 bits. The slow one gives them to the reader of the column, which names them.
                if isinstance(error, ijson.JSONError) and "overflow" not in str(error):
                    raise
                stream.seek(0)
                slow = ijson.get_backend("python").items(stream, f"{key}.item", use_float=True)
                for value in islice(slow, number, None):
                    number += 1
                    yield RawRecord(file, number, value)
    except (ijson.JSONError, ValueError, RecursionError) as error:
        says = bare(" ".join(str(error).split()))
        problems.add_record(
            RawRecord(file, number + 1, None), "", f"no complete JSON ({says}); download the file again."
        )
        return
    if number == 0:
        says = f"no list {key!r} with records in this file; it must be an object with that list."
        problems.add_record(RawRecord(file, 0, None), "", says)


def csv_records(file: Path, problems: RecordProblems) -> Iterator[RawRecord]:
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
                problems.add_record(
                    RawRecord(file, number, None), "", f"no CSV row ({error}); download the file again."
                )
                continue
            if not cells:
                number -= 1
            elif len(cells) != len(header):
                problems.rows += 1
                says = f"{len(cells)} cells where the header names {len(header)}: {quote(cells)}; mend its quotes."
                problems.add_record(RawRecord(file, number, None), "", says)
            else:
                yield RawRecord(file, number, dict(zip(header, cells, strict=True)))


def parquet_records(file: Path) -> Iterator[RawRecord]:
    """The rows of a parquet file, decoded `CHUNK` at a time. Raises `CorpusError` when it is no parquet file."""
    import polars

    number = 0
    try:
        for chunk in polars.scan_parquet(file).collect_batches(chunk_size=CHUNK, maintain_order=True):
            for value in chunk.iter_rows(named=True):
                number += 1
                yield RawRecord(file, number, value)
    except polars.exceptions.PolarsError as error:
        says = " ".join(str(error).split())[:200]
        raise CorpusError(f"{file} is no complete parquet file ({says}); download it again.") from error
