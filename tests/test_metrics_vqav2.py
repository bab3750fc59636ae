"""VQAv2: the closed form, the normalisation case by case, and a second writing of it."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmneuron_lens.metrics.vqav2 import CONTRACTIONS, NUMBERS, accuracy, normalise


@pytest.mark.parametrize(("agreeing", "expected"), [(0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1), (7, 1), (10, 1)])
@pytest.mark.parametrize("mode", ["official", "evalai"])
def test_closed_form_by_number_of_agreeing_annotators(agreeing, expected, mode):
    others = [f"other {number}" for number in range(10 - agreeing)]
    assert accuracy("yes", ["yes"] * agreeing + others, mode) == pytest.approx(expected)


def test_identical_answers_are_compared_raw_in_the_official_mode_only():
    assert accuracy("Two", ["two"] * 10) == 0
    assert accuracy("2", ["two"] * 10) == 0
    assert accuracy("\ttwo\n", ["two"] * 10) == 1
    assert accuracy("Two", ["two"] * 10, "evalai") == 1
    assert accuracy("Two", ["two"] * 9 + ["three"]) == 1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The Two dogs", "2 dogs"),
        ("none", "0"),
        ("zero", "0"),
        ("ten of an apple", "10 of apple"),
        ("eleven", "eleven"),
        ("red/blue", "red blue"),
        ("red, blue", "red blue"),
        ("red,blue", "red blue"),
        ("red - blue", "red blue"),
        ("1,000", "1000"),
        ("1,000 red-car", "1000 redcar"),
        ("3.5", "3.5"),
        ("3. 5", "3 5"),
        ("u.s.a.", "usa"),
        (".5", ".5"),
        ("5.", "5"),
        ("." * 40, "." * 8),
        ("what's: up", "what's: up"),
        ("dont", "don't"),
        ("DONT", "don't"),
        ("let's", "let's"),
        ("somebody'd", "somebodyd"),
        ("she's", "she's"),
        ("shes", "shes"),
        ("twas", "'twas"),
        ("'ow'sat", "'ow's'at"),
        ("yall'd've", "y'all'd've"),
        ("couldn'tve", "couldn't've"),
        ("couldnt've", "couldn't've"),
        ("Im", "im"),
        ("a", ""),
    ],
)
def test_normalisation(text, expected):
    assert normalise(text) == expected


def test_evalai_sees_two_commas_between_digits_as_one_number():
    assert normalise("1,,2 x-b") == "1 2 x b"
    assert normalise("1,,2 x-b", "evalai") == "12 xb"


def test_the_published_tables_have_their_size_and_odd_entries():
    assert len(CONTRACTIONS) == 120
    assert [key for key, word in CONTRACTIONS.items() if key == word] == ["let's", "she's"]
    assert sorted(key for key in CONTRACTIONS if key != key.lower()) == ["I'dve", "Id've", "Im", "Ive"]
    assert all(key.replace("'", "") == word.replace("'", "") for key, word in CONTRACTIONS.items())
    assert [NUMBERS[word] for word in ("none", "zero", "one", "nine", "ten")] == ["0", "0", "1", "9", "10"]


def plain(prediction: str, answers: list[str]) -> float:
    """The official accuracy written a second time, with the published patterns."""

    def process(text: str) -> str:
        out = text
        for mark in list(';/[]"{}()=+\\_-><@`,?!'):
            if mark + " " in text or " " + mark in text or re.search(r"(\d)(\,)(\d)", text):
                out = out.replace(mark, "")
            else:
                out = out.replace(mark, " ")
        out = re.compile(r"(?!<=\d)(\.)(?!\d)").sub("", out, int(re.UNICODE))
        words = []
        for word in out.lower().split():
            if word in ("none", "zero"):
                word = "0"
            if word in ("one", "two", "three"):
                word = str(("one", "two", "three").index(word) + 1)
            if word not in ("a", "an", "the"):
                words.append({"dont": "don't", "somebody'd": "somebodyd"}.get(word, word))
        return " ".join(words)

    records = [
        {"answer": text.replace("\n", " ").replace("\t", " ").strip(), "id": i} for i, text in enumerate(answers)
    ]
    said = prediction.replace("\n", " ").replace("\t", " ").strip()
    if len({record["answer"] for record in records}) > 1:
        records = [{**record, "answer": process(record["answer"])} for record in records]
        said = process(said)
    total = 0.0
    for left_out in records:
        others = [record for record in records if record != left_out]
        total += min(1.0, sum(record["answer"] == said for record in others) / 3)
    return total / len(records)


PIECES = st.sampled_from(
    [
        "the",
        "Two",
        "none",
        "dont",
        "somebody'd",
        "red",
        "1,0",
        "3.5",
        "a.",
        ".",
        ",",
        "-",
        " - ",
        "? ",
        "/",
        " ",
        "\n",
        "!",
    ]
)
TEXTS = st.lists(PIECES, max_size=4).map("".join)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_equals_a_second_writing(data):
    pool = data.draw(st.lists(TEXTS, min_size=1, max_size=3))
    answers = data.draw(st.lists(st.sampled_from(pool), min_size=10, max_size=10))
    prediction = data.draw(st.one_of(st.sampled_from(pool), TEXTS))
    assert accuracy(prediction, answers) == pytest.approx(plain(prediction, answers))
