"""Beyond random: by how much more than as many random ones a method's neurons change each question."""

from __future__ import annotations

from typing import Any, Literal

import numpy

from interventions.errors import InvalidValue
from mmneuron_lens.artifacts.comparison import NeuronComparison
from mmneuron_lens.metrics.intervals import mean_interval

Measure = Literal["change", "deviation", "right"]
"""Of the answer's log-probability in nats; of the last hidden state; whether the generated answer is right."""

Numbers = numpy.ndarray[Any, Any]

AT = 0.01
"""The fraction that is spoken of first: the paper's."""


def fraction_of(comparison: NeuronComparison) -> float:
    """The fraction that is spoken of first: `AT` where it was compared, or the nearest to it."""
    return min(comparison.fractions, key=lambda one: abs(numpy.log(one / AT)))


def measured(comparison: NeuronComparison, place: int, domain: str, measure: Measure = "change") -> Numbers:
    """A condition's values on the questions of a domain, float64 [question]; none where they were not asked."""
    values = getattr(comparison, measure)[place, comparison.asked(domain)].double().numpy()
    return values[~numpy.isnan(values)]


def drawn(comparison: NeuronComparison, place: int, domain: str, measure: Measure = "change") -> Numbers:
    """The mean over the draws matched to a condition, float64 [question]; none where there are no draws."""
    draws = [measured(comparison, one, domain, measure) for one in comparison.conditions[place].draws]
    return numpy.mean(draws, axis=0) if draws else numpy.zeros(0)


def beyond_random(comparison: NeuronComparison, place: int, domain: str, measure: Measure = "change") -> Numbers:
    """A condition's values less the mean of its matched draws, question by question; below 0 where its neurons matter
    more to the answer than as many random ones.
    """
    own, random = (one(comparison, place, domain, measure) for one in (measured, drawn))
    if not len(own) or not len(random):
        return numpy.zeros(0)
    if len(own) != len(random):
        raise InvalidValue(f"conditions.{place} was asked {len(own)} questions of {domain}, its draws {len(random)}.")
    return own - random


def with_interval(name: str, *groups: Numbers, seed: int = 0) -> dict[str, float | None]:
    """The mean of the groups' means with its 95 % interval over questions, as `name`, `name_low`, `name_high`; all are
    None where a group is empty.
    """
    if not groups or not all(len(one) for one in groups):
        return dict.fromkeys((name, f"{name}_low", f"{name}_high"))
    low, high = mean_interval(*groups, seed=seed)
    return {name: float(numpy.mean([one.mean() for one in groups])), f"{name}_low": low, f"{name}_high": high}
