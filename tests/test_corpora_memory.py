"""Memory does not grow with a corpus: ten times the records, the same peak of Python's memory."""

from __future__ import annotations

import csv
import gc
import json
import tracemalloc
from pathlib import Path

import polars
import pytest

from mmneuron_lens.corpora import docvqa, lingoqa, pmc_vqa, rsvqa, streams, vqav2
from mmneuron_lens.corpora.records import RecordProblems

FEW, MANY = 150, 1500
ALLOWED = 500_000
"""Bytes that the peaks may differ by: Python keeps up to 2,000 tuples of each length for reuse, whatever is read."""


def image(folder: Path, name: str) -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(b"")


def write_vqav2(folder: Path, count: int):
    image(folder, "val2014/COCO_val2014_000000000001.jpg")
    answers = [{"answer": "yes", "answer_confidence": "maybe", "answer_id": number} for number in range(1, 11)]
    questions = [{"image_id": 1, "question": "Is it a question?", "question_id": number} for number in range(count)]
    notes = [{"question_id": n, "image_id": 1, "answer_type": "yes/no", "answers": answers} for n in range(count)]
    (folder / "v2_OpenEnded_mscoco_val2014_questions.json").write_text(json.dumps({"questions": questions}))
    (folder / "v2_mscoco_val2014_annotations.json").write_text(json.dumps({"annotations": notes}))
    return vqav2.read


def write_rsvqa(folder: Path, count: int):
    image(folder, "Data/0.tif")
    common = {"active": True, "date_added": 0.5, "people_id": 0}
    lists = {
        "images": [{"id": 0, "active": True}],
        "questions": [
            {"id": n, "img_id": 0, "type": "count", "question": "How many?", "answers_ids": [n], **common}
            for n in range(count)
        ],
        "answers": [{"id": n, "question_id": n, "answer": str(n), **common} for n in range(count)],
    }
    for name, listed in lists.items():
        (folder / f"USGS_split_val_{name}.json").write_text(json.dumps({name: listed}))
    return rsvqa.read


def write_docvqa(folder: Path, count: int):
    image(folder, "documents/a_1.png")
    listed = [
        {"questionId": n, "question": "What is the date?", "image": "documents/a_1.png", "answers": ["today"]}
        for n in range(count)
    ]
    (folder / "val_v1.0.json").write_text(json.dumps({"data": listed}))
    return docvqa.read


def write_pmc_vqa(folder: Path, count: int):
    image(folder, "images/a.jpg")
    with open(folder / "val.csv", "w", newline="") as file:
        header = ["Figure_path", "Question", "Answer", *(f"Choice {letter}" for letter in "ABCD"), "Answer_label"]
        rows = csv.writer(file)
        rows.writerow(header)
        rows.writerows(["a.jpg", "What?", "x", " A:x ", " B:y ", " C:z ", " D:w ", "A"] for _ in range(count))
    (folder / "val.csv").rename(folder / "test.csv")
    return lambda folder, split, problems: pmc_vqa.read(folder, "test", problems)


def write_lingoqa(folder: Path, count: int):
    image(folder, "evaluation/images/val/s/0.jpg")
    rows = [
        {"question_id": str(n // 2), "segment_id": "s", "images": ["images/val/s/0.jpg"], "question": "What?"}
        | {"answer": "A car ahead."}
        for n in range(count)
    ]
    polars.DataFrame(rows).write_parquet(folder / "evaluation" / "val.parquet")
    return lingoqa.read


WRITERS = {
    "vqav2": write_vqav2,
    "rsvqa": write_rsvqa,
    "docvqa": write_docvqa,
    "pmc_vqa": write_pmc_vqa,
    "lingoqa": write_lingoqa,
}


def peak(read, folder: Path, gather=lambda samples: sum(1 for _ in samples)) -> int:
    """Peak of Python's memory in bytes while a corpus is read through."""
    gc.collect()
    tracemalloc.start()
    try:
        problems = RecordProblems(folder)
        gather(read(folder, "val", problems))
        assert len(problems) == 0
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", WRITERS)
def test_ten_times_the_records_take_the_same_memory(tmp_path, monkeypatch, name):
    monkeypatch.setattr(streams, "CHUNK", 100)
    few, many = tmp_path / "few", tmp_path / "many"
    few.mkdir()
    many.mkdir()
    WRITERS[name](few, FEW)
    read = WRITERS[name](many, MANY)
    # Imports and the like.
    peak(read, few)
    base = peak(read, few)
    assert peak(read, many) - base < ALLOWED
    # The control: samples that are kept take more than is allowed.
    assert peak(read, many, list) - base > ALLOWED
