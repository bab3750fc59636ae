"""LingoQA (auto driving), from github.com/wayveai/LingoQA: parquet files, five frames a segment.

    {scenery,action}/train.parquet, evaluation/val.parquet
        question_id, segment_id, images (paths relative to the parquet's folder), question, answer

`val` has 1,000 rows for 500 questions: each question stands twice, with two reference answers.

A sample keeps all five frames. What a model is shown of them is decided when it is asked (`batching.frames`, in every
stage alike): a model of LLaVA's family as many evenly spaced frames as fit beside 512 new tokens, InstructBLIP the
middle one; or, with frames "strip", all five side by side as one image, as the paper's code does.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypedDict

from mmneuron_lens.corpora.image_paths import image_file
from mmneuron_lens.corpora.lookup import Lookup
from mmneuron_lens.corpora.parts import Part, check_split
from mmneuron_lens.corpora.records import RawRecord, RecordProblems, identity, name_of, text
from mmneuron_lens.corpora.rows import BadRow, bare, good_text, of_a_row, quote
from mmneuron_lens.corpora.sample import Sample
from mmneuron_lens.corpora.streams import parquet_records

SPLITS = ("train", "val")
PAGE = "https://github.com/wayveai/LingoQA"
FILES = {
    "train": tuple(
        Part((f"{part}/train.parquet",), f"questions of train ({part})", PAGE, ("train",))
        for part in ("scenery", "action")
    ),
    "val": (Part(("evaluation/val.parquet",), "questions of val", PAGE, ("val",)),),
}
IMAGES = tuple(
    Part((f"{part}/images",), f"frames of {part}", PAGE, (split,), "images.zip")
    for part, split in (("scenery", "train"), ("action", "train"), ("evaluation", "val"))
)
PARTS = (*FILES["train"], *FILES["val"], *IMAGES)


class GatheredQuestion(TypedDict):
    """A question as its rows tell it, gathered; `record` is the number of the first of them."""

    segment_id: str
    question: str
    images: list[str]
    answers: list[str]
    record: int


def read(folder: Path, split: str, problems: RecordProblems) -> Iterator[Sample]:
    """One sample a question, with its frames in order and all its reference answers, in order of first appearance.

    All rows are read, their answers gathered on disk, before the first sample comes. Raises `CorpusError` for a split
    or file that is not there.
    """
    check_split("LingoQA", split, SPLITS)
    files = [part.require(folder) for part in FILES[split]]
    yield from gathered(records_of(files), problems)


def records_of(files: Iterable[Path]) -> Iterator[RawRecord]:
    """Rows of several files, their `images` made paths of the frames' files."""
    for file in files:
        for record in parquet_records(file):
            try:
                with of_a_row():
                    frames = {"images": [str(image_file(file.parent, [name])) for name in _frames(record.value)]}
            except BadRow as error:
                frames = {"bad": str(error)}
            yield record._replace(value=record.value | frames)


def gathered(records: Iterable[RawRecord], problems: RecordProblems) -> Iterator[Sample]:
    """One sample for all rows of a question_id. A row that repeats an id with another question is named and skipped."""
    with Lookup() as questions:
        for record in records:
            problems.rows += 1
            try:
                with of_a_row():
                    _gather(record, questions)
            except BadRow as error:
                problems.add_record(record, name_of(record.value, "question_id"), str(error))
        for key, found in questions.items():
            yield Sample(
                id=key,
                domain="auto_driving",
                images=tuple(map(Path, found["images"])),
                question=found["question"],
                answers=tuple(found["answers"]),
            )


def _gather(record: RawRecord, questions: Lookup) -> None:
    row: dict[str, Any] = record.value
    if "bad" in row:
        raise BadRow(row["bad"])
    key, answer = identity(row, "question_id"), text(row, "answer")
    asked: GatheredQuestion = {
        "segment_id": text(row, "segment_id"),
        "question": text(row, "question"),
        "images": row["images"],
        "answers": [answer],
        "record": record.number,
    }
    if questions.put(key, asked):
        return
    known: GatheredQuestion = questions.get(key)
    if any(known[name] != asked[name] for name in ("segment_id", "question", "images")):
        raise BadRow(f"question_id {bare(key)} is another question in record {known['record']}; give each its own.")
    known["answers"].append(answer)
    questions.replace(key, known)


def _frames(row: dict[str, Any]) -> list[str]:
    images = row.get("images")
    if not isinstance(images, list) or not images:
        raise BadRow(f"images {quote(images)} is no list of paths; compare with the published file.")
    return [good_text("image", name) for name in images]
