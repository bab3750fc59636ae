"""Faithfulness: the curve of a selection method over sizes, against random neurons, and the area between the two."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy
import polars as pl
from jaxtyping import Float
from torch import Tensor

from interventions.errors import InvalidValue
from mmneuron_lens.artifacts.comparison import OFF, NeuronComparison
from mmneuron_lens.evaluation.beyond_random import Numbers, beyond_random, drawn, measured, with_interval

OWN, OTHERS = "own", "others"
"""On whose questions: those of the neurons' domain, or of all other domains, each domain counting the same."""

ENDS = ("", "_low", "_high")


def curves(comparison: NeuronComparison, seed: int = 0) -> pl.DataFrame:
    """A row per method, domain, fraction and whose questions are asked ("own", "others"), with the neurons off.

    Columns: model, method, domain, fraction, on, neurons, questions; change, random (mean of the matched draws) and
    difference, of the answer's log-probability in nats; deviation and deviation_random, shares of the last hidden
    state's norm; accuracy, accuracy_random, accuracy_difference in points of change. Each with its 95 % interval over
    questions as `_low` and `_high`; null where it was not measured.
    """
    rows: list[dict[str, Any]] = []
    for place, one in enumerate(comparison.conditions):
        if one.draw or one.strength != OFF:
            continue
        for on, domains in _on(comparison, one.domain).items():
            asked = [domain for domain in domains if len(measured(comparison, place, domain))]
            if not asked:
                continue
            told = {"model": comparison.model, "method": one.method, "domain": one.domain, "fraction": one.fraction}
            told |= {"on": on, "neurons": sum(one.neurons.values())}
            told |= {"questions": sum(len(measured(comparison, place, domain)) for domain in asked)}
            rows.append(told | _numbers(comparison, place, asked, seed))
    return pl.DataFrame(rows, infer_schema_length=None)


def _numbers(comparison: NeuronComparison, place: int, domains: Sequence[str], seed: int) -> dict[str, float | None]:
    def each(function: Any, measure: str) -> list[Numbers]:
        return [function(comparison, place, domain, measure) for domain in domains]

    found = with_interval("change", *each(measured, "change"), seed=seed)
    found |= with_interval("random", *each(drawn, "change"), seed=seed)
    found |= with_interval("difference", *each(beyond_random, "change"), seed=seed)
    found |= with_interval("deviation", *each(measured, "deviation"), seed=seed)
    found |= with_interval("deviation_random", *each(drawn, "deviation"), seed=seed)
    before = [comparison.right_before[comparison.asked(domain)].double().numpy() for domain in domains]
    said = [100 * (one - then) if len(one) else one for one, then in zip(each(measured, "right"), before, strict=True)]
    random = [100 * (one - then) if len(one) else one for one, then in zip(each(drawn, "right"), before, strict=True)]
    found |= with_interval("accuracy", *said, seed=seed) | with_interval("accuracy_random", *random, seed=seed)
    return found | with_interval("accuracy_difference", *[100 * one for one in each(beyond_random, "right")], seed=seed)


def areas(comparison: NeuronComparison, seed: int = 0) -> pl.DataFrame:
    """The area between a method's curve and that of its matched draws, by method, domain and whose questions are asked.

    Columns: model, method, domain, on, area, area_low, area_high, first, last (fractions), questions. By the trapezoid
    rule over log10(fraction), in nats times decades; below 0 where the method's neurons matter more. The area of means
    is the mean of the questions' areas, so its interval redraws questions, for both curves and all fractions together.
    Only fractions at which all those questions were asked; none of fewer than two.
    """
    rows: list[dict[str, Any]] = []
    for method in comparison.methods:
        for domain in comparison.domains:
            for on, domains in _on(comparison, domain).items():
                fractions, groups = _areas_of(comparison, method, domain, domains)
                if not groups:
                    continue
                told = {"model": comparison.model, "method": method, "domain": domain, "on": on}
                told |= {"first": fractions[0], "last": fractions[-1], "questions": sum(map(len, groups))}
                rows.append(told | with_interval("area", *groups, seed=seed))
    return pl.DataFrame(rows, schema=AREAS, orient="row")


AREAS: dict[str, Any] = {
    **dict.fromkeys(("model", "method", "domain", "on"), pl.String()),
    **dict.fromkeys((f"area{end}" for end in ENDS), pl.Float64()),
    **{"first": pl.Float64(), "last": pl.Float64(), "questions": pl.Int64()},
}
"""Columns of `areas`."""


def _areas_of(
    comparison: NeuronComparison, method: str, domain: str, domains: Sequence[str]
) -> tuple[list[float], list[Numbers]]:
    """The fractions, and each question's area over them, domain by domain."""
    places = [
        (one.fraction, place)
        for place, one in enumerate(comparison.conditions)
        if (one.method, one.domain, one.strength) == (method, domain, OFF) and one.draws
    ]
    there = [other for other in domains if comparison.asked(other)]
    kept = sorted(pair for pair in places if all(len(measured(comparison, pair[1], other)) for other in there))
    if len(kept) < 2 or not there:
        return [], []
    fractions = [fraction for fraction, _ in kept]
    groups = [numpy.stack([beyond_random(comparison, place, other) for _, place in kept]) for other in there]
    return fractions, [numpy.trapezoid(group, numpy.log10(fractions), axis=0) for group in groups]


def _on(comparison: NeuronComparison, domain: str) -> dict[str, list[str]]:
    others = [other for other in comparison.domains if other != domain]
    return {OWN: [domain], OTHERS: others}


def faithfulness(
    clean: Float[Tensor, " question"], without: Float[Tensor, " question"], only: Float[Tensor, " question"]
) -> float:
    """How much of what all neurons do a set of them does alone: mean of (only - without) / (clean - without).

    - clean: a measure of each question (its answer's log-probability, or a logit difference) with nothing changed.
    - without: with all neurons at their baseline. only: with all but those of the set.

    1 where the set does all of it, 0 where nothing. Raises `InvalidValue` where the baseline changes nothing on some
    question. Source: arXiv 2506.09047.
    """
    apart = clean.double() - without.double()
    if not len(apart) or bool((apart == 0).any()):
        raise InvalidValue(
            f"all neurons at their baseline change nothing on {int((apart == 0).sum())} of {len(apart)} questions; "
            "leave these out."
        )
    return float(((only.double() - without.double()) / apart).mean())
