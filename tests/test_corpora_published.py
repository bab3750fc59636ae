"""Published corpora: good records come back as a plain reading of the same files gives them."""

from __future__ import annotations

import csv
import json

import polars
import pytest
from published_formats import make

from mmneuron_lens.corpora import docvqa, lingoqa, pmc_vqa, rsvqa, vqav2
from mmneuron_lens.corpora.folder import CorpusError
from mmneuron_lens.corpora.published import PUBLISHED, read_corpora
from mmneuron_lens.corpora.records import RecordProblems
from mmneuron_lens.corpora.sample import DOMAINS, Sample
from mmneuron_lens.wire.images import decode


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make.write_all(tmp_path_factory.mktemp("corpora"), images=3)


def samples_of(read, folder, split):
    problems = RecordProblems(folder)
    samples = list(read(folder, split, problems))
    assert str(problems).startswith("0 of ")
    return samples


@pytest.mark.parametrize("split", ["train", "val"])
def test_vqav2_joins_questions_and_ten_answers(folder, split):
    home = folder / "vqav2"
    questions = json.loads((home / f"v2_OpenEnded_mscoco_{split}2014_questions.json").read_text())["questions"]
    listed = json.loads((home / f"v2_mscoco_{split}2014_annotations.json").read_text())["annotations"]
    notes = {note["question_id"]: note for note in listed}
    expected = [
        Sample(
            str(one["question_id"]),
            "common",
            (home / f"{split}2014" / f"COCO_{split}2014_{one['image_id']:012d}.jpg",),
            one["question"],
            tuple(answer["answer"] for answer in notes[one["question_id"]]["answers"]),
            kind=notes[one["question_id"]]["answer_type"],
        )
        for one in questions
    ]
    assert samples_of(vqav2.read, home, split) == expected
    assert {len(sample.answers) for sample in expected} == {10}


def test_vqav2_needs_no_common_order_of_its_two_files(folder, tmp_path):
    home = make.write_vqav2(tmp_path, "val", 3)
    before = samples_of(vqav2.read, home, "val")
    file = home / "v2_mscoco_val2014_annotations.json"
    document = json.loads(file.read_text())
    document["annotations"].reverse()
    file.write_text(json.dumps(document))
    assert samples_of(vqav2.read, home, "val") == before


@pytest.mark.parametrize("split", ["train", "val"])
def test_rsvqa_skips_placeholders_and_takes_tif_and_png(folder, split):
    home = folder / "rsvqa"

    def active(what: str):
        records = json.loads((home / f"USGS_split_{split}_{what}.json").read_text())[what]
        assert any(not record["active"] for record in records)
        return {record["id"]: record for record in records if record["active"]}

    answers = active("answers")
    expected = [
        (str(one["id"]), one["question"], tuple(answers[key]["answer"] for key in one["answers_ids"]), one["type"])
        for one in active("questions").values()
    ]
    samples = samples_of(rsvqa.read, home, split)
    assert [(one.id, one.question, one.answers, one.kind) for one in samples] == expected
    assert {one.images[0].suffix for one in samples} == {".tif", ".png"}
    assert {one.images[0].stem for one in samples} == {str(number) for number in active("images")}
    assert "37m2" in {one.answers[0] for one in samples}
    assert all(decode(one.images[0]).mode == "RGB" for one in samples)


@pytest.mark.parametrize("version", [1, 2])
def test_pmc_vqa_strips_letters_and_answers_by_letter(tmp_path, version):
    home = make.write_pmc_vqa(tmp_path, "train", 4, version)
    file = home / ("train.csv" if version == 1 else "train_2.csv")
    with open(file, newline="") as stream:
        rows = list(csv.DictReader(stream))
    samples = samples_of(pmc_vqa.read, home, "train")
    for row, sample in zip(rows, samples, strict=True):
        assert sample.options == tuple(row[f"Choice {letter}"].strip()[2:] for letter in "ABCD")
        assert sample.answers == (row["Answer_label" if version == 1 else "Answer"],)
        assert sample.options["ABCD".index(sample.answers[0])] == "Chest CT, axial"
        assert sample.question == "What imaging technique was used?"
        assert sample.images == (home / ("images" if version == 1 else "figures") / row["Figure_path"],)
    first = ["train-1", "train-2"] if version == 1 else ["train_2-10", "train_2-11"]
    assert [sample.id for sample in samples[:2]] == first


def test_pmc_vqa_of_an_older_file_with_a_misspelt_column(tmp_path):
    home = make.write_pmc_vqa(tmp_path, "train", 2, 2)
    file = home / "train_2.csv"
    before = samples_of(pmc_vqa.read, home, "train")
    file.write_text(file.read_text().replace(",Answer,", ",Anwser,"))
    assert samples_of(pmc_vqa.read, home, "train") == before


def test_pmc_vqa_has_no_validation_split(folder):
    message = r"no split 'val' \(it was published without a validation split\); choose from train, test, test_clean\."
    with pytest.raises(CorpusError, match=message):
        next(pmc_vqa.read(folder / "pmc_vqa", "val", RecordProblems(folder)))
    with pytest.raises(
        CorpusError, match=r"no test_clean\.csv \(questions of test_clean, version 1\); get it from http"
    ):
        next(pmc_vqa.read(folder / "pmc_vqa", "test_clean", RecordProblems(folder)))


@pytest.mark.parametrize("split", ["train", "val"])
def test_docvqa_keeps_all_accepted_answers(folder, split):
    home = folder / "docvqa"
    records = json.loads((home / f"{split}_v1.0_withQT.json").read_text())["data"]
    expected = [
        Sample(
            str(one["questionId"]),
            "document",
            (home / one["image"],),
            one["question"],
            tuple(one["answers"]),
            kind=", ".join(one["question_types"]),
        )
        for one in records
    ]
    assert samples_of(docvqa.read, home, split) == expected


def test_docvqa_test_has_no_answers_and_other_layouts_are_found(tmp_path):
    home = make.write_docvqa(tmp_path, "test", 2)
    samples = samples_of(docvqa.read, home, "test")
    assert {one.answers for one in samples} == {()}
    (home / "spdocvqa_qas").mkdir()
    (home / "test_v1.0.json").rename(home / "spdocvqa_qas" / "test_v1.0.json")
    (home / "documents").rename(home / "spdocvqa_images")
    again = samples_of(docvqa.read, home, "test")
    assert [one.id for one in again] == [one.id for one in samples]
    assert again[0].images == (home / "spdocvqa_images" / samples[0].images[0].name,)


def test_lingoqa_has_one_sample_with_two_references_and_five_frames(folder):
    home = folder / "lingoqa" / "evaluation"
    rows = polars.read_parquet(home / "val.parquet").to_dicts()
    samples = samples_of(lingoqa.read, home.parent, "val")
    assert len(rows) == 2 * len(samples) == 6
    for sample in samples:
        mine = [row for row in rows if row["question_id"] == sample.id]
        assert sample.answers == tuple(row["answer"] for row in mine)
        assert sample.question == mine[0]["question"]
        assert sample.images == tuple(home / name for name in mine[0]["images"])
    assert {len(sample.images) for sample in samples} == {5}


def test_lingoqa_references_need_not_stand_side_by_side(tmp_path):
    home = make.write_lingoqa(tmp_path, "val", 3)
    file = home / "evaluation" / "val.parquet"
    before = {one.id: one for one in samples_of(lingoqa.read, home, "val")}
    rows = polars.read_parquet(file)
    rows[[0, 2, 4, 1, 3, 5]].write_parquet(file)
    after = samples_of(lingoqa.read, home, "val")
    assert {one.id: one for one in after} == before


def test_lingoqa_trains_on_scenery_and_action(folder):
    samples = samples_of(lingoqa.read, folder / "lingoqa", "train")
    home = folder / "lingoqa"
    assert [one.images[0].relative_to(home).parts[0] for one in samples] == ["scenery"] * 3 + ["action"] * 3


def test_a_folder_of_corpora_gives_each_domain_in_the_papers_order(folder):
    train, evaluation = read_corpora(folder, "train"), read_corpora(folder, "evaluation")
    assert tuple(train) == tuple(evaluation) == DOMAINS == tuple(PUBLISHED)
    assert {one.split for one in train.values()} == {"train"}
    assert [one.split for one in evaluation.values()] == ["val", "val", "test", "val", "val"]
    for domain, corpus in train.items():
        first = list(corpus)
        assert first == list(corpus)
        assert corpus.problems.rows == len(first) > 0
        assert {sample.domain for sample in first} == {domain}
    assert list(read_corpora(folder, "test_phili")) == ["remote_sensing"]


def test_what_is_no_folder_of_corpora_says_what_to_do(folder, tmp_path):
    with pytest.raises(CorpusError, match=r"nowhere is not a folder; give one with subfolders vqav2, rsvqa, pmc_vqa"):
        read_corpora(tmp_path / "nowhere", "train")
    with pytest.raises(CorpusError, match=r" holds no corpus; give one with subfolders vqav2"):
        read_corpora(tmp_path, "train")
    with pytest.raises(CorpusError, match=r"has a split 'dev'; choose from train, evaluation, val, test, test_phili"):
        read_corpora(folder, "dev")
    with pytest.raises(CorpusError, match=r"VQAv2 has no split 'test'; choose from train, val\."):
        next(vqav2.read(folder / "vqav2", "test", RecordProblems(folder)))
    home = make.write_rsvqa(tmp_path / "rsvqa", "val", 1)
    with pytest.raises(
        CorpusError, match=r"no USGS_split_test_questions\.json \(questions of test\); get it from https://rsvqa"
    ):
        next(rsvqa.read(home, "test", RecordProblems(home)))
