"""PMC-VQA: the order in which an answer is parsed, the share that is not, and the official script's comparison."""

from __future__ import annotations

from difflib import SequenceMatcher

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmneuron_lens.corpora.sample import Sample
from mmneuron_lens.metrics import score
from mmneuron_lens.metrics.pmc_vqa import official_correct, parse

OPTIONS = ("Focal uptake pattern", "Diffuse uptake", "No uptake", "Bone")


@pytest.mark.parametrize(
    ("answer", "letter", "how"),
    [
        ("B", "B", "letter"),
        ("BBQ: B", "B", "letter"),
        ("The Answer is (C).", "C", "letter"),
        ("C, not D", "C", "letter"),
        (" b) diffuse", "B", "letter"),
        ("d", "D", "letter"),
        ("D:Bone ", "D", "letter"),
        ("E", None, None),
        ("Answer: bone", "D", "option text"),
        ("diffuse uptake ", "B", "option text"),
        ("It shows no uptake.", "C", "option text"),
        ("backbones", "D", "similar text"),
        ("Focal uptak", "A", "similar text"),
        ("no uptake or bone", None, "similar text"),
        ("", None, "nothing"),
        ("3 + 7", None, None),
        ("###", None, "nothing"),
    ],
)
def test_parsing(answer, letter, how):
    found = parse(answer, OPTIONS)
    assert how is None or found.how == how
    assert letter is None or found.letter == letter
    assert found.is_parsed == (how in ("letter", "option text"))
    assert (found.letter is None) == (found.how == "nothing")


def test_only_letters_of_the_options_count():
    assert parse("C or B", OPTIONS[:2]).letter == "B"


@given(st.text("ABCDE bone:.", max_size=12))
def test_an_answer_names_one_option_and_scores_at_most_one(answer):
    right = sum(parse(answer, OPTIONS).letter == letter for letter in "ABCD")
    assert right <= 1


def sample(name: str, answer: str = "B", options: tuple[str, ...] = OPTIONS) -> Sample:
    return Sample(name, "medical", (), "?", (answer,), options)


def test_accuracy_and_the_share_that_could_not_be_parsed():
    answers = {"1": "BBQ: B", "2": "A", "3": "###", "4": "Diffuse uptak"}
    scores = score("PMC-VQA", [sample(name) for name in answers], answers)
    assert scores.scores == (1.0, 0.0, 0.0, 1.0)
    assert scores.overall.value == pytest.approx(50)
    assert scores.extra["unparsed"].value == pytest.approx(50)
    assert scores.details["letter"] == ["B", "A", None, "B"]
    assert scores.details["how"] == ["letter", "letter", "nothing", "similar text"]


def test_official_mode_compares_the_last_character_by_similarity():
    cells = [f" {letter}:{text} " for letter, text in zip("ABCD", OPTIONS, strict=True)]

    def most_similar(text: str) -> int:
        ratios = [SequenceMatcher(None, cell, text).ratio() for cell in cells]
        return max(range(4), key=lambda index: (ratios[index], -index))

    for said in "ABCD":
        for label in "ABCD":
            assert official_correct(f"Answer: {said}", OPTIONS, label) == (most_similar(said) == most_similar(label))
    # The short option "Bone" also holds a B: the script takes B and D for the same choice.
    assert official_correct("B", OPTIONS, "D")
    assert not official_correct("", OPTIONS, "B")
    assert score("PMC-VQA", [sample("1", "D")], {"1": "B"}, mode="official").scores == (1.0,)


def test_samples_that_have_no_letter_are_named():
    asked = [sample("1", options=()), sample("2", "Bone"), sample("3", "E"), sample("4")]
    scores = score("pmc_vqa", asked, dict.fromkeys("1234", "B"))
    assert scores.ids == ("4",)
    assert scores.skipped == (
        "sample '1' has 0 options; PMC-VQA has four.",
        "sample '2' has the accepted answer 'Bone'; give the letter, one of A, B, C, D.",
        "sample '3' has the accepted answer 'E'; give the letter, one of A, B, C, D.",
    )
