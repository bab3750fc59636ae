"""RSVQA: buckets, and accuracy by kind, overall and averaged over kinds."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmneuron_lens.corpora.sample import Sample
from mmneuron_lens.metrics import score
from mmneuron_lens.metrics.rsvqa import normalise

EDGES = [(0, "0"), (1, "1"), (10, "1"), (11, "11"), (100, "11"), (101, "101"), (1000, "101"), (1001, ">"), (99999, ">")]
TEXTS = {"1": "between 0{u} and 10{u}", "11": "between 10{u} and 100{u}", "101": "between 100{u} and 1000{u}"}
TEXTS |= {"0": "0{u}", ">": "more than 1000{u}"}


@pytest.mark.parametrize(("number", "bucket"), EDGES)
def test_areas_fall_into_buckets_and_counts_only_when_asked(number, bucket):
    assert normalise(f"{number}m2") == TEXTS[bucket].format(u="m2")
    assert normalise(str(number)) == str(number)
    assert normalise(str(number), range_numbers=True) == TEXTS[bucket].format(u="")


@pytest.mark.parametrize("text", ["123m2", " 123 M2. ", "123m²", "123.0 m2", "Between 100m2 and 1000m2", "101m2?"])
def test_the_same_area_said_differently(text):
    assert normalise(text) == "between 100m2 and 1000m2"


@pytest.mark.parametrize(("text", "expected"), [("Yes.", "yes"), ("", ""), ("m2", "m2"), ("about 12m2", "about 12m2")])
def test_other_answers_are_lower_cased(text, expected):
    assert normalise(text) == expected


@given(st.integers(0, 10**7), st.integers(0, 10**7))
def test_a_larger_area_never_falls_into_a_smaller_bucket(one, other):
    order = [TEXTS[key].format(u="m2") for key in ("0", "1", "11", "101", ">")]
    low, high = sorted((one, other))
    assert order.index(normalise(f"{low:,}m2")) <= order.index(normalise(f"{high}m2"))


def sample(number: int, kind: str, answer: str) -> Sample:
    return Sample(str(number), "remote_sensing", (), "?", (answer,), kind=kind)


def test_overall_and_average_accuracy_differ_when_kinds_differ_in_size():
    asked = [("presence", "yes", "Yes")] * 6 + [("comp", "no", "yes")] * 2 + [("count", "3", "3"), ("count", "4", "5")]
    asked += [("area", "123m2", "more than 100"), ("area", "5m2", "9m2")]
    samples = [sample(number, kind, answer) for number, (kind, answer, _) in enumerate(asked)]
    answers = {str(number): said for number, (_, _, said) in enumerate(asked)}
    scores = score("RSVQA-HR", samples, answers)
    assert {kind: value.value for kind, value in scores.by_kind.items()} == pytest.approx(
        {"presence": 100, "comp": 0, "count": 50, "area": 50}
    )
    assert scores.overall.value == pytest.approx(100 * 8 / 12)
    assert scores.extra["AA"].value == pytest.approx(50)
    assert scores.by_kind["presence"].questions == 6


def test_a_question_of_unknown_kind_is_named_and_skipped():
    scores = score("rsvqa", [sample(1, "", "yes"), sample(2, "comp", "yes")], {"1": "yes", "2": "yes"})
    assert scores.ids == ("2",)
    assert scores.skipped == ("sample '1' is of kind ''; RSVQA has presence, comp, count, area, rural_urban.",)
