"""Findings: a statement of the paper as a number with its interval, and the rule that decides whether it holds.

"holds" and "does not hold" mean that the number and its whole interval are on one side; between them it is "not
decided". "cannot fail here" is said of a statement that the procedure makes true whatever the data.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy

from mmneuron_lens.artifacts.answers import Answer
from mmneuron_lens.artifacts.counts import Counts
from mmneuron_lens.artifacts.deviations import Deviations
from mmneuron_lens.artifacts.entropies import Entropies
from mmneuron_lens.artifacts.selection import Selection
from mmneuron_lens.evaluation.accuracy import Scoring, is_right

Verdict = Literal["holds", "does not hold", "not decided", "cannot fail here", "not run"]

RESAMPLES = 200
LEVELS = (2.5, 97.5)
"""Percentiles of the ends of an interval: 95 %."""


@dataclass(frozen=True)
class Finding:
    """A claim on one model.

    - statistic: what was measured, in words.
    - value, low, high: the number and its interval, in `unit`; None where there is none.
    - verdict: what that says of the claim.
    - note: what else a reader should know.
    """

    model: str
    statistic: str
    value: float | None
    low: float | None
    high: float | None
    verdict: Verdict
    unit: str = ""
    note: str = ""


@dataclass(frozen=True)
class Claim:
    """A statement of the paper, and what was found on each model.

    - number: as in the paper's sheet of claims. statement: in words. findings: one a model.
    """

    number: str
    statement: str
    findings: tuple[Finding, ...] = ()


@dataclass(frozen=True)
class Evidence:
    """What a run knows of one model; what is empty was not run."""

    selection: Selection
    counts: Sequence[Counts] = ()
    entropies: Sequence[Entropies] = ()
    answers: Sequence[Answer] = ()
    scoring: Scoring = is_right
    deviations: Sequence[Deviations] = ()

    @property
    def model(self) -> str:
        return self.selection.model


def not_run(one: Evidence, why: str) -> Finding:
    """The finding of what was not run, with the reason."""
    return Finding(one.model, why, None, None, None, "not run")


def interval_of(values: Sequence[float]) -> tuple[float | None, float | None]:
    """The percentile interval of resampled values, NaN left out; (None, None) of fewer than two."""
    kept = [value for value in values if not math.isnan(value)]
    if len(kept) < 2:
        return None, None
    low, high = numpy.percentile(kept, LEVELS, method="inverted_cdf")
    return float(low), float(high)


def few(filled: Sequence[int]) -> bool:
    """Whether some domain has too few buckets of images, or questions, to be resampled: fewer than two."""
    return min(filled, default=0) < 2


def verdict_of(value: float, low: float | None, high: float | None, holds: Callable[[float], bool]) -> Verdict:
    """Whether a number and both ends of its interval agree; without an interval nothing is decided.

    - holds: whether the claim would hold for one value; true on one side of a bound, false on the other.
    """
    if low is None or high is None:
        return "not decided"
    said = {holds(one) for one in (value, low, high)}
    return "not decided" if len(said) == 2 else "holds" if True in said else "does not hold"
