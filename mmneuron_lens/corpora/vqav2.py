"""VQAv2 (common scenes), from visualqa.org: questions and annotations as JSON, images of COCO 2014.

v2_OpenEnded_mscoco_{split}2014_questions.json    {"questions": [{image_id, question, question_id}]}
v2_mscoco_{split}2014_annotations.json            {"annotations": [{question_id, image_id, question_type,
                                                   answer_type, multiple_choice_answer, answers: [{answer, ...}]}]}
{split}2014/COCO_{split}2014_{image_id:012}.jpg   split is train or val
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmneuron_lens.corpora.image_paths import image_file
from mmneuron_lens.corpora.lookup import Lookup
from mmneuron_lens.corpora.parts import Part, check_split
from mmneuron_lens.corpora.records import RawRecord, RecordProblems, columns, good, identity, name_of, text
from mmneuron_lens.corpora.rows import BadRow, bare, good_text, of_a_row, quote
from mmneuron_lens.corpora.sample import Sample
from mmneuron_lens.corpora.streams import json_records

SPLITS = ("train", "val")
PAGE = "https://visualqa.org/download.html"
QUESTIONS, ANNOTATIONS = (
    {
        split: Part((f"v2_{name.format(split)}.json", f"{split}/v2_{name.format(split)}.json"), holds, PAGE, (split,))
        for split in SPLITS
    }
    for name, holds in (("OpenEnded_mscoco_{}2014_questions", "questions"), ("mscoco_{}2014_annotations", "answers"))
)
IMAGES = {
    split: Part((f"{split}2014", f"images/{split}2014"), "COCO images", PAGE, (split,), f"{split}2014.zip")
    for split in SPLITS
}
PARTS = (*QUESTIONS.values(), *ANNOTATIONS.values(), *IMAGES.values())


def read(folder: Path, split: str, problems: RecordProblems) -> Iterator[Sample]:
    """Samples in the order of the questions' file; what is wrong with others goes into `problems`.

    `answers` are the ten human answers in published order, as the official accuracy needs them; `kind` is the
    answer type (yes/no, number, other). Raises `CorpusError` for a split or file that is not there.
    """
    check_split("VQAv2", split, SPLITS)
    questions, annotations = QUESTIONS[split].require(folder), ANNOTATIONS[split].require(folder)
    images = IMAGES[split].require(folder)
    with Lookup() as answers:
        for record in json_records(annotations, "annotations", problems):
            _keep_answers(record, answers, problems)

        def make(question: dict[str, Any]) -> Sample:
            found = answers.get(key := identity(question, "question_id"))
            if found is None:
                raise BadRow(f"question_id {bare(key)} has no good record in {annotations.name}; remove the question.")
            number = identity(question, "image_id")
            if str(found["image_id"]) != number:
                other = bare(str(found["image_id"]))
                raise BadRow(f"image_id {bare(number)} is {other} in {annotations.name}; download both again.")
            image = image_file(images, [f"COCO_{split}2014_{number.zfill(12)}.jpg"])
            return sample_of(question | found, (image,))

        yield from good(json_records(questions, "questions", problems), problems, make, "question_id")


def sample_of(record: dict[str, Any], images: tuple[Path, ...]) -> Sample:
    """A question joined with its annotation, as a sample. Raises `BadRow` when something is wrong with it."""
    return Sample(
        id=identity(record, "question_id"),
        domain="common",
        images=images,
        question=text(record, "question"),
        answers=human_answers(record),
        kind=text(record, "answer_type"),
    )


def human_answers(record: dict[str, Any]) -> tuple[str, ...]:
    """The texts of an annotation's answers, in order. Raises `BadRow` when there are none."""
    answers = record.get("answers")
    if not isinstance(answers, list) or not answers or not all(isinstance(one, dict) for one in answers):
        raise BadRow(f"answers {quote(answers)} is no list of objects; compare with the published file.")
    # An annotator may have left the field empty; that is an answer nobody will match, and the ten stay ten.
    return tuple(good_text("answer", one.get("answer"), empty=True) for one in answers)


def _keep_answers(record: RawRecord, answers: Lookup, problems: RecordProblems) -> None:
    try:
        with of_a_row():
            row = columns(record.value)
            key = identity(row, "question_id")
            human_answers(row)
            new = answers.put(key, {name: row.get(name) for name in ("answers", "answer_type", "image_id")})
        if not new:
            raise BadRow(f"question_id {bare(key)} is annotated twice; remove one of the two.")
    except BadRow as error:
        problems.add_record(record, name_of(record.value, "question_id"), str(error))
