"""Intervals: against a plain bootstrap, the normal approximation, and paired against unpaired."""

from __future__ import annotations

import numpy
import pytest

from mmneuron_lens.metrics.intervals import Estimate, estimate, mean_of_kinds, paired_difference


def draws(seed: int, count: int, chance: float) -> numpy.ndarray:
    return (numpy.random.default_rng(seed).random(count) < chance).astype(float)


def test_the_mean_in_per_cent_and_an_interval_like_the_normal_one():
    scores = draws(1, 500, 0.3)
    found = estimate(scores.tolist())
    half = 1.96 * scores.std() / numpy.sqrt(500)
    assert found.value == pytest.approx(100 * scores.mean())
    assert found.low == pytest.approx(100 * (scores.mean() - half), abs=0.5)
    assert found.high == pytest.approx(100 * (scores.mean() + half), abs=0.5)
    assert found.questions == 500


def test_the_mean_of_kinds_equals_a_plain_stratified_bootstrap():
    kinds = [draws(2, 40, 0.9), draws(3, 200, 0.2), draws(4, 10, 0.5)]
    found = mean_of_kinds([kind.tolist() for kind in kinds])
    random = numpy.random.default_rng(5)
    means = [numpy.mean([random.choice(kind, len(kind)).mean() for kind in kinds]) for _ in range(4000)]
    low, high = 100 * numpy.quantile(means, [0.025, 0.975])
    assert found.value == pytest.approx(100 * numpy.mean([kind.mean() for kind in kinds]))
    assert found.value != pytest.approx(100 * numpy.concatenate(kinds).mean(), abs=5)
    assert (found.low, found.high) == (pytest.approx(low, abs=0.8), pytest.approx(high, abs=0.8))


def test_the_seed_decides():
    scores = numpy.random.default_rng(6).random(80).tolist()
    assert estimate(scores, seed=1) == estimate(scores, seed=1)
    assert estimate(scores, seed=1) != estimate(scores, seed=2)


def test_memory_is_bounded_without_changing_the_interval(monkeypatch):
    scores = numpy.random.default_rng(7).random(90).tolist()
    whole = estimate(scores)
    monkeypatch.setattr("mmneuron_lens.metrics.intervals.CELLS", 1000)
    assert estimate(scores) == whole


def test_too_few_questions_have_no_interval_and_equal_ones_no_width():
    assert estimate([1.0]) == Estimate(100.0, None, None, 1)
    assert mean_of_kinds([[1.0, 0.0], [0.5]]) == Estimate(50.0, None, None, 3)
    assert estimate([0.5] * 9) == Estimate(50.0, 50.0, 50.0, 9)
    assert str(estimate([1.0])) == "100.00 (no interval; n = 1)"
    assert str(estimate([0.5] * 9)) == "50.00 (50.00 to 50.00; n = 9)"


def test_pairing_narrows_the_interval_of_a_difference():
    hard = draws(8, 300, 0.5)
    changed = hard.copy()
    changed[:9] = 0
    ids = [str(number) for number in range(300)]
    first, second = dict(zip(ids, changed, strict=True)), dict(zip(ids, hard, strict=True))
    found = paired_difference(first, second)
    assert found.value == pytest.approx(100 * (changed - hard).mean())
    assert found.high is not None
    assert found.low is not None
    assert found.high < 0.01
    assert found.high - found.low < 4
    # Given in another order the pairs stay together.
    assert paired_difference(first, dict(reversed(second.items()))) == found
    assert paired_difference(second, first).value == pytest.approx(-found.value)


def test_a_difference_of_means_of_kinds():
    first = {"1": 1.0, "2": 1.0, "3": 0.0, "4": 0.0, "5": 0.0, "6": 0.0}
    second = dict.fromkeys(first, 0.0)
    kinds = {name: "comp" if name in "12" else "count" for name in first}
    assert paired_difference(first, second, kinds).value == pytest.approx(50)
    assert paired_difference(first, second).value == pytest.approx(100 / 3)


def test_unlike_questions_are_no_pairs():
    with pytest.raises(ValueError, match=r"question '2' and 1 more are in one condition only; score the same\."):
        paired_difference({"1": 1.0, "2": 0.0}, {"1": 1.0, "3": 0.0})
    with pytest.raises(ValueError, match=r"question '1' and 0 more have no kind; give one for each\."):
        paired_difference({"1": 1.0}, {"1": 0.0}, {})
    with pytest.raises(ValueError, match=r"0 scores in 1 kinds, some empty; give one score or more of each kind\."):
        estimate([])
