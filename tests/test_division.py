"""Images divided: what identifies neurons is never what is answered, and a small corpus is shared out or refused."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import tiny_lens
from drawn_corpus import row, write_corpus, write_images, write_rows
from published_formats.make import write_all, write_docvqa, write_lingoqa
from test_cli import mmneuron
from test_paper import LITTLE, MODEL, NAME

import mmneuron_lens as mm
from interventions.errors import InvalidValue, OutOfRange
from mmneuron_lens.artifacts.answers import Answers
from mmneuron_lens.artifacts.counts import Counts
from mmneuron_lens.corpora.division import divide, divided
from mmneuron_lens.corpora.load import load_corpus
from mmneuron_lens.corpora.rows import CorpusError
from mmneuron_lens.paper import run as whole
from mmneuron_lens.runs.answer import answer_stage
from mmneuron_lens.runs.plan import Plan
from mmneuron_lens.runs.questions import corpus_questions, folder_questions
from mmneuron_lens.runs.store import Store


@pytest.mark.parametrize(
    ("images", "first", "then", "expected"),
    [
        (400, 300, 75, (300, 75)),
        (375, 300, 75, (300, 75)),
        (374, 300, 75, (299, 75)),
        (30, 300, 75, (24, 6)),
        (3, 300, 75, (2, 1)),
        (2, 300, 75, (1, 1)),
        (2, 1, 500, (1, 1)),
        (30, None, 10, (20, 10)),
        (30, None, 75, (15, 15)),
        (30, 20, None, (20, 10)),
        (30, 300, None, (15, 15)),
        (31, None, None, (16, 15)),
    ],
)
def test_what_there_is_is_shared(images, first, then, expected):
    assert divided(images, first, then) == expected


def test_every_share_is_of_what_is_there_and_none_is_empty():
    for images in range(2, 40):
        for first in (None, 1, 5, 300):
            for then in (None, 1, 5, 300):
                one, other = divided(images, first, then)
                assert one >= 1
                assert other >= 1
                assert one + other <= images
                if first and then and first + then <= images:
                    assert (one, other) == (first, then)


def images_in(samples) -> set[bytes]:
    """The bytes of their images: a name says nothing."""
    return {path.read_bytes() for sample in samples for path in sample.images}


def of_all(part) -> set[bytes]:
    return set().union(*map(images_in, part.values()))


PLANS = {
    "enough": Plan(identification_images=4, evaluation_images=2, evaluation_questions=None),
    "too few": Plan(),
    "all identify": Plan(identification_images=None, evaluation_images=3),
    "all are answered": Plan(identification_images=3, evaluation_images=None),
    "all for both": Plan(identification_images=None, evaluation_images=None),
}


@pytest.mark.parametrize("name", PLANS)
def test_no_image_identifies_and_is_answered(tmp_path, name):
    corpus = load_corpus(write_corpus(tmp_path, ("photos", "scans"), images=8))
    asked = corpus_questions(corpus, PLANS[name])
    assert set(asked.identification) == set(asked.evaluation) == {"photos", "scans"}
    for part in (asked.identification, asked.evaluation):
        assert all(part.values())
    assert not of_all(asked.identification) & of_all(asked.evaluation)
    if name == "too few":
        assert asked.notes == tuple(
            f"{domain} has 8 images where 300 were to identify neurons and 75 others to be answered: 6 identify and "
            "2 are answered."
            for domain in ("photos", "scans")
        )
        assert {domain: len(images_in(some)) for domain, some in asked.identification.items()} == dict.fromkeys(
            ("photos", "scans"), 6
        )
    else:
        assert asked.notes == ()


def test_enough_images_are_divided_as_ever(tmp_path):
    corpus = load_corpus(write_corpus(tmp_path, images=8))
    asked = corpus_questions(corpus, Plan(identification_images=4, evaluation_images=2, identification_questions=1))
    assert asked.identification == corpus.some(4, 1).by_domain()
    assert asked.evaluation == corpus.some(2, 2, skip_images=4).by_domain()


def copies(folder: Path) -> list[dict[str, object]]:
    """Two domains of four images each, of which the last three are the same as earlier ones, under other names."""
    for seed, domain in enumerate(("photos", "scans")):
        write_images(folder, domain, 8, seed)
    shutil.copy(folder / "images" / "photos0.png", folder / "images" / "photos4.png")
    (folder / "images" / "photos5.png").unlink()
    (folder / "images" / "photos5.png").symlink_to("photos1.png")
    # Asked in the other domain, where it identifies.
    shutil.copy(folder / "images" / "scans2.png", folder / "images" / "photos6.png")
    return [row(domain, number) for domain in ("photos", "scans") for number in range(8)]


def test_copies_and_links_of_an_image_are_that_image(tmp_path):
    asked = corpus_questions(
        load_corpus(write_rows(tmp_path, copies(tmp_path))), Plan(identification_images=4, evaluation_images=4)
    )
    assert not of_all(asked.identification) & of_all(asked.evaluation)
    assert {domain: len(images_in(some)) for domain, some in asked.evaluation.items()} == {"photos": 1, "scans": 4}
    assert asked.notes == ("photos: only 1 images are answered; others identify neurons elsewhere.",)


def test_frames_that_two_questions_share_are_not_divided(tmp_path):
    write_images(tmp_path, "photos", 5)
    write_images(tmp_path, "scans", 5, 1)
    names = [f"images/photos{number}.png" for number in range(5)]
    rows = [row("photos", 0, image=None, images=names[place : place + 2]) for place in range(4)]
    corpus = load_corpus(write_rows(tmp_path, rows + [row("scans", number) for number in range(5)]))
    asked = corpus_questions(corpus, Plan(identification_images=2, evaluation_images=2))
    assert not of_all(asked.identification) & of_all(asked.evaluation)
    assert [len(images_in(some)) for some in asked.evaluation.values()] == [2, 2]


CANNOT = {
    "one image": (
        [*(row("photos", number) for number in range(4)), row("scans", 0), row("scans", 0, "why")],
        "domain scans has one image, and no image may both identify neurons and be answered",
    ),
    "one domain": ([row("photos", number) for number in range(4)], "has one domain, photos; neurons are specific"),
    "all the same": (
        [*(row("photos", number) for number in range(4)), row("scans", 6), row("scans", 7)],
        "domain scans: every image identifies neurons, here or elsewhere; add others",
    ),
}


@pytest.mark.parametrize("name", CANNOT)
def test_what_cannot_be_divided_is_refused_before_anything_runs(tmp_path, name):
    write_images(tmp_path / "mine", "photos", 4)
    write_images(tmp_path / "mine", "scans", 6, 1)
    for number in (6, 7):
        shutil.copy(tmp_path / "mine" / "images" / "scans5.png", tmp_path / "mine" / "images" / f"scans{number}.png")
    rows, says = CANNOT[name]
    write_rows(tmp_path / "mine", rows)
    with pytest.raises(CorpusError, match=re.escape(says)):
        folder_questions(tmp_path / "mine", Plan())
    result = mmneuron("paper", "--model", MODEL, "--corpus", tmp_path / "mine", "--out", tmp_path / "run")
    assert result.exit_code == 1
    (line,) = result.stderr.strip().splitlines()
    assert line.startswith("mmneuron: mine")
    assert says in line
    assert not (tmp_path / "run" / "counts").exists()


def test_the_division_itself_needs_two_images():
    with pytest.raises(CorpusError, match="domain photos has one image"):
        divide({"photos": []}, 1, 1)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The paper on a small corpus of one's own, with a bad row and an image that cannot be decoded."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("small")
    rows = []
    for seed, domain in enumerate(("photos", "scans")):
        write_images(folder / "mine", domain, 6, seed)
        rows += [row(domain, number) for number in range(6)]
    file = folder / "mine" / "images" / "scans0.png"
    file.write_bytes(file.read_bytes()[:-2000])
    write_rows(folder / "mine", [*rows, row("photos", 0, question="")])
    said: list[str] = []
    store = Store(folder / "run", say=said.append)
    plan = replace(LITTLE, identification_images=300, evaluation_images=75)
    whole.paper_command(store, plan, models=[MODEL], corpus=folder / "mine")
    return folder, said


def test_a_small_corpus_is_identified_on_and_answered(run):
    folder, _ = run
    answers = Answers.load(folder / "run" / "answers" / f"{NAME}.jsonl")
    assert {(one.domain, one.id) for one in answers} == {("photos", "line-6"), ("scans", "line-12")}
    counts = Counts.load(folder / "run" / "counts" / NAME / "scans.safetensors")
    assert (counts.samples, counts.provenance["left out"]) == (4, ["line-7"])


def test_how_it_was_divided_is_said_and_stands_on_the_page(run):
    folder, said = run
    for domain in ("photos", "scans"):
        note = (
            f"{domain} has 6 images where 300 were to identify neurons and 75 others to be answered: 5 identify and 1 "
            "are answered."
        )
        assert note in said
        assert note in (folder / "run" / "index.html").read_text()
    assert json.loads((folder / "run" / "paper.json").read_text())["shared"] == 0
    (problems,) = (line for line in said if line.startswith("2 of 13 rows skipped:"))
    assert "line 13: question '' is empty" in problems
    assert "scans0.png: not an image that can be read" in problems
    assert "line 13" in (folder / "run" / "problems.txt").read_text()


def test_a_published_image_that_cannot_be_decoded_is_named_and_the_run_goes_on(tmp_path):
    for split in ("train", "val"):
        write_docvqa(tmp_path / "corpora" / "docvqa", split, 2)
        write_lingoqa(tmp_path / "corpora" / "lingoqa", split, 2)
    (file, *_) = sorted((tmp_path / "corpora" / "docvqa" / "documents").glob("val*.png"))
    file.write_bytes(file.read_bytes()[:-300])
    said: list[str] = []
    plan = replace(LITTLE, budget=10**6, cross=False, random_draws=0, ablation_draws=0, deviation_questions=1)
    store = Store(tmp_path / "run", say=said.append)
    whole.paper_command(store, plan, models=[MODEL], corpora=tmp_path / "corpora", questions=4)
    named = (tmp_path / "run" / "problems_when_asked.txt").read_text()
    assert file.name in named
    assert "document question " in named
    assert any(line.startswith("DocVQA train (document) has ") and "every domain is cut to" in line for line in said)
    assert "LingoQA val (auto_driving) has 2 questions to be answered, where 4 were asked for." in said


def test_a_published_corpus_without_a_good_question_ends_the_run_with_one_line(tmp_path):
    write_all(tmp_path / "corpora", images=2)
    for file in (tmp_path / "corpora" / "docvqa" / "documents").glob("val*.png"):
        file.unlink()
    arguments = ["--corpora", tmp_path / "corpora", "--out", tmp_path / "run", "--tokens", 400]
    for _ in range(2):
        result = mmneuron("paper", "--model", MODEL, *arguments)
        assert result.exit_code == 1
        assert "corpora has no good question of DocVQA val (document); see `mmneuron corpora check`" in result.stderr
    assert not (tmp_path / "run" / "counts").exists()


def test_images_left_out_beyond_the_last_are_an_error_that_counts_them(tmp_path):
    corpus = load_corpus(write_corpus(tmp_path / "mine", ("photos", "scans"), images=3))
    for skip in (3, 100):
        with pytest.raises(OutOfRange, match=rf"the first {skip} images leaves none of photos \(3\), scans \(3\)"):
            corpus.some(skip_images=skip)
    assert len(corpus.some(skip_images=2)) == 4
    write_rows(tmp_path / "mine", [*(row("photos", number) for number in range(3)), row("scans", 0)])
    with pytest.raises(OutOfRange, match=r"leaves none of scans \(1\); leave out fewer, or name the other domains"):
        load_corpus(tmp_path / "mine").some(images=1, skip_images=1)


def test_a_domain_of_which_no_question_can_be_asked_is_said(tmp_path):
    lens = tiny_lens("instructblip")
    corpus = load_corpus(write_corpus(tmp_path / "mine", ("photos", "scans"), images=2))
    selection = mm.identify(lens, corpus, permutations=2, fraction=0.1).selection
    for number in range(2):
        (tmp_path / "mine" / "images" / f"scans{number}.png").write_bytes(b"no picture")
    said: list[str] = []
    store = Store(tmp_path / "run", say=said.append)
    settings = {"random_draws": 0, "max_new_tokens": 1, "problems": corpus.problems}
    answers = answer_stage(lens, selection, corpus.by_domain(), store, **settings)
    assert {one.domain for one in answers} == {"photos"}
    assert said[-1] == f"{lens.name}: no question of scans could be asked; see the problems of its rows."
    assert len(corpus.problems) == 4


def test_a_call_without_questions_or_with_one_domain_is_an_error(tmp_path):
    lens = tiny_lens("instructblip")
    corpus = load_corpus(write_corpus(tmp_path, ("photos", "scans"), images=2))
    found = mm.identify(lens, corpus, permutations=2, fraction=0.1)
    for call in (
        lambda: mm.ablate(lens, found.selection, corpus[:0]),
        lambda: mm.deviate(lens, found.selection, corpus[:0]),
        lambda: mm.read_entropy(lens, corpus[:0]),
        lambda: mm.identify(lens, corpus[:0]),
    ):
        with pytest.raises(InvalidValue, match="has no question here; give one with some"):
            call()
    with pytest.raises(InvalidValue, match="has one domain, scans; neurons are specific to one of several"):
        mm.identify(lens, corpus.only("scans"))


def test_too_many_images_to_draw_are_refused_at_once(tmp_path):
    result = mmneuron("paper", "--embedded", "--images", 10**6, "--out", tmp_path)
    assert result.exit_code == 1
    assert "cannot be drawn: give 1 to 100000" in result.stderr.splitlines()[-1]
    assert not (tmp_path / "counts").exists()
