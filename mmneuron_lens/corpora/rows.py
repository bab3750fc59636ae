"""One row of a `questions.jsonl`: checked field by field, and a sample if all is well."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from interventions.errors import InvalidValue
from mmneuron_lens.corpora.sample import Sample

SHOWN = 100
"""Characters of a value that a problem quotes."""


class BadRow(InvalidValue):
    """What is wrong with one row, and the next step."""


@dataclass
class RowReader:
    """Reads rows of one corpus.

    - folder: holds its images; an absolute path without links.
    - domains: the names of domains that a row may have; None for any.
    - known: images that were found, by their names.
    """

    folder: Path
    domains: tuple[str, ...] | None
    known: dict[str, Path] = field(default_factory=dict)

    def sample(self, raw: bytes, number: int) -> Sample:
        """The sample of the line with this number. Raises `BadRow` naming the field, the value and the next step."""
        row = _object(raw)
        missing = [name for name in ("domain", "question", "answer") if name not in row]
        missing += [] if "image" in row or "images" in row else ["image"]
        if missing:
            raise BadRow(f"no {', '.join(missing)} in {quote(row)}; a row needs domain, image, question and answer.")
        if self.domains is not None and row["domain"] not in self.domains:
            raise BadRow(f"unknown domain {quote(row['domain'])}; choose from {', '.join(self.domains)}.")
        options = self._options(row)
        return Sample(
            id=_identity(row, number),
            domain=good_text("domain", row["domain"]),
            images=tuple(self._image(name) for name in _image_names(row)),
            question=good_text("question", row["question"]),
            answers=_answers(row["answer"], options),
            options=options,
            kind=good_text("kind", row["kind"], empty=True) if row.get("kind") is not None else "",
        )

    def _image(self, name: Any) -> Path:
        name = good_text("image", name)
        if name not in self.known:
            try:
                path = (self.folder / name).resolve()
                inside, exists = path.is_relative_to(self.folder), path.is_file()
            except (OSError, ValueError) as error:
                raise BadRow(f"image {quote(name)} is no path ({error}); give one relative to the folder.") from error
            if not inside:
                raise BadRow(f"image {quote(name)} lies outside the corpus; copy it into {self.folder.name}.")
            if not exists:
                raise BadRow(f"image {quote(name)} is missing; add the file, or correct its path from the folder.")
            self.known[name] = path
        return self.known[name]

    def _options(self, row: dict[str, Any]) -> tuple[str, ...]:
        options = row.get("options")
        if options is None:
            return ()
        good = isinstance(options, list) and all(isinstance(text, str) and text.strip() for text in options)
        if not good or not 2 <= len(options) <= 26:
            raise BadRow(f"options {quote(options)} are not 2 to 26 texts; list them without their letters.")
        return tuple(good_text("option", text) for text in options)


def _object(raw: bytes) -> dict[str, Any]:
    try:
        row = json.loads(raw.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        shown = quote(raw.decode("utf-8", "backslashreplace").strip())
        raise BadRow(f"not JSON ({error}): {shown}; write one object on one line, in UTF-8.") from error
    if not isinstance(row, dict):
        raise BadRow(f"{quote(row)} is no object; write {{...}} with domain, image, question and answer.")
    return row


def _image_names(row: dict[str, Any]) -> list[Any]:
    if "image" in row and "images" in row:
        raise BadRow(f"both image {quote(row['image'])} and images {quote(row['images'])}; keep one of the two.")
    if "image" in row:
        return [row["image"]]
    if not isinstance(row["images"], list) or not row["images"]:
        raise BadRow(f"images {quote(row['images'])} is no list of paths; give one path or more.")
    return row["images"]


def _identity(row: dict[str, Any], number: int) -> str:
    given = row.get("id")
    if given is None:
        return f"line-{number}"
    if isinstance(given, int) and not isinstance(given, bool):
        return whole_number("id", given)
    return good_text("id", given)


def _answers(answer: Any, options: tuple[str, ...]) -> tuple[str, ...]:
    answers = answer if isinstance(answer, list) else [answer]
    if not answers:
        raise BadRow("answer [] is empty; give a text, or a list of accepted ones.")
    texts = tuple(good_text("answer", one) for one in answers)
    letters = [chr(65 + index) for index in range(len(options))]
    if options and any(text.strip().upper() not in letters for text in texts):
        raise BadRow(f"answer {quote(answer)} is no letter of its options; give one of {', '.join(letters)}.")
    return tuple(text.strip().upper() for text in texts) if options else texts


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
