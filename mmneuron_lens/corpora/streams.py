"""Records of JSON and parquet files, one at a time: what cannot be read is named."""

from __future__ import annotations

from codecs import BOM_UTF8
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from mmneuron_lens.corpora.json_bounds import DEEP, LONG, Bounded, OutOfBounds, Readable, half_characters, within_bounds
from mmneuron_lens.corpora.json_damage import RepairedJson, json_damage
from mmneuron_lens.corpora.records import RawRecord, RecordProblems
from mmneuron_lens.corpora.rows import CorpusError, bare
from mmneuron_lens.corpora.text_files import open_text

CHUNK = 1024
"""Rows of a parquet file that are decoded at once."""


def json_records(file: Path, key: str, problems: RecordProblems) -> Iterator[RawRecord]:
    """The records of the list `key` in a JSON object, streamed; of a damaged file, those before the damage.

    Raises `CorpusError` for a file in another encoding than UTF-8.
    """
    import ijson

    number, parser = 0, ijson
    open_text(file).close()
    try:
        with open(file, "rb") as stream:
            start = len(BOM_UTF8) if stream.read(len(BOM_UTF8)) == BOM_UTF8 else 0
            stream.seek(start)
            bounded = _as_it_is if within_bounds(stream) else Bounded
            stream.seek(start)
            parser = ijson.get_backend("python") if half_characters(stream) else parser
            stream.seek(start)
            try:
                for number, value in enumerate(parser.items(bounded(stream), f"{key}.item", use_float=True), start=1):
                    yield RawRecord(file, number, _found(value))
            except (ijson.JSONError, UnicodeDecodeError) as error:
                # The quick parser cannot go on behind a byte that is not UTF-8, half a character written as an escape,
                # or a number that does not fit into 64 bits. The slow one gives them to the reader of the column,
                # which names them.
                if isinstance(error, ijson.JSONError) and not any(one in str(error) for one in ("overflow", "UTF8")):
                    raise
                parser = ijson.get_backend("python")
                with RepairedJson(file) as repaired:
                    items = parser.items(bounded(repaired), f"{key}.item", use_float=True)
                    for value in islice(items, number, None):
                        number += 1
                        yield RawRecord(file, number, _found(value))
    except (ijson.JSONError, ValueError, RecursionError) as error:
        says, place = bare(" ".join(str(error).split())), json_damage(file, parser)
        problems.unread.append(f"{file} is not read from record {number + 1} on: it is damaged at {place}.")
        says = f"no complete JSON ({says}) at {place}; download the file again."
        problems.add_record(RawRecord(file, number + 1, None), "", says)
        return
    if number == 0:
        says = f"no list {key!r} with records in this file; it must be an object with that list."
        problems.add_record(RawRecord(file, 0, None), "", says)


def _found(value: Any) -> Any:
    """A record, or what stands in its place where it is out of bounds."""
    return OutOfBounds(value) if value in (DEEP, LONG) else value


def _as_it_is(stream: Readable) -> Readable:
    return stream


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
