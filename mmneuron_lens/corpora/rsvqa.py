"""RSVQA-HR (remote sensing), from rsvqa.sylvainlobry.com: three JSON files a split, images in Data/.

    USGS_split_{split}_questions.json    {"questions": [{id, img_id, type, question, answers_ids, active}]}
    USGS_split_{split}_answers.json      {"answers": [{id, question_id, answer, active}]}
    USGS_split_{split}_images.json       {"images": [{id, active, ...}]}
    Data/{img_id}.tif                    or .png; split is train, val, test or test_phili

Files of a split keep a placeholder {"id", "active": false} for each record of the other splits; it is no record.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmneuron_lens.corpora.image_paths import image_file
from mmneuron_lens.corpora.lookup import Lookup
from mmneuron_lens.corpora.parts import Part, check_split
from mmneuron_lens.corpora.records import RawRecord, RecordProblems, columns, good, identity, name_of, text
from mmneuron_lens.corpora.rows import BadRow, bare, of_a_row, quote
from mmneuron_lens.corpora.sample import Sample
from mmneuron_lens.corpora.streams import json_records

SPLITS = ("train", "val", "test", "test_phili")
PAGE = "https://rsvqa.sylvainlobry.com"
FILES = {
    (split, what): Part((f"USGS_split_{split}_{what}.json",), f"{what} of {split}", PAGE, (split,))
    for split in SPLITS
    for what in ("questions", "answers", "images")
}
IMAGES = Part(("Data",), "aerial images", PAGE, SPLITS, "Images.tar")
PARTS = (*(part for (split, _), part in FILES.items() if split in ("train", "val")), IMAGES)
ENDINGS = (".tif", ".png")


def read(folder: Path, split: str, problems: RecordProblems) -> Iterator[Sample]:
    """Samples in the order of the questions' file. `kind` is presence, comp, count or area.

    Answers are as published: an area is "123m2", which the official score puts into intervals. Raises `CorpusError`
    for a split or file that is not there.
    """
    check_split("RSVQA-HR", split, SPLITS)
    files = {what: FILES[split, what].require(folder) for what in ("questions", "answers", "images")}
    data = IMAGES.require(folder)
    with Lookup() as answers, Lookup() as images:
        for record in _active(files["answers"], "answers", problems):
            _keep(record, answers, problems, "answer")
        for record in _active(files["images"], "images", problems):
            _keep(record, images, problems)

        def make(question: dict[str, Any]) -> Sample:
            number = identity(question, "img_id")
            if images.get(number) is None:
                raise BadRow(f"img_id {bare(number)} is not among the active images of {files['images'].name}.")
            image = image_file(data, [number + ending for ending in ENDINGS])
            found = [_known(answers, one, files["answers"]) for one in _answer_ids(question)]
            return sample_of(question | {"answers": found}, (image,))

        yield from good(_active(files["questions"], "questions", problems), problems, make, "id")


def sample_of(record: dict[str, Any], images: tuple[Path, ...]) -> Sample:
    """A question with its `answers` (texts) as a sample. Raises `BadRow` when something is wrong with it."""
    return Sample(
        id=identity(record, "id"),
        domain="remote_sensing",
        images=images,
        question=text(record, "question"),
        answers=tuple(record["answers"]),
        kind=text(record, "type"),
    )


def _active(file: Path, key: str, problems: RecordProblems) -> Iterator[RawRecord]:
    for record in json_records(file, key, problems):
        if not (isinstance(record.value, dict) and record.value.get("active") is False):
            yield record


def _keep(record: RawRecord, found: Lookup, problems: RecordProblems, column: str = "") -> None:
    try:
        with of_a_row():
            row = columns(record.value)
            value = text(row, column) if column else True
            new = found.put(key := identity(row, "id"), value)
        if not new:
            raise BadRow(f"id {bare(key)} is there twice; remove one of the two.")
    except BadRow as error:
        problems.add_record(record, name_of(record.value, "id"), str(error))


def _answer_ids(question: dict[str, Any]) -> list[str]:
    given = question.get("answers_ids")
    if not isinstance(given, list) or not given:
        raise BadRow(f"answers_ids {quote(given)} is no list of ids; compare with the published file.")
    return [identity({"answers_ids": one}, "answers_ids") for one in given]


def _known(answers: Lookup, key: str, file: Path) -> str:
    found = answers.get(key)
    if found is None:
        raise BadRow(f"answer id {bare(key)} is not among the active answers of {file.name}; remove the question.")
    return found
