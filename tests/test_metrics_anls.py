"""ANLS: worked examples, the boundary, and a second writing of the edit distance."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmneuron_lens.metrics.anls import anls, measure
from mmneuron_lens.metrics.measured import MetricError


@pytest.mark.parametrize(
    ("prediction", "answers", "expected"),
    [
        ("Hello  World ", ["hello world"], 1.0),
        ("helloworld", ["hello world"], 1 - 1 / 11),
        ("axyzw", ["abc"], 0.0),
        ("kitten", ["sitting"], 1 - 3 / 7),
        ("kitten", ["nothing", "sitting", "kitte"], 1 - 1 / 6),
        ("", [""], 1.0),
        ("", ["a"], 0.0),
    ],
)
@pytest.mark.parametrize("boundary", ["strict", "inclusive"])
def test_worked_examples(prediction, answers, expected, boundary):
    assert anls(prediction, answers, boundary=boundary) == pytest.approx(expected)


def test_half_the_letters_wrong_stand_on_the_boundary():
    assert anls("ab", ["ax"]) == 0
    assert anls("ab", ["ax"], boundary="inclusive") == 0.5


def test_without_the_cut_little_agreement_scores():
    assert anls("axyzw", ["abc"], tau=1.0) == pytest.approx(0.2)


@pytest.mark.parametrize("tau", [0, -1, 1.5])
def test_a_tau_outside_its_range_is_refused(tau):
    with pytest.raises(MetricError, match=r"tau is .*; it must be above 0 and at most 1 \(DocVQA: 0\.5\)\."):
        measure([], tau=tau)


def test_an_unknown_boundary_is_refused():
    with pytest.raises(MetricError, match=r"boundary is 'soft'; choose from strict, inclusive\."):
        measure([], boundary="soft")  # pyright: ignore


def levenshtein(a: str, b: str) -> int:
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        above, row = row, [i]
        for j, y in enumerate(b, 1):
            row.append(min(above[j] + 1, row[-1] + 1, above[j - 1] + (x != y)))
    return row[-1]


@settings(max_examples=200, deadline=None)
@given(st.text("abA ", max_size=6), st.lists(st.text("abB ", max_size=6), min_size=1, max_size=3))
def test_equals_the_definition(prediction, answers):
    best = 0.0
    said = " ".join(prediction.strip().lower().split())
    for answer in answers:
        answer = " ".join(answer.strip().lower().split())
        longest = max(len(said), len(answer))
        distance = levenshtein(said, answer) / longest if longest else 0.0
        best = max(best, 1 - distance if distance < 0.5 else 0.0)
    assert anls(prediction, answers) == pytest.approx(best)
