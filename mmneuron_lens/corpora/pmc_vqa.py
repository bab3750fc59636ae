"""PMC-VQA (medical figures), from huggingface.co/datasets/xmcmic/PMC-VQA: CSV files and folders of figures.

    version 1    {train,test,test_clean}.csv, images/     Figure_path,Question,Answer,Choice A..Choice D,Answer_label
    version 2    {train,test}_2.csv, figures/             index,Figure_path,Caption,Question,Choice A..Choice D,
                                                          Answer,split

A cell of a choice repeats its letter (" B:Focal uptake "), which is stripped. There is no validation split.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmneuron_lens.corpora.csv_records import csv_records
from mmneuron_lens.corpora.image_paths import image_file
from mmneuron_lens.corpora.parts import Part, check_split
from mmneuron_lens.corpora.records import RawRecord, RecordProblems, good, identity, text
from mmneuron_lens.corpora.rows import BadRow, quote
from mmneuron_lens.corpora.sample import Sample

SPLITS = ("train", "test", "test_clean")
PAGE = "https://huggingface.co/datasets/xmcmic/PMC-VQA"
VERSIONS = {
    1: {split: Part((f"{split}.csv",), f"questions of {split}, version 1", PAGE, (split,)) for split in SPLITS},
    2: {
        split: Part((f"{split}_2.csv", f"{split}2.csv"), f"questions of {split}, version 2", PAGE, (split,))
        for split in SPLITS[:2]
    },
}
IMAGES = {
    1: Part(("images", "figures"), "figures", PAGE, SPLITS, "images.zip"),
    2: Part(("figures", "images"), "figures of version 2", PAGE, SPLITS[:2], "images_2.zip"),
}
PARTS = (VERSIONS[1]["train"], VERSIONS[1]["test"], IMAGES[1])
"""What the paper's stages need; `parts_of` names those of version 2 where only that is there."""

LETTERS = "ABCD"


def parts_of(folder: Path) -> tuple[Part, ...]:
    """The parts of the version that lies in a folder."""
    if version_in(folder, "train") == 2:
        return (VERSIONS[2]["train"], VERSIONS[2]["test"], IMAGES[2])
    return PARTS


def version_in(folder: Path, split: str) -> int:
    """Version 1 where its file is there, or none is; else 2."""
    one, two = (VERSIONS[number].get(split) for number in (1, 2))
    return 2 if two and two.find(folder) and not (one and one.find(folder)) else 1


def read(folder: Path, split: str, problems: RecordProblems) -> Iterator[Sample]:
    """Samples in the order of the file; the answer is a letter, the options are texts without letters.

    Of two versions that are both there, the first is read. A question's id is its file's name and its row, from 1, in
    version 2 the file's own index. Raises `CorpusError` for a split or file that is not there.
    """
    check_split("PMC-VQA", split, SPLITS, " (it was published without a validation split)" if split == "val" else "")
    version = version_in(folder, split)
    file = VERSIONS[version][split].require(folder)
    figures = IMAGES[version].require(folder)

    def numbered() -> Iterator[RawRecord]:
        for record in csv_records(file, problems):
            yield record._replace(value={"row": f"{file.stem}-{record.number}", **record.value})

    def make(record: dict[str, Any]) -> Sample:
        return sample_of(record, (image_file(figures, [text(record, "Figure_path").strip()]),))

    yield from good(numbered(), problems, make, "Figure_path")


def sample_of(record: dict[str, Any], images: tuple[Path, ...]) -> Sample:
    """A row as a sample; its `row` is the id where it has no `index`. Raises `BadRow` when something is wrong."""
    row = text(record, "row")
    known = record.get("index") not in (None, "")
    return Sample(
        id=f"{row.rpartition('-')[0]}-{identity(record, 'index')}" if known else row,
        domain="medical",
        images=images,
        question=text(record, "Question").strip(),
        answers=(_letter(record),),
        options=tuple(_option(record, letter) for letter in LETTERS),
    )


def _option(record: dict[str, Any], letter: str) -> str:
    column = f"Choice {letter}"
    given = text(record, column)
    option = re.sub(rf"^\s*{letter}\s*:", "", given).strip()
    if not option:
        raise BadRow(f"{column} {quote(given)} is empty; fill it in, or remove the row.")
    return option


def _letter(record: dict[str, Any]) -> str:
    # Version 1 has the letter in Answer_label and the text in Answer, version 2 the letter in Answer.
    column = next((name for name in ("Answer_label", "Answer", "Anwser") if name in record), "Answer_label")
    letter = text(record, column).strip()
    if letter not in tuple(LETTERS):
        raise BadRow(f"{column} {quote(letter)} is no letter of an option; give one of A, B, C, D.")
    return letter
