"""What the file of each benchmark provides: how one question is scored, and which samples it cannot score."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from interventions.errors import InvalidValue
from mmneuron_lens.corpora.sample import Sample

Pairs = Sequence[tuple[Sample, str]]
"""Samples with the model's answers."""


class MetricError(InvalidValue):
    """Nothing can be scored; the message names the corpus or parameter, the choices and the next step."""


@dataclass(frozen=True)
class Measured:
    """What a benchmark says of pairs.

    - scores: in [0, 1], one a pair, in order.
    - details: further columns of one value a pair.
    - shares: columns in [0, 1] whose mean is reported beside the score.
    - mean_of_kinds: the name under which the mean of the kinds' means is reported, "" when the benchmark has none.
    """

    scores: list[float]
    details: dict[str, list[Any]] = field(default_factory=dict)
    shares: dict[str, list[float]] = field(default_factory=dict)
    mean_of_kinds: str = ""


@dataclass(frozen=True)
class Metric:
    """A benchmark's score.

    - name: as in tables.
    - measure: of pairs and the metric's own parameters, by keyword.
    - refuse: why a sample cannot be scored, or "".
    """

    name: str
    measure: Callable[..., Measured]
    refuse: Callable[[Sample], str]


def no_reference(sample: Sample) -> str:
    """Why a sample without accepted answers (a test split) cannot be scored, or ""."""
    return "" if sample.answers else "has no accepted answers; use a split that publishes them."


def choose(name: str, value: str, choices: Sequence[str]) -> str:
    """`value`, or a `MetricError` that lists the choices."""
    if value not in choices:
        raise MetricError(f"{name} is {value!r}; choose from {', '.join(choices)}.")
    return value
