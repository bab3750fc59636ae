"""One row of a `questions.jsonl`: checked field by field, and a sample if all is well."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmneuron_lens.corpora.image_paths import image_file
from mmneuron_lens.corpora.json_bounds import OutOfBounds, parsed
from mmneuron_lens.corpora.rows import SHOWN, BadRow, good_text, identity_text, quote, whole_number
from mmneuron_lens.corpora.sample import Sample

ONE = "write each on a line of its own"


@dataclass
class RowReader:
    """Reads rows of one corpus.

    - folder: holds its images.
    - known: images that were found, by their names.
    """

    folder: Path
    known: dict[str, Path] = field(default_factory=dict)

    def sample(self, line: str, number: int) -> Sample:
        """The sample of the line with this number. Raises `BadRow` naming the field, the value and the next step."""
        row = _object(line)
        missing = [name for name in ("domain", "question", "answer") if name not in row]
        missing += [] if "image" in row or "images" in row else ["image"]
        if "image" in missing and (video := next((row[name] for name in ("video", "videos") if name in row), None)):
            raise BadRow(f"video {quote(video)} is not read; save the frames that are asked about as images.")
        if missing:
            raise BadRow(f"no {', '.join(missing)} in {quote(row)}; a row needs domain, image, question and answer.")
        options = self._options(row)
        return Sample(
            id=_identity(row, number),
            domain=_domain(row["domain"]),
            images=tuple(self._image(name) for name in _image_names(row)),
            question=good_text("question", row["question"]),
            answers=_answers(row["answer"], options),
            options=options,
            kind=good_text("kind", row["kind"], empty=True) if row.get("kind") is not None else "",
        )

    def _image(self, name: Any) -> Path:
        name = good_text("image", name)
        if name not in self.known:
            advice = "add the file, or correct its path from the folder"
            self.known[name] = image_file(self.folder, [name], "the corpus", advice)
        return self.known[name]

    def _options(self, row: dict[str, Any]) -> tuple[str, ...]:
        options = row.get("options")
        if options is None:
            return ()
        good = isinstance(options, list) and all(isinstance(text, str) and text.strip() for text in options)
        if not good or not 2 <= len(options) <= 26:
            raise BadRow(f"options {quote(options)} are not 2 to 26 texts; list them without their letters.")
        return tuple(good_text("option", text) for text in options)


def _object(line: str) -> dict[str, Any]:
    try:
        # Bytes that are not UTF-8 come as half characters; this names the first of them.
        row = parsed(line if line.isascii() else line.encode("utf-8", "surrogateescape").decode("utf-8-sig"))
    except ValueError as error:
        if not isinstance(error, OutOfBounds) and (together := len(_objects(line))) > 1:
            raise BadRow(f"{together} objects where one stands on a line: {_shown(line)}; {ONE}.", together) from error
        raise BadRow(f"not JSON ({error}): {_shown(line)}; write one object on one line, in UTF-8.") from error
    if isinstance(row, dict):
        return row
    together = len(row) if isinstance(row, list) and row and all(isinstance(one, dict) for one in row) else 1
    if together > 1:
        raise BadRow(f"a list of {together} objects: {_shown(line)}; {ONE}.", together)
    raise BadRow(f"{quote(row)} is no object; write {{...}} with domain, image, question and answer.")


def _objects(line: str) -> list[Any]:
    """The objects that stand on a line one after the other, up to what is none."""
    decoder, found, rest = json.JSONDecoder(), list[Any](), line.strip()
    while rest.startswith("{"):
        try:
            value, end = decoder.raw_decode(rest)
        except ValueError:
            break
        found.append(value)
        rest = rest[end:].lstrip(" \t,")
    return found


def _shown(line: str) -> str:
    line = line.strip()[: 2 * SHOWN]
    return quote(line.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace"))


def _domain(value: Any) -> str:
    domain = identity_text("domain", value)
    if not domain.isprintable():
        raise BadRow(f"domain {quote(domain)} holds a character that cannot be printed; it names tables and files.")
    return domain


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
    return identity_text("id", given)


def _answers(answer: Any, options: tuple[str, ...]) -> tuple[str, ...]:
    answers = answer if isinstance(answer, list) else [answer]
    if not answers:
        raise BadRow("answer [] is empty; give a text, or a list of accepted ones.")
    texts = tuple(good_text("answer", one) for one in answers)
    letters = [chr(65 + index) for index in range(len(options))]
    if options and any(text.strip().upper() not in letters for text in texts):
        raise BadRow(f"answer {quote(answer)} is no letter of its options; give one of {', '.join(letters)}.")
    return tuple(text.strip().upper() for text in texts) if options else texts
