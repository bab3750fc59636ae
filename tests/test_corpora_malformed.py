"""Malformed records of published corpora are named, counted and skipped; good ones still count."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import polars
import pytest
from published_formats import make

from mmneuron_lens.corpora import docvqa, lingoqa, pmc_vqa, records, rsvqa, vqav2
from mmneuron_lens.corpora.folder import CorpusError, image_sizes, open_images
from mmneuron_lens.corpora.records import RecordProblems


def read(reader, folder: Path, split: str):
    problems = RecordProblems(folder)
    return list(reader(folder, split, problems)), problems


def edit(file: Path, key: str, change) -> None:
    document = json.loads(file.read_text())
    change(document[key])
    file.write_text(json.dumps(document))


def one_is_named(samples, problems, good: int, *parts: str) -> None:
    assert len(samples) == good
    assert len(problems) == 1
    (problem,) = problems
    for part in parts:
        assert part in str(problem)
    assert "\n" not in str(problem)
    assert str(problems).splitlines()[0] == f"1 of {problems.rows} records skipped:"


# What is done to the second record, and what is said of it.
VQAV2 = {
    "empty question": (lambda one: one.update(question=" "), "question ' ' is empty; fill it in"),
    "wrong column": (lambda one: one.update(text=one.pop("question")), "no column 'question' among 'image_id, que"),
    "no answers": (lambda one: one.update(question_id=5), "question_id 5 has no good record in v2_mscoco_val2014_ann"),
    "missing image": (lambda one: one.update(image_id=4), "image_id 4 is 9 in v2_mscoco_val2014_annotations.json"),
    "id of another type": (lambda one: one.update(question_id=[1]), "question_id [1] is list, not text"),
    "question of another type": (lambda one: one.update(question=3), "question 3 is int, not text"),
}


@pytest.mark.parametrize("name", VQAV2)
def test_vqav2_question(tmp_path, name):
    home = make.write_vqav2(tmp_path, "val", 2)
    change, *parts = VQAV2[name]
    edit(home / "v2_OpenEnded_mscoco_val2014_questions.json", "questions", lambda found: change(found[1]))
    samples, problems = read(vqav2.read, home, "val")
    one_is_named(samples, problems, 3, "val2014_questions.json, record 2 (question_id ", *parts)
    assert problems.rows == 4


def test_vqav2_missing_image_names_file_and_folder(tmp_path):
    home = make.write_vqav2(tmp_path, "val", 2)
    (home / "val2014" / "COCO_val2014_000000000009.jpg").unlink()
    samples, problems = read(vqav2.read, home, "val")
    assert (len(samples), len(problems)) == (2, 2)
    said = "image 'COCO_val2014_000000000009.jpg' is missing in "
    assert all(said in str(one) and "unpack all images" in str(one) for one in problems)


def test_vqav2_duplicates_and_broken_annotations(tmp_path):
    home = make.write_vqav2(tmp_path, "val", 2)
    edit(home / "v2_OpenEnded_mscoco_val2014_questions.json", "questions", lambda found: found.append(found[0]))
    samples, problems = read(vqav2.read, home, "val")
    one_is_named(samples, problems, 4, "record 5 (question_id 9000): id 9000 is that of record 1 too; remove one")
    make.write_vqav2(tmp_path, "val", 2)
    annotations = home / "v2_mscoco_val2014_annotations.json"
    edit(annotations, "annotations", lambda found: (found.append(found[1]), found.append([1])))
    samples, problems = read(vqav2.read, home, "val")
    assert (len(samples), len(problems)) == (4, 2)
    assert "annotations.json, record 5 (question_id 9001): question_id 9001 is annotated twice" in str(problems)
    assert "annotations.json, record 6: [1] is no object with columns" in str(problems)
    make.write_vqav2(tmp_path, "val", 2)
    edit(annotations, "annotations", lambda found: found[0].update(answers=[]))
    samples, problems = read(vqav2.read, home, "val")
    assert (len(samples), len(problems)) == (3, 2)
    assert "answers [] is no list of objects" in str(problems)


@pytest.mark.parametrize("format", ["vqav2", "docvqa"])
def test_a_json_file_that_is_cut_off_keeps_its_whole_records(tmp_path, format):
    if format == "vqav2":
        home = make.write_vqav2(tmp_path, "val", 2)
        file, reader = home / "v2_OpenEnded_mscoco_val2014_questions.json", vqav2.read
    else:
        home = make.write_docvqa(tmp_path, "val", 2)
        file, reader = home / "val_v1.0_withQT.json", docvqa.read
    file.write_text(file.read_text()[:-60])
    samples, problems = read(reader, home, "val")
    one_is_named(samples, problems, 3, f"{file.name}, record 4: no complete JSON (", "download the file again")


def test_a_json_file_without_its_list(tmp_path):
    home = make.write_docvqa(tmp_path, "val", 2)
    (home / "val_v1.0_withQT.json").write_text('{"rows": []}')
    one_is_named(*read(docvqa.read, home, "val"), 0, "no list 'data' with records in this file")


RSVQA = {
    "unknown answer id": (lambda one: one.update(answers_ids=[999]), "answer id 999 is not among the active answers"),
    "answer of another split": (lambda one: one.update(answers_ids=[0]), "answer id 0 is not among the active answers"),
    "no answer": (lambda one: one.update(answers_ids=[]), "answers_ids [] is no list of ids"),
    "unknown image": (lambda one: one.update(img_id=2), "img_id 2 is not among the active images of USGS_split_val"),
    "empty question": (lambda one: one.update(question=""), "question '' is empty"),
    "wrong column": (lambda one: one.pop("type"), "no column 'type' among "),
    "duplicate id": (lambda one: one.update(id=1), "id 1 is that of record 2 too"),
}


@pytest.mark.parametrize("name", RSVQA)
def test_rsvqa_question(tmp_path, name):
    home = make.write_rsvqa(tmp_path, "val", 2)
    change, *parts = RSVQA[name]
    edit(home / "USGS_split_val_questions.json", "questions", lambda found: change(found[3]))
    samples, problems = read(rsvqa.read, home, "val")
    one_is_named(samples, problems, 5, "USGS_split_val_questions.json, record 4 (id ", *parts)
    assert problems.rows == 6


def test_rsvqa_missing_image_and_broken_answer(tmp_path):
    home = make.write_rsvqa(tmp_path, "val", 2)
    (home / "Data" / "3.png").unlink()
    edit(home / "USGS_split_val_answers.json", "answers", lambda found: found[1].update(answer=None))
    samples, problems = read(rsvqa.read, home, "val")
    assert (len(samples), len(problems)) == (2, 5)
    assert "image '3.tif' is missing in " in str(problems)
    assert " (nor 3.png); unpack all images" in str(problems)
    assert "USGS_split_val_answers.json, record 2 (id 1): answer None is NoneType, not text" in str(problems)


PMC = {
    "empty question": (lambda row: row.update(Question="  "), "Question '  ' is empty"),
    "missing image": (lambda row: row.update(Figure_path="none.jpg"), "image 'none.jpg' is missing in "),
    "image outside": (lambda row: row.update(Figure_path="../x.jpg"), "image '../x.jpg' lies outside images"),
    "no letter": (lambda row: row.update(Answer_label="heart"), "Answer_label 'heart' is no letter of an option"),
    "two letters": (lambda row: row.update(Answer_label="AB"), "Answer_label 'AB' is no letter of an option"),
    "empty option": (lambda row: row.update({"Choice C": " C: "}), "Choice C ' C: ' is empty"),
}


@pytest.mark.parametrize("name", PMC)
def test_pmc_vqa_row(tmp_path, name):
    home = make.write_pmc_vqa(tmp_path, "test", 3)
    change, *parts = PMC[name]
    with open(home / "test.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    change(rows[1])
    with open(home / "test.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    samples, problems = read(pmc_vqa.read, home, "test")
    one_is_named(samples, problems, 2, "test.csv, record 2 (Figure_path ", *parts)
    assert [one.id for one in samples] == ["test-1", "test-3"]


def test_pmc_vqa_broken_csv(tmp_path):
    home = make.write_pmc_vqa(tmp_path, "test", 3)
    file = home / "test.csv"
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(
        b"".join([lines[0], b"\n", lines[1], b"one,two\n", lines[2].replace(b"What", b"Wh\xff"), lines[3]])
    )
    samples, problems = read(pmc_vqa.read, home, "test")
    assert ([one.id for one in samples], problems.rows) == (["test-1", "test-4"], 4)
    assert "test.csv, record 2: 2 cells where the header names 8: ['one', 'two']; mend its quotes." in str(problems)
    assert "Question ' Wh\\udcff imaging technique was used?' holds half a character" in str(problems)


def test_pmc_vqa_wrong_header_names_every_row(tmp_path):
    home = make.write_pmc_vqa(tmp_path, "test", 3)
    file = home / "test.csv"
    file.write_text(file.read_text().replace("Choice B", "choice_b", 1))
    samples, problems = read(pmc_vqa.read, home, "test")
    assert (samples, len(problems)) == ([], 3)
    assert "no column 'Choice B' among " in str(problems)


def test_pmc_vqa_duplicate_index(tmp_path):
    home = make.write_pmc_vqa(tmp_path, "test", 3, 2)
    file = home / "test_2.csv"
    file.write_text(file.read_text().replace("\n11,", "\n10,"))
    samples, problems = read(pmc_vqa.read, home, "test")
    one_is_named(samples, problems, 2, "test_2.csv, record 2", "id test_2-10 is that of record 1 too")


DOCVQA = {
    "empty question": (lambda one: one.update(question=""), "question '' is empty"),
    "missing image": (lambda one: one.update(image="documents/no.png"), "image 'no.png' is missing in "),
    "wrong column": (lambda one: one.update(id=one.pop("questionId")), "no column 'questionId' among "),
    "no answers": (lambda one: one.pop("answers"), "answers None is no list of accepted answers"),
    "empty answer": (lambda one: one.update(answers=["a", " "]), "answer ' ' is empty"),
    "duplicate id": (lambda one: one.update(questionId=49153), "id 49153 is that of record 1 too"),
}


@pytest.mark.parametrize("name", DOCVQA)
def test_docvqa_record(tmp_path, name):
    home = make.write_docvqa(tmp_path, "val", 2)
    change, *parts = DOCVQA[name]
    edit(home / "val_v1.0_withQT.json", "data", lambda found: change(found[1]))
    one_is_named(*read(docvqa.read, home, "val"), 3, "val_v1.0_withQT.json, record 2", *parts)


LINGOQA = {
    "empty question": ({"question": " "}, "question ' ' is empty"),
    "no answer": ({"answer": None}, "answer None is NoneType, not text"),
    "missing frame": ({"images": ["images/val/nowhere/0.jpg"]}, "image 'images/val/nowhere/0.jpg' is missing in "),
    "no frames": ({"images": []}, "images [] is no list of paths"),
    "frame outside": ({"images": ["/etc/hostname"]}, "image '/etc/hostname' lies outside evaluation"),
    "another question": ({"question": "Why?"}, "question_id qval00001 is another question in record 3"),
}


@pytest.mark.parametrize("name", LINGOQA)
def test_lingoqa_row(tmp_path, name):
    home = make.write_lingoqa(tmp_path, "val", 2)
    file = home / "evaluation" / "val.parquet"
    changes, *parts = LINGOQA[name]
    rows = polars.read_parquet(file).to_dicts()
    rows[3].update(changes)
    polars.DataFrame(rows).write_parquet(file)
    samples, problems = read(lingoqa.read, home, "val")
    one_is_named(samples, problems, 2, "val.parquet, record 4 (question_id 'qval00001')", *parts)
    assert [len(one.answers) for one in samples] == [2, 1]


def test_lingoqa_wrong_column_and_cut_file(tmp_path):
    home = make.write_lingoqa(tmp_path, "val", 2)
    file = home / "evaluation" / "val.parquet"
    polars.read_parquet(file).rename({"answer": "text"}).write_parquet(file)
    samples, problems = read(lingoqa.read, home, "val")
    assert (samples, len(problems)) == ([], 4)
    assert "no column 'answer' among " in str(problems)
    file.write_bytes(file.read_bytes()[:-40])
    with pytest.raises(CorpusError, match=r"val\.parquet is no complete parquet file \(.*\); download it again\."):
        read(lingoqa.read, home, "val")


def test_a_truncated_jpeg_is_named_when_it_is_decoded_and_counted_once(tmp_path):
    home = make.write_vqav2(tmp_path, "val", 2)
    file = home / "val2014" / "COCO_val2014_000000000009.jpg"
    file.write_bytes(file.read_bytes()[:-900])
    samples, problems = read(vqav2.read, home, "val")
    assert (len(samples), len(problems)) == (4, 0)
    assert image_sizes(samples[0], problems) is not None
    assert open_images(samples[0], problems) is None
    assert open_images(samples[0], problems) is None
    assert open_images(samples[3], problems) is not None
    one_is_named(samples, problems, 4, "common question 9000: image cannot be decoded: ", "COCO_val2014_000000000009")


def test_of_very_many_bad_records_the_first_are_named_and_all_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "KEPT", 2)
    home = make.write_docvqa(tmp_path, "val", 3)
    edit(home / "val_v1.0_withQT.json", "data", lambda found: [one.update(question="") for one in found])
    _, problems = read(docvqa.read, home, "val")
    lines = str(problems).splitlines()
    assert (len(problems), problems.rows, len(lines)) == (6, 6, 4)
    assert lines[0] == "6 of 6 records skipped:"
    assert lines[-1] == "and 4 more"
