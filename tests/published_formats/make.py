"""Writes the five corpora of the paper, small, in the files and columns their authors publish, from our own images.

    python -m published_formats.make FOLDER [--images 4]        (with tests/ on the path)

Each function writes one corpus and returns the folder. Images are drawings of `mmneuron_lens.embedded.corpus`, the same
for the same arguments.
"""

from __future__ import annotations

import csv
import json
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

import polars
from PIL import Image

from mmneuron_lens.embedded.corpus.draw import SPLITS, Scene, draw

TRAIN, EVALUATION = SPLITS["demo"][0], SPLITS["held_out"][0]


def write_all(folder: Path, images: int = 4) -> Path:
    """All five, one subfolder each, with a split to identify on and one to evaluate on."""
    for split in ("train", "val"):
        write_vqav2(folder / "vqav2", split, images)
        write_rsvqa(folder / "rsvqa", split, images)
        write_docvqa(folder / "docvqa", split, images)
        write_lingoqa(folder / "lingoqa", split, images)
    for split in ("train", "test"):
        write_pmc_vqa(folder / "pmc_vqa", split, images)
    return folder


def scenes(domain: str, split: str, images: int) -> list[Scene]:
    first = TRAIN if split == "train" else EVALUATION
    return [draw(domain, first + number) for number in range(images)]


def write_vqav2(folder: Path, split: str, images: int = 4) -> Path:
    """Two questions an image, question_id = image_id * 1000 + place as in COCO; ten answers each, two dissenting."""
    questions, annotations = [], []
    for number, scene in enumerate(scenes("common", split, images)):
        image_id = 9 + 16 * number
        save(scene.image, folder / f"{split}2014" / f"COCO_{split}2014_{image_id:012d}.jpg")
        for place, one in enumerate(scene.questions[:2]):
            question_id = image_id * 1000 + place
            questions.append({"image_id": image_id, "question": one.question, "question_id": question_id})
            texts = [one.answer] * 8 + ["unsure", one.answer + "."]
            annotations.append(
                {
                    "question_type": " ".join(one.question.lower().split()[:2]),
                    "multiple_choice_answer": one.answer,
                    "answers": [
                        {"answer": text, "answer_confidence": "yes", "answer_id": answer_id}
                        for answer_id, text in enumerate(texts, start=1)
                    ],
                    "image_id": image_id,
                    "answer_type": one.kind if one.kind == "yes/no" else "other",
                    "question_id": question_id,
                }
            )
    about = {
        "info": {"version": "2.0"}, "license": {}, "data_type": "mscoco", "data_subtype": f"{split}2014",
    }  # fmt: skip
    dump(
        folder / f"v2_OpenEnded_mscoco_{split}2014_questions.json",
        {**about, "task_type": "Open-Ended", "questions": questions},
    )
    dump(folder / f"v2_mscoco_{split}2014_annotations.json", {**about, "annotations": annotations})
    return folder


def write_rsvqa(folder: Path, split: str, images: int = 4) -> Path:
    """Three questions an image, one an area; a placeholder before each record; images alternate .tif and .png."""
    listed: dict[str, list[dict[str, Any]]] = {"images": [], "questions": [], "answers": []}
    # Train and val are even and odd places of the whole lists, so each split's files keep the other's places.
    turn = 0 if split == "train" else 1

    def add(name: str, record: dict[str, Any]) -> None:
        if turn:
            listed[name].append({"id": len(listed[name]), "active": False})
        listed[name].append({"id": len(listed[name]), **record, "active": True})
        if not turn:
            listed[name].append({"id": len(listed[name]), "active": False})

    for number, scene in enumerate(scenes("remote_sensing", split, images)):
        image_id = 2 * number + turn
        asked = [
            (scene.questions[0].question, scene.questions[0].answer, "presence"),
            (scene.questions[1].question, scene.questions[1].answer, "count"),
            ("What is the area covered by buildings?", f"{37 * (number + 1)}m2", "area"),
        ]
        first = len(listed["questions"])
        add(
            "images",
            {
                "date_added": 0.0, "original_name": f"tile{number}.tif", "questions_ids": [first + turn + 2 * k
                for k in range(3)], "sensor": "aerial", "res_x": 0.15, "res_y": 0.15,
            },
        )  # fmt: skip
        save(scene.image, folder / "Data" / f"{image_id}{('.tif', '.png')[number % 2]}")
        for question, answer, kind in asked:
            place = len(listed["questions"]) + turn
            # Every question has one answer, at the same place of its own list.
            add(
                "questions",
                {
                    "date_added": 0.0, "img_id": image_id, "people_id": 0, "type": kind, "question": question,
                    "answers_ids": [place],
                },
            )  # fmt: skip
            add("answers", {"date_added": 0.0, "question_id": place, "people_id": 0, "answer": answer})
    for name, records in listed.items():
        # Placeholders behind the last record are not written.
        dump(folder / f"USGS_split_{split}_{name}.json", {name: records if turn else records[:-1]})
    return folder


def write_pmc_vqa(folder: Path, split: str, images: int = 4, version: int = 1) -> Path:
    """One question an image; choices repeat their letters, between spaces."""
    rows = []
    for number, scene in enumerate(scenes("medical", split, images)):
        figure = f"PMC{1064097 + number}_F{split}.jpg"
        save(scene.image, folder / ("images" if version == 1 else "figures") / figure)
        choices = ["Chest CT, axial", "Brain MRI", 'A "plain" radiograph', "Retina"]
        correct = number % 4
        choices[0], choices[correct] = choices[correct], choices[0]
        cells = {f"Choice {letter}": f" {letter}:{choices[place]} " for place, letter in enumerate("ABCD")}
        question = " What imaging technique was used?"
        if version == 1:
            rows.append({
                "Figure_path": figure, "Question": question, "Answer": choices[correct], **cells,
                "Answer_label": "ABCD"[correct],
            })  # fmt: skip
        else:
            rows.append({
                "index": 10 + number, "Figure_path": figure, "Caption": "A figure,\nin two lines.",
                "Question": question, **cells, "Answer": "ABCD"[correct], "split": split,
            })  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / (f"{split}.csv" if version == 1 else f"{split}_2.csv"), "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return folder


def write_docvqa(folder: Path, split: str, images: int = 4) -> Path:
    """Two questions a page, two accepted answers each, in the file with question types; none in the test split."""
    records = []
    for number, scene in enumerate(scenes("document", split, images)):
        name = f"documents/{split}xx{number:04d}_1.png"
        save(scene.image, folder / name)
        for place, one in enumerate(scene.questions[:2]):
            record = {
                "questionId": 49153 + 2 * number + place,
                "question": one.question,
                "question_types": ["layout", "form"][: place + 1],
                "image": name,
                "docId": 14465 + number,
                "ucsf_document_id": f"{split}xx{number:04d}",
                "ucsf_document_page_no": "1",
                "answers": [one.answer, one.answer.upper()],
                "data_split": split,
            }
            if split == "test":
                del record["answers"], record["question_types"]
            records.append(record)
    dump(
        folder / f"{split}_v1.0{'' if split == 'test' else '_withQT'}.json",
        {"dataset_name": "SP-DocVQA", "dataset_version": "1.0", "dataset_split": split, "data": records},
    )
    return folder


def write_lingoqa(folder: Path, split: str, images: int = 4) -> Path:
    """Segments of five frames; in val each question stands twice with two references, in train once, in two files."""
    parts = {"train": ("scenery", "action"), "val": ("evaluation",)}[split]
    for turn, part in enumerate(parts):
        rows = []
        for number, scene in enumerate(scenes("auto_driving", split, images)):
            segment = f"{split}{turn}{number:04d}"
            names = [f"images/{split}/{segment}/{frame}.jpg" for frame in range(5)]
            for frame, name in enumerate(names):
                save(scene.image.resize((160, 90)).rotate(frame), folder / part / name)
            one = scene.questions[turn]
            references = [one.answer, f"It is {one.answer}."] if split == "val" else [one.answer]
            for reference in references:
                rows.append({
                    "question_id": f"q{segment}", "segment_id": segment, "images": names, "question": one.question,
                    "answer": reference,
                })  # fmt: skip
        polars.DataFrame(rows).write_parquet(folder / part / f"{split}.parquet")
    return folder


def save(image: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


def dump(path: Path, document: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document), encoding="utf-8")


if __name__ == "__main__":
    parser = ArgumentParser(description="Write the five corpora, small, in their published formats.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=4)
    arguments = parser.parse_args()
    print(write_all(arguments.folder, arguments.images))
