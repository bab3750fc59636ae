"""DocVQA (documents), from rrc.cvc.uab.es (task 1): one JSON file a split, page images as PNG.

{split}_v1.0.json, with or without the prefix docvqa_ or the suffix _withQT
    {"data": [{questionId, question, question_types, image: "documents/xxxx_n.png", docId, answers: [...]}]}
documents/xxxx_n.png    beside the JSON file, or in {split}/documents or spdocvqa_images
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmneuron_lens.corpora.image_paths import image_file
from mmneuron_lens.corpora.parts import Part, check_split
from mmneuron_lens.corpora.records import RecordProblems, good, identity, text
from mmneuron_lens.corpora.rows import BadRow, good_text, quote
from mmneuron_lens.corpora.sample import Sample
from mmneuron_lens.corpora.streams import json_records

SPLITS = ("train", "val", "test")
PAGE = "https://rrc.cvc.uab.es/?ch=17&com=downloads"
PLACES = ("", "{}/", "spdocvqa_qas/")
FILES = ("docvqa_{}_v1.0.json", "{}_v1.0_withQT.json", "{}_v1.0.json")
QUESTIONS = {
    split: Part(
        tuple(place.format(split) + name.format(split) for place in PLACES for name in FILES),
        f"questions of {split}",
        PAGE,
        (split,),
    )
    for split in SPLITS
}
IMAGES = {
    split: Part(("documents", f"{split}/documents", "spdocvqa_images"), f"page images of {split}", PAGE, (split,))
    for split in SPLITS
}
PARTS = tuple(part for split in SPLITS[:2] for part in (QUESTIONS[split], IMAGES[split]))
"""What the paper's stages need: the test split has no answers."""


def read(folder: Path, split: str, problems: RecordProblems) -> Iterator[Sample]:
    """Samples in the order of the file, with all accepted answers; those of the test split have none.

    `kind` is the question's types joined by commas, where the file has them. Raises `CorpusError` for a split or
    file that is not there.
    """
    check_split("DocVQA", split, SPLITS)
    file = QUESTIONS[split].require(folder)
    pages = IMAGES[split].require(folder)

    def make(record: dict[str, Any]) -> Sample:
        name = text(record, "image")
        return sample_of(record, (image_file(pages, [name.removeprefix("documents/")]),), split != "test")

    yield from good(json_records(file, "data", problems), problems, make, "questionId")


def sample_of(record: dict[str, Any], images: tuple[Path, ...], answered: bool = True) -> Sample:
    """A record as a sample; `answered`: must it have answers? Raises `BadRow` when something is wrong with it."""
    return Sample(
        id=identity(record, "questionId"),
        domain="document",
        images=images,
        question=text(record, "question"),
        answers=_answers(record) if answered else (),
        kind=", ".join(good_text("question type", one) for one in _listed(record.get("question_types"))),
    )


def _listed(kinds: Any) -> list[Any]:
    return kinds if isinstance(kinds, list) else [] if kinds in (None, "") else [kinds]


def _answers(record: dict[str, Any]) -> tuple[str, ...]:
    answers = record.get("answers")
    if not isinstance(answers, list) or not answers:
        raise BadRow(f"answers {quote(answers)} is no list of accepted answers; compare with the published file.")
    return tuple(good_text("answer", one) for one in answers)
