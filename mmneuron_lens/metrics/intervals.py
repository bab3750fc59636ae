"""Bootstrap intervals: of a mean over questions, of a mean of kinds, and of a difference between two conditions.

Percentile bootstrap (`scipy.stats.bootstrap`) over questions, seeded: the same scores and seed give the same interval.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy
from scipy.stats import bootstrap

from interventions.errors import InvalidValue

RESAMPLES = 2000
CONFIDENCE = 0.95
CELLS = 2_000_000
"""At most so many resampled scores are held at once, so memory does not grow with the corpus."""


@dataclass(frozen=True)
class Estimate:
    """A mean over questions, in per cent (or a difference of means, in percentage points), with its interval.

    - value: the mean. questions: of how many.
    - low, high: its 95 % interval; None where it needs more questions: fewer than two, or fewer than two of some kind.
    """

    value: float
    low: float | None
    high: float | None
    questions: int

    def __str__(self) -> str:
        interval = "no interval" if self.low is None else f"{self.low:.2f} to {self.high:.2f}"
        return f"{self.value:.2f} ({interval}; n = {self.questions})"


def estimate(scores: Sequence[float], seed: int = 0) -> Estimate:
    """The mean of scores in [0, 1], one a question, in per cent. Raises `InvalidValue` when there is none."""
    return mean_of_kinds([scores], seed)


def mean_of_kinds(scores_by_kind: Sequence[Sequence[float]], seed: int = 0) -> Estimate:
    """The mean of the kinds' means, in per cent, every kind counting the same; questions are redrawn within a kind."""
    groups = [100 * numpy.asarray(scores, float) for scores in scores_by_kind]
    questions = sum(map(len, groups))
    if not groups or min(map(len, groups)) == 0:
        raise InvalidValue(
            f"{questions} scores in {len(groups)} kinds, some empty; give one score or more of each kind."
        )
    value = float(numpy.mean([group.mean() for group in groups]))
    low, high = mean_interval(*groups, seed=seed)
    return Estimate(value, low, high, questions)


def mean_interval(*groups: numpy.ndarray[Any, Any], seed: int = 0) -> tuple[float | None, float | None]:
    """The `CONFIDENCE` interval of the mean of the groups' means, in their own unit; values [question] in each.

    For a paired difference, give the differences. (None, None) when a group has fewer than two values.
    """
    if min(map(len, groups)) < 2:
        return None, None
    interval = bootstrap(
        groups,
        _mean_of_means,
        n_resamples=RESAMPLES,
        batch=max(1, CELLS // sum(map(len, groups))),
        confidence_level=CONFIDENCE,
        method="percentile",
        vectorized=True,
        rng=numpy.random.default_rng(seed),
    ).confidence_interval
    return float(interval.low), float(interval.high)


def paired_difference(
    first: Mapping[str, float], second: Mapping[str, float], kinds: Mapping[str, str] | None = None, seed: int = 0
) -> Estimate:
    """mean(first) - mean(second) in percentage points; pairs are kept together.

    - first, second: scores in [0, 1] by question id.
    - kinds: a question's kind by its id; with them it is the difference of two means of kinds, as RSVQA's AA.
    - seed: of the resamples.

    Raises `InvalidValue` when the two do not hold the same questions, or a question has no kind.
    """
    if alone := sorted(first.keys() ^ second.keys()):
        raise InvalidValue(
            f"question {alone[0]!r} and {len(alone) - 1} more are in one condition only; score the same."
        )
    if kinds is not None and (unknown := sorted(first.keys() - kinds.keys())):
        raise InvalidValue(f"question {unknown[0]!r} and {len(unknown) - 1} more have no kind; give one for each.")
    groups: dict[str, list[float]] = {}
    for question in first:
        groups.setdefault("" if kinds is None else kinds[question], []).append(first[question] - second[question])
    return mean_of_kinds(list(groups.values()), seed)


def _mean_of_means(*groups: numpy.ndarray[Any, Any], axis: int = -1) -> Any:
    return sum(group.mean(axis=axis) for group in groups) / len(groups)
