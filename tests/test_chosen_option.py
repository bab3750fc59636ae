"""Which option an answer names, against truth written by hand: texts, letters, articles, names, several at once."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmneuron_lens.metrics.chosen_option import letters_of, parse
from mmneuron_lens.metrics.normal_form import normal_form

HEPATITIS = ("Hepatitis A", "Hepatitis C", "Hepatitis B", "Hepatitis D")
UPTAKE = ("Focal uptake pattern", "Diffuse uptake", "No uptake", "Bone")
MASSES = ("A large mass", "Small mass", "Cyst", "None of the above")
TYPES = ("Type A", "A", "Type B", "B")
NUMBERS = ("2", "3", "12", "-3")
LUNGS = ("Lung", "Left lung", "Right lung", "Heart")
BLOOD = ("O", "A", "B", "AB")
BOTH = ("CT", "MRI", "X-ray", "Both A and B")
GERMS = ("E. coli", "B. pertussis", "C. difficile", "S. aureus", "Unknown")
SHARES = ("<50%", ">50%", "50%", "Unknown")
YES = ("Yes", "No")

NAMED: list[tuple[tuple[str, ...], dict[str, str | None]]] = [
    (
        HEPATITIS,
        {
            "Hepatitis B": "C",
            "hepatitis b.": "C",
            "It is hepatitis B": "C",
            "The patient has Hepatitis A.": "A",
            "A": "A",
            "B: Hepatitis C": "B",
            "The answer is B: Hepatitis A": "B",
        },
    ),
    (
        UPTAKE,
        {
            "B.": "B",
            "(b)": "B",
            "option c": "C",
            "the answer is B": "B",
            "B: Hepatitis": "B",
            "B) Diffuse": "B",
            "Answer: B": "B",
            "A large mass": None,
            "a tumor": None,
            "**B**": "B",
            "$\\boxed{B}$": "B",
            "\\boxed{\\text{(C)}}": "C",
            "`b`": "B",
            "**Answer:** B": "B",
            "I think it's (C) because": "C",
            "Ｂ": "B",
            "（Ｂ）": "B",
            "B。": "B",
            "": None,
            "E": None,
            "(E)": None,
            "option F": None,
            "The answer is E.": None,
            "A or B": None,
            "A and C": None,
            "Both A and C": None,
            "C, not D": "C",
            "not A but B": "B",
            "It's B": "B",
            "I would say C.": "C",
            "I choose d": "D",
            "i think c": "C",
            "The correct answer is option D": "D",
            "The correct option is (A).": "A",
            "The answer is A.": "A",
            "The answer is a": "A",
            "The answer is a mass": None,
            "A because it glows": "A",
            "A: Focal": "A",
            "a) focal": "A",
            "B diffuse uptake": "B",
            "B - Diffuse uptake": "B",
            "B\nBecause of the pattern": "B",
            "D:Bone ": "D",
            "C: no uptake": "C",
            "vitamin D deficiency": None,
            "B cells are seen": None,
            "A CT scan shows bone": "D",
            "I don't know": None,
            "Option A is wrong; the answer is C.": "C",
            "Between A and B, the answer is B": "B",
            "The image shows a focal uptake pattern, so the answer is A.": "A",
            "ASSISTANT: B": "B",
            "Réponse : B": "B",
            'The answer is "B".': "B",
            "'B'": "B",
            "[B]": "B",
            "B, diffuse uptake": "B",
            "Choice: C": "C",
            "letter d": "D",
            "A.": "A",
            "a.": "A",
        },
    ),
    (
        MASSES,
        {
            "A large mass": "A",
            "large mass": "A",
            "A small mass is seen.": "B",
            "a cyst": "C",
            "There is a cyst.": "C",
            "None of the above": "D",
            "none of the above.": "D",
            "D. None of the above": "D",
        },
    ),
    (
        TYPES,
        {
            "Type A": "A",
            "A": "B",
            "It is type A.": "A",
            "The answer is A": "A",
            "type b": "C",
        },
    ),
    (
        NUMBERS,
        {
            "3": "B",
            "three": "B",
            "There are 3.": "B",
            "-3": "D",
            "12": "C",
            "There are 12 of them": "C",
            "minus": None,
        },
    ),
    (
        LUNGS,
        {
            "left lung": "B",
            "In the left lung.": "B",
            "the lung": "A",
            "left lung or right lung": None,
            "the heart, not the lung": "D",
        },
    ),
    (
        BLOOD,
        {
            "B": "C",
            "(B)": "B",
            "AB": "D",
            "blood group AB": "D",
        },
    ),
    (
        BOTH,
        {
            "D": "D",
            "Both A and B": "D",
            "Both A and B are right": "D",
            "x ray": "C",
            "An X-ray image.": "C",
            "CT scan": "A",
            "mri": "B",
        },
    ),
    (
        GERMS,
        {
            "E. coli": "A",
            "E. coli infection": "A",
            "This is C. difficile": "C",
            "E": "E",
        },
    ),
    (
        SHARES,
        {
            "<50%": "A",
            "> 50 %": "B",
            "50%": "C",
            "more than 50%": "C",
        },
    ),
    (
        YES,
        {
            "Yes.": "A",
            "Yes, it is": "A",
            "no": "B",
            "No, B": "B",
            "Yes (B)": "B",
        },
    ),
]
"""By options: what answers name; None where they name none, or several."""

CASES = [(options, answer, letter) for options, answers in NAMED for answer, letter in answers.items()]


@pytest.mark.parametrize(("options", "answer", "letter"), CASES, ids=lambda one: one if isinstance(one, str) else None)
def test_the_option_that_an_answer_names(options, answer, letter):
    found = parse(answer, options)
    assert (found.letter if found.is_parsed else None) == letter


@pytest.mark.parametrize(("options", "answer", "letter"), CASES, ids=lambda one: one if isinstance(one, str) else None)
def test_marks_and_case_of_letters_do_not_change_what_is_named(options, answer, letter):
    """Markdown around an answer that is one word or one text."""
    for form in (f"**{answer}**", f" {answer}\n", f"`{answer}`"):
        assert parse(form, options) == parse(answer, options)


def test_eighteen_answers_of_a_chat_model():
    truth = {
        "Hepatitis B": "C", "hepatitis b": "C", "B": "B", "B.": "B", "(b)": "B", "b)": "B", "option c": "C",
        "the answer is B": "B", "Answer: B": "B", "B: Hepatitis C": "B", "B) Hepatitis C": "B", "A large mass": None,
        "a tumor": None, "I think it's (C) because": "C", "**B**": "B", "The answer is hepatitis D.": "D",
        "It is not hepatitis A but hepatitis D": "D", "E": None,
    }  # fmt: skip
    found = {said: parse(said, HEPATITIS) for said in truth}
    assert {said: one.letter if one.is_parsed else None for said, one in found.items()} == truth
    assert len(truth) == 18


@given(st.text(max_size=30), st.lists(st.text(min_size=1, max_size=8).filter(str.strip), min_size=2, max_size=26))
def test_whatever_is_said_names_one_option_or_none(answer, options):
    found = parse(answer, options)
    assert found.letter is None or found.letter in letters_of(options)
    assert (found.letter is None) == (found.how == "nothing")


@given(st.lists(st.text("abcdefgh ", min_size=2, max_size=8).filter(str.strip), min_size=2, max_size=6))
def test_an_option_said_word_for_word_is_that_option(options):
    texts = [" ".join(one.split()) for one in options]
    for place, text in enumerate(texts):
        if len(normal_form(text)) > 1 and [normal_form(one) for one in texts].count(normal_form(text)) == 1:
            assert parse(text, texts).letter == letters_of(texts)[place]


@pytest.mark.parametrize(
    ("text", "form"),
    [
        ("Yes.", "yes"), ("the dog", "dog"), ("A", "a"), ("Vitamin A", "vitamin a"), ("-5", "-5"), ("> 50 %", ">50%"),
        ("x-ray", "x ray"), ("1,000", "1000"), ("two", "2"), ("dont", "don't"), ("3.5", "3.5"), ("...", "..."),
        ("$\\boxed{\\text{B}}$", "b"), ("_B_", "b"), ("“B”", "b"), ("", ""), ("It’s", "it's"),
    ],
)  # fmt: skip
def test_normal_form(text, form):
    assert normal_form(text) == form
